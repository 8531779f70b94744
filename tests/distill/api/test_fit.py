"""`distill.fit`, `resume` and `evaluate`: the same runs as the command line's."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import distill
from cache_tools import ConfigError, CorpusError, RdkitSamples, Settings, Teacher, open_column, read_corpus
from cache_tools.teachers.molecule import Maccs
from distill.cli import main as command
from distill.evaluation.tasks import ComputedProperty
from distill.students.molecule import GraphStudent

RECIPE = Path(__file__).with_name("recipe.yaml")

SMALL = {"data.batch_size": 32, "data.held_out": 20, "trainer.accelerator": "cpu"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    smiles = [item.decode() for item in RdkitSamples(limit=120).read()[1]]
    return pd.DataFrame({"smiles": [*smiles[:-1], None], "name": [f"molecule {row}" for row in range(120)]})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def student(table, place) -> distill.FittedStudent:
    found = place / "cache"
    with pytest.raises(ConfigError, match=r"called 'morgan_count'; did you mean morgan_counts\? There are:\n  "):
        distill.fit(table, RECIPE, ["maccs", "morgan_count"], cache=found, options=SMALL)
    assert not found.exists(), "refused before anything is built"
    options = {**SMALL, "model.student": {"class_path": "GraphStudent", "init_args": {"layers": 2, "width": 16}}}
    return distill.fit(
        table, RECIPE, ["maccs", "morgan_counts"], id="name", epochs=1, out=place / "run", cache=found, options=options
    )


def corpus_of(run: distill.FittedStudent) -> Path:
    return Path(yaml.safe_load(run.run.config.read_text())["data"]["corpus"])


def test_a_table_becomes_a_corpus_with_its_ids_and_a_missing_cell_is_masked(student):
    corpus = corpus_of(student)
    assert read_corpus(corpus).rows == 120
    assert open_column(corpus / "teachers" / "maccs").valid([118, 119]).tolist() == [True, False]
    assert (corpus / "teachers" / "maccs" / "skipped.csv").read_text().splitlines()[1].startswith("119,molecule 119,")


def test_the_recipe_gives_heads_to_those_teachers_that_are_there(student):
    config = yaml.safe_load(student.run.config.read_text())
    assert config["data"]["teachers"] == ["maccs", "morgan_counts"]
    assert list(config["model"]["heads"]) == ["maccs"]
    assert config["model"]["normaliser"]["init_args"] == {"limit": 4.0}, "the recipe's, as are all other keys"
    assert config["trainer"]["max_epochs"] == 1


def test_the_student_embeds_as_the_command_line_exports_it(student, place):
    command(["export", "--ckpt_path", str(student.run.best), "--out", str(place / "exported")])
    other = distill.load_student(place / "exported", "cpu")
    assert other.embed(["CCO", "CCN"]).equal(student.embed(["CCO", "CCN"]))


def test_a_student_is_exported_from_python_as_by_the_command(student, tmp_path):
    student.export(tmp_path / "out", licence="apache-2.0")
    again = distill.load_student(tmp_path / "out", "cpu")
    assert again.embed(["CCO"]).equal(student.embed(["CCO"]))
    assert "apache-2.0" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ConfigError, match="only an ImageStudent is one"):
        _ = again.backbone


def test_a_command_and_a_call_go_on_with_one_another_s_runs(student, place, monkeypatch):
    run = place / "begun-by-a-command"
    config = ["--config", str(student.run.config)]
    command(["fit", *config, "--run", str(run)])
    going_on = distill.resume(run, epochs=2)
    assert going_on.run.metrics()[-1]["epoch"] == "1"
    first = going_on.embed(["CCO"])
    command(
        [
            "fit",
            "--config",
            f"{run}/config.yaml",
            "--ckpt_path",
            f"{run}/checkpoints/last.ckpt",
            "--trainer.max_epochs",
            "6",
        ]
    )
    assert not distill.FittedStudent(run, "cpu").embed(["CCO"]).equal(first), "a run that went on is exported again"


def test_a_corpus_of_a_cache_and_a_student_object(student, place):
    fitted = distill.fit(
        corpus_of(student), GraphStudent(layers=1, width=8, dim=24), "maccs", epochs=1, out=place / "object", options=SMALL
    )
    assert (fitted.dim, fitted.run.path) == (24, place / "object")
    config = yaml.safe_load(fitted.run.config.read_text())
    assert config["model"]["student"]["class_path"] == "distill.students.molecule.GraphStudent"
    assert config["model"]["student"]["init_args"]["layers"] == 1
    assert config["data"]["teachers"] == ["maccs"]


class Letters(Teacher):
    modality = "molecule"
    dim = 2

    def embed(self, items):
        return np.array([[item.count("C"), item.count("O")] for item in items], np.float32)


def test_teachers_can_be_objects_and_items_a_list_or_a_file(table, place):
    table.dropna().to_csv(place / "mine.csv", index=False)
    for items in (table.dropna()["smiles"], place / "mine.csv"):
        fitted = distill.fit(
            items,
            RECIPE,
            {"letters": Letters(), "maccs": Maccs()},
            epochs=1,
            out=place / "objects",
            cache=place / "cache",
            settings=Settings(workers=1),
            options=SMALL,
        )
        assert {path.name for path in (corpus_of(fitted) / "teachers").iterdir()} == {"letters", "maccs"}
    assert corpus_of(fitted).name.startswith("mine-"), "named for the file and its content"
    assert fitted.run.path.name == "objects-2", "an earlier run is kept"


def test_evaluate_gives_the_scores_of_the_report(student):
    with pytest.raises(ConfigError, match="probe the run first"):
        _ = student.verdict
    options = {"probe.seeds": [0], "probe.splits": ["random"], "probe.systems": ["student", "teachers"]}
    records = distill.evaluate(student, {"tpsa": ComputedProperty("TPSA", 60)}, options)
    assert {record.system for record in records} == {"student", "maccs", "morgan_counts"}
    assert set(pd.DataFrame(student.records)["task"]) == {"tpsa"}
    assert student.verdict.startswith("`student` is ")
    assert (student.run.probes / "report.html").is_file()


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (pd.DataFrame({"smi": ["C"]}), {}, "the table has no column smiles; its columns are: smi"),
        (["CCO", 3], {}, "memory row 1: a molecule is a str, found int"),
        ("nowhere.csv", {}, "no file .*nowhere.csv: check the path"),
        (7, {}, "expected a path, a table or a list of items, found one int"),
    ],
)
def test_items_that_cannot_be_read_are_told_in_words(tmp_path, items, options, message):
    with pytest.raises(CorpusError, match=message):
        distill.fit(items, RECIPE, ["maccs"], cache=tmp_path, options=options)


def test_a_wrong_name_or_key_is_an_error_and_no_end_of_the_program(student, tmp_path):
    with pytest.raises(ConfigError, match="no file moll, which --config names; did you mean mol"):
        distill.fit(["C"], "moll", cache=tmp_path)
    with pytest.raises(ConfigError, match="max_epoch.*did you mean trainer.max_epochs"):
        distill.fit(corpus_of(student), RECIPE, "maccs", out=tmp_path / "run", options={"trainer.max_epoch": 1})
    with pytest.raises(ConfigError, match="lower data.held_out or data.batch_size"):
        distill.fit(corpus_of(student), RECIPE, "maccs", out=tmp_path / "run", options={"data.batch_size": 1000})
    assert not (tmp_path / "run").exists()


def test_an_interrupted_call_raises_it_and_the_run_goes_on_later(student, place):
    run = place / "interrupted"

    def interrupt() -> None:
        while not (run / "checkpoints" / "last.ckpt").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        distill.fit(corpus_of(student), RECIPE, "maccs", epochs=100_000, out=run, options=SMALL)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before, "a notebook can be interrupted again"
    assert not (run / "finished").exists()
    epoch = int(distill.FittedStudent(run, "cpu").run.metrics()[-1]["epoch"])
    assert distill.resume(run, epochs=epoch + 3).run.finished.is_file()


def test_what_a_fit_cannot_use_is_told_before_a_folder_is_made(student, tmp_path):
    gone = {"class_path": "distill.evaluation.tasks.MoleculeTask", "init_args": {"path": "gone.csv", "kind": "regression"}}
    of_texts = {"class_path": "distill.students.text.StaticStudent", "init_args": {"vocabulary": 10}}
    for options, message in (
        ({"probe.tasks": {"solubility": gone}}, "no file or folder .*gone.csv: mend the path of probe.tasks.solubility"),
        ({"model.student": of_texts}, "holds molecules, of which data.input is graph; a StaticStudent does not read it"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill.fit(corpus_of(student), RECIPE, "maccs", out=tmp_path / "run", options={**SMALL, **options})
    assert not (tmp_path / "run").exists()


def test_a_fit_says_each_epoch_in_one_line_and_that_it_has_few_steps(student, tmp_path, caplog):
    with caplog.at_level("INFO"):
        distill.fit(corpus_of(student), RECIPE, ["maccs"], epochs=2, out=tmp_path / "run", options=SMALL)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert [line.partition(": loss ")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert any("all epochs together are only 6 steps" in line for line in caplog.messages)


def test_a_student_of_prefixes_is_probed_and_embeds_at_each_length(student, place, table):
    options = {**SMALL, "model.dims": [4, 8]}
    fitted = distill.fit(corpus_of(student), RECIPE, epochs=1, out=place / "prefixes", options=options)
    assert fitted.dims == [4, 8] and student.dims == []
    smiles = list(table["smiles"][:3])
    whole = fitted.embed(smiles)
    assert torch.equal(fitted.embed(smiles, dim=4), whole[:, :4])
    assert torch.equal(fitted.embed(smiles, dim=24), whole)
    assert fitted.embed(smiles, output="pandas", dim=8).shape == (3, 8)
    with pytest.raises(ConfigError, match=r"dim is 5, expected 4 or 8 or 24: .* was fitted for no other \(model.dims\)"):
        fitted.embed(smiles, dim=5)
    with pytest.raises(ConfigError, match=rf"dim is 4, expected {student.dim}: "):
        student.embed(smiles, dim=4)
    distill.embed(fitted.folder, corpus_table(place, smiles), place / "prefix.npy", dim=4, device="cpu")
    np.testing.assert_allclose(np.load(place / "prefix.npy"), whole[:, :4], atol=1e-5)
    options = {"probe.seeds": [0], "probe.splits": ["random"], "probe.systems": ["student", "prefixes"]}
    records = distill.evaluate(fitted, {"tpsa": ComputedProperty("TPSA", 60)}, options)
    assert {record.system for record in records} == {"student", "student[:4]", "student[:8]"}
    assert r"| student\[:4\] | 4 |" in (fitted.run.probes / "report.md").read_text(), "the table of costs"
    card = (fitted.run.export / "README.md").read_text()
    assert "The first 4, 8 numbers of an embedding" in card and "embed(items, dim=4)" in card


def corpus_table(folder: Path, smiles: list[str]) -> Path:
    pd.DataFrame({"smiles": smiles}).to_csv(folder / "three.csv", index=False)
    return folder / "three.csv"
