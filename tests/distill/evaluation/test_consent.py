"""Teachers run Python code that comes with their models on the items of tasks only when the present command allows it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cache_tools import CacheError, Items, MoleculeGraph, Settings, build
from cache_tools.teachers.molecule import Maccs
from distill.cli.fit import DistillCLI, complete
from distill.data.columns import open_corpus
from distill.data.module import DistillData
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import MoleculeTask
from distill.study.run import Run
from distill.training.distiller import Distiller

STUDENT = {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 1, "width": 8}}
STUDENT_WORDS = ["--model.student", STUDENT["class_path"], "--data.corpus", "none"]


class Trusting(Maccs):
    """A teacher whose manifest says that it ran a model's own code."""

    def __init__(self, model: str, trust_remote_code: bool = False):
        super().__init__()


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
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    state = {"state_dict": {"student.weight": torch.zeros(1)}, "epoch": 0, "global_step": 0}
    torch.save(state, tmp_path / "run" / "checkpoints" / "best.ckpt")
    (tmp_path / "run" / "config.yaml").write_text("probe: {trust_remote_code: true, seeds: [7]}\n")
    alone = complete(["test", "--run", str(tmp_path / "run")])
    asked = complete(["test", "--run", str(tmp_path / "run"), "--probe.trust_remote_code", "true"])
    for words, allowed in ((alone, False), (asked, True)):
        command, *rest = words[: words.index("--ckpt_path")]
        with pytest.raises(SystemExit):
            DistillCLI(Distiller, DistillData, args=[command, *STUDENT_WORDS, *rest, "--print_config"])
        probe = yaml.safe_load(capsys.readouterr().out)["probe"]
        assert (probe["seeds"], probe["trust_remote_code"]) == ([7], allowed)


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
