"""Teachers run Python code that comes with their models on the items of tasks only when the present command allows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cache_tools import CacheError, ConfigError, Items, MoleculeGraph, Settings, build
from cache_tools.teachers.molecule import Maccs
from distill.cli.fit import DistillCLI, complete
from distill.data.columns import open_corpus
from distill.data.module import DistillData
from distill.evaluation.baselines import undistilled
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import MoleculeTask
from distill.export.write import export, predict
from distill.students.molecule import GraphStudent
from distill.study.run import Run
from distill.training.distiller import Distiller

STUDENT = {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 1, "width": 8}}
STUDENT_WORDS = ["--model.student", STUDENT["class_path"], "--data.corpus", "none"]


class Trusting(Maccs):
    """A teacher whose manifest says that it ran a model's own code."""

    def __init__(self, model: str, trust_remote_code: bool = False):
        super().__init__()


class TrustingStudent(GraphStudent):
    """A user's student that may run a model's own code; ``made`` counts its instances."""

    made = 0

    def __init__(self, model: str, trust_remote_code: bool = False, random: bool = False):
        super().__init__(layers=1, width=8)
        TrustingStudent.made += 1

    @classmethod
    def random_start(cls, init_args):
        return {**init_args, "random": True}


TRUSTING = {
    "class_path": f"{__name__}.TrustingStudent",
    "init_args": {"model": "some/model", "trust_remote_code": True},
}


def run_of(folder: Path, config: str) -> Path:
    """A run with a checkpoint, whose configuration is ``config``."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    state = {"state_dict": {"student.weight": torch.zeros(1)}, "epoch": 0, "global_step": 0}
    torch.save(state, folder / "run" / "checkpoints" / "best.ckpt")
    (folder / "run" / "config.yaml").write_text(config)
    return folder / "run"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("consent")
    molecules = [f"{'C' * n}O" for n in range(1, 31)]
    teachers = {"trusting": Trusting("some/model", trust_remote_code=True)}
    build(folder, "c", Items(molecules, "molecule"), teachers, {"graph": MoleculeGraph()}, Settings(workers=1))
    (folder / "task.csv").write_text("\n".join(["smiles,y", *(f"{'C' * n}N,{n}" for n in range(1, 31))]) + "\n")
    return folder / "c"


def evaluation(corpus: Path, **options) -> Evaluation:
    return Evaluation({"y": MoleculeTask(corpus.parent / "task.csv", "regression")}, seeds=[0], **options)


def test_a_teachers_manifest_grants_its_model_no_code_on_the_items_of_tasks(corpus):
    with pytest.raises(
        CacheError, match=r"c/teachers/trusting says trust_remote_code: True.* with some/model.*--probe.trust"
    ):
        evaluation(corpus).prepare([open_corpus(corpus, None)], Settings(workers=1))
    assert not list(corpus.rglob("tasks"))


def test_a_command_that_trusts_a_teacher_probes_it_and_takes_its_time(corpus):
    trusting = evaluation(corpus, systems=["teachers"], trust_remote_code=True)
    trusting.prepare([open_corpus(corpus, None)], Settings(workers=1))
    (record,) = trusting.run({}, "cpu", quiet=True)
    assert record.system == "trusting"
    assert trusting.costs({}, "cpu")["trusting"].per_second > 0


def test_a_runs_own_configuration_allows_nothing_and_the_command_does(tmp_path, capsys):
    run = str(run_of(tmp_path, "probe: {trust_remote_code: true, seeds: [7]}\n"))
    alone = complete(["test", "--run", run])
    asked = complete(["test", "--run", run, "--probe.trust_remote_code", "true"])
    for words, allowed in ((alone, False), (asked, True)):
        command, *rest = words[: words.index("--ckpt_path")]
        with pytest.raises(SystemExit):
            DistillCLI(Distiller, DistillData, args=[command, *STUDENT_WORDS, *rest, "--print_config"])
        probe = yaml.safe_load(capsys.readouterr().out)["probe"]
        assert (probe["seeds"], probe["trust_remote_code"]) == ([7], allowed)


@pytest.mark.parametrize("place", ["model", "data", "probe"])
def test_a_runs_own_configuration_lets_no_class_run_a_models_code_and_the_command_does(tmp_path, place):
    run = run_of(tmp_path, yaml.safe_dump({place: {"inner": [TRUSTING]}, "trainer": {}}))
    words = ["--run", str(run)]
    refusal = r"run/config.yaml says trust_remote_code: True.* with some/model, .*`validate` and `fit` take --probe.trust_"
    for command in ("test", "validate"):
        for more in ([], ["--probe.trust_remote_code", "false"]):
            with pytest.raises(CacheError, match=refusal):
                complete([command, *words, *more])
        for more in (["--probe.trust_remote_code", "true"], ["--probe.trust_remote_code=True"]):
            assert str(run / "config.yaml") in complete([command, *words, *more])


def test_no_export_of_a_run_runs_a_models_code(corpus, tmp_path):
    config = {"data": {"corpus": str(corpus)}, "model": {"student": TRUSTING}, "probe": {"trust_remote_code": True}}
    best = run_of(tmp_path, yaml.safe_dump(config)) / "checkpoints" / "best.ckpt"
    before = TrustingStudent.made
    with pytest.raises(CacheError, match=r"run/config.yaml says trust_remote_code: True.*no other command runs it"):
        export(tmp_path / "out", best)
    with pytest.raises(CacheError, match=r"run/config.yaml says trust_remote_code: True"):
        predict(corpus, ckpt_path=best)
    assert TrustingStudent.made == before
    assert not (tmp_path / "out").exists()


def test_a_command_that_trusts_a_student_also_builds_it_untrained():
    systems = undistilled(TrustingStudent(**TRUSTING["init_args"]), TRUSTING)
    assert sorted(systems) == ["start", "untrained"]


@pytest.mark.parametrize("text", ["- 1\n", "", "model: [\n"])
def test_a_damaged_configuration_of_a_run_is_named(tmp_path, text):
    run = run_of(tmp_path, text)
    for read in (
        lambda: complete(["test", "--run", str(run)]),
        lambda: export(tmp_path / "o", run / "checkpoints/best.ckpt"),
    ):
        with pytest.raises(ConfigError, match=r"run/config.yaml(, line \d+)?: (expected the keys|this is no YAML)"):
            read()


def test_a_run_does_not_keep_what_its_command_allowed(corpus, tmp_path):
    (tmp_path / "fit.yaml").write_text(
        yaml.safe_dump({"data": {"corpus": str(corpus), "batch_size": 8}, "model": {"student": STUDENT}})
    )
    words = ["fit", "--config", str(tmp_path / "fit.yaml"), "--run", str(tmp_path / "run"), "--trainer.max_steps", "1"]
    words += ["--probe.trust_remote_code", "true", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "distill.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["probe"]["trust_remote_code"] is False


def test_a_study_hands_on_what_its_own_files_allow(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or subprocess.CompletedProcess([], 0)
    )
    for said in ("true", "false"):
        (tmp_path / f"{said}.yaml").write_text(f"probe: {{trust_remote_code: {said}}}\n")
        with open(os.devnull, "w") as output:
            run = Run("method", "", tmp_path / "runs", [tmp_path / f"{said}.yaml"], 0, ["student"])
            run._distill(output, "test")
    assert [command[-2:] == ["--probe.trust_remote_code", "true"] for command in commands] == [True, False]
