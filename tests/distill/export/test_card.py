"""The model card begins with the verdict, and shows names as they are: none becomes a tag, a link or a column."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from safetensors.numpy import save_file

from distill.export import card
from distill.records import Cost, Record, Results
from distill.report.compare import compare_runs
from distill.run_folder import RunFolder


def written(folder: Path, name: str, source: str = "") -> str:
    """The model card of a run in ``folder`` whose teacher and source have a name."""
    producer = {"class_path": "cache_tools.teachers.molecule.Maccs", "init_args": {}, "fingerprint": {}}
    column = SimpleNamespace(dim=3, manifest={"producer": producer})
    corpus = SimpleNamespace(
        corpus=SimpleNamespace(modality="molecule", rows=3, source=source or name, fingerprint="0" * 20),
        columns=SimpleNamespace(corpus=Path("c")),
        inputs=SimpleNamespace(name="graph"),
        teachers={name: column},
    )
    (folder / "metrics.csv").write_text("step,val/loss\n7,1.0\n")
    exported = {
        "checkpoint": {"epoch": 0, "step": 7},
        "inputs": {"graph": {"modality": "molecule"}},
        "dim": 3,
        "teachers": {},
        "student": {"class_path": "distill.students.molecule.GraphStudent"},
    }
    card.write(folder, name, folder / "checkpoints" / "best.ckpt", {"model": {}}, [corpus], exported)
    return (folder / "README.md").read_text()


def test_no_name_becomes_a_tag_a_link_or_a_column_of_a_model_card(tmp_path: Path):
    evil = "<script>alert(1)</script> | [a](http://b) *c* `d"
    text = written(tmp_path, evil)
    shown = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in shown
    assert 'href="http://b"' not in shown
    assert "<em>" not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt; | [a](http://b) *c* `d") == 4
    rows = [line for line in text.splitlines() if line.startswith("|") and "script" in line]
    assert len(rows) == 2


def test_a_card_names_a_file_of_the_corpus_without_the_folders_above_it(tmp_path: Path):
    text = written(tmp_path, "mine", "/home/somebody/molecules.csv")
    assert "| molecules.csv |" in text
    assert "somebody" not in text


@pytest.mark.parametrize(
    ("facts", "licence"),
    [
        ({"licence": "MIT", "source": "pretrain-gnns"}, "MIT (pretrain-gnns)"),
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"source": "pretrain-gnns"}, card.UNKNOWN),
        (None, card.UNKNOWN),
    ],
)
def test_the_licence_of_a_teacher_is_the_one_that_its_weights_state(tmp_path: Path, facts, licence):
    save_file({"x": np.zeros(1)}, tmp_path / "weights.safetensors", facts)
    assert card._licence(str(tmp_path / "weights.safetensors"), None) == licence


def test_damaged_weights_have_no_licence(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    assert card._licence(str(tmp_path / "weights.safetensors"), None) == card.UNKNOWN


def test_the_card_begins_with_the_verdict_of_the_report(tmp_path: Path):
    run, random = RunFolder(tmp_path), np.random.default_rng(0)
    run.probes.mkdir()
    records = [
        Record(system, kind, f"t{task}", "measured", "random", 0, "r2", level + random.normal(0, 0.01), 10)
        for system, kind, level in (("student", "student", 0.7), ("a", "teachers", 0.6), ("untrained", "untrained", 0.2))
        for task in range(9)
    ]
    about = {"checkpoint": "x/best.ckpt", "margin": 0.03}
    Results(run, records, {"student": Cost(3, None, 9.0), "a": Cost(3, None, 3.0)}, about).save()
    (answer,) = compare_runs([tmp_path], tmp_path / "out", margin=0.03)
    text = written(tmp_path, "mine")
    said = str(answer).replace(f"`{tmp_path.name}`", "`student`")
    assert text.split("---\n", 2)[2].split("\n\n")[1] == said
    assert "3 times faster to compute" in said
    assert "it is above -0.03" in text
    assert "| a (best teacher) | beats | +0.1" in text
