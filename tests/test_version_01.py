"""What version 0.1 wrote is still read: its cache, run, checkpoints, exports, methods, and modules of users.

``tests/fixtures/make_v01.py`` made the files with the commands of version 0.1.
"""

import csv
import io
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import distill
from cache_tools import open_column
from cache_tools.cli import main as cache_command
from distill.cli import main

FIXTURE = Path(__file__).parent / "fixtures" / "v01"
METHODS = sorted((FIXTURE / "methods").glob("*.yaml"))
SMILES = [row["smiles"] for row in csv.DictReader((FIXTURE / "molecules.csv").open(newline=""))]

MODULE = """
import numpy as np
import torch

from cache_tools.columns import Featuriser
from cache_tools.corpus import Corpus
from cache_tools.teacher import Teacher
from distill.heads import GaussianHead, Head
from distill.methods.unic import TeacherDropping
from distill.normalize import Normaliser, Standardise
from distill.objective import Objective
from distill.probes import Probe
from distill.student import Student
from distill.tasks import Task, random_split


class Letters(Teacher):
    modality = "molecule"
    dim = 3

    def embed(self, items):
        return np.array([[item.count(letter) for letter in "CNO"] for item in items], np.float32)


class AbsoluteError(Head):
    def __init__(self, student_dim: int, teacher_dim: int):
        super().__init__()
        self.linear = torch.nn.Linear(student_dim, teacher_dim)

    def forward(self, student, target):
        return (self.linear(student).float() - target.float()).abs().sum(1)


class Halved(Standardise):
    def forward(self, target):
        return super().forward(target) / 2


class BagOfAtoms(Student):
    input = "graph"

    def __init__(self, dim: int = 8):
        super().__init__()
        self.dim = dim
        self.table = torch.nn.Embedding(256, dim)

    def embeddings(self, inputs):
        atoms = inputs["atoms"]
        number = torch.repeat_interleave(torch.arange(len(atoms.counts)), atoms.counts)
        return [torch.zeros(len(atoms.counts), self.dim).index_add_(0, number, self.table(atoms.values[:, 0].long()))]


class CarbonCount(Task):
    modality = "molecule"
    kind = "regression"
    provenance = "computed"

    def load(self):
        items = ["C" * n + "O" * m for n in range(1, 15) for m in range(5)]
        return items, np.array([[item.count("C")] for item in items], np.float64)

    def split(self, name, seed, items):
        return random_split(len(items), seed)
"""


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the files of version 0.1, as the folder where commands run."""
    folder = tmp_path / "v01"
    shutil.copytree(FIXTURE, folder)
    monkeypatch.chdir(folder)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_cache_is_listed_and_verified(old, capsys):
    cache_command(["list"])
    shown = capsys.readouterr().out
    for name in ("maccs", "counts", "graph", "finished"):
        assert name in shown
    cache_command(["verify"])
    assert "every shard is as it was written" in capsys.readouterr().out


def test_the_same_build_makes_no_column_again(old):
    def files() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (old / "cache").rglob("*.h5")}

    before = files()
    cache_command(["build", "--config", "cache.yaml"])
    assert len(before) == 16
    assert files() == before


def test_a_column_opens_and_its_rows_are_the_teacher_s(old):
    from cache_tools.teachers.molecule import Maccs

    column = open_column(old / "cache" / "mol" / "teachers" / "maccs")
    teacher = Maccs()
    expected = teacher.embed([teacher.prepare(each.encode()) for each in SMILES])
    np.testing.assert_array_equal(column.rows(torch.arange(150)).float(), expected)


def test_a_killed_fit_continues_as_version_0_1_continued_it(old):
    shutil.copytree("runs/old", "runs/on")
    more = ["--ckpt_path", "runs/on/checkpoints/last.ckpt", "--trainer.max_epochs", "3"]
    main(["fit", "--config", "runs/on/config.yaml", *more])
    found, wanted = rows_of(Path("runs/on/metrics.csv"))[-1], rows_of(old / "resumed.csv")[-1]
    for key, value in wanted.items():
        assert float(found[key]) == pytest.approx(float(value), rel=1e-6, abs=1e-6), key


def test_the_run_s_probes_give_the_scores_that_they_gave(old):
    wanted = rows_of(old / "runs" / "old" / "probes" / "scores.csv")
    main(["test", "--run", "runs/old"])
    found = rows_of(old / "runs" / "old" / "probes" / "scores.csv")
    new = ("fingerprints", "student+fingerprints")  # systems that came later
    assert {row["system"] for row in found} >= {*new}
    found = [row for row in found if row["system"] not in new]
    assert len(found) == len(wanted) == 6
    for one, other in zip(found, wanted, strict=True):
        assert {name: one[name] for name in other} | {"score": ""} == other | {"score": ""}  # fields came later, too
        if one["system"] == "untrained":  # its batch norms have seen rows of the corpus since then
            continue
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-6), one["system"]


def embeddings_agree(folder: Path) -> None:
    student = distill.load_student(folder, "cpu")
    np.testing.assert_allclose(student.embed(SMILES[:5]), np.load("embedding.npy"), rtol=1e-5, atol=1e-6)
    if student.teachers:
        counts = student.teacher_space(SMILES[:5], "counts")
        np.testing.assert_allclose(counts, np.load("counts.npy"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "teachers"), [("student", []), ("student-with-heads", ["maccs", "counts"])])
def test_an_export_gives_the_embeddings_that_it_gave(old, name, teachers):
    assert sorted(distill.load_student(old / name, "cpu").teachers) == sorted(teachers)
    embeddings_agree(old / name)


def test_an_old_checkpoint_is_exported(old):
    checkpoint = ["--ckpt_path", "runs/old/checkpoints/best.ckpt"]
    main(["export", *checkpoint, "--out", "again", "--heads", "true"])
    embeddings_agree(old / "again")
    weights = [(old / name / "model.safetensors").read_bytes() for name in ("again", "student-with-heads")]
    assert weights[0] == weights[1]
    main(["predict", "--corpus", "cache/mol", "--name", "pupil", *checkpoint])
    column = open_column(old / "cache" / "mol" / "teachers" / "pupil")
    np.testing.assert_allclose(column.rows(torch.arange(5)).float(), np.load("embedding.npy"), rtol=2e-3, atol=2e-3)


def test_a_user_s_module_written_for_version_0_1_works(old, monkeypatch):
    (old / "written_for_01.py").write_text(MODULE)
    monkeypatch.syspath_prepend(old)
    monkeypatch.setenv("PYTHONPATH", str(old))
    cache = yaml.safe_load((old / "cache.yaml").read_text())
    cache["teachers"] = {"letters": {"class_path": "written_for_01.Letters"}}
    (old / "letters.yaml").write_text(yaml.safe_dump(cache))
    cache_command(["build", "--config", "letters.yaml", "--name", "own"])
    config = {
        "run": "runs/own",
        "data": {"corpus": "cache/own", "batch_size": 32, "held_out": 20},
        "model": {
            "student": {"class_path": "written_for_01.BagOfAtoms"},
            "head": {"class_path": "written_for_01.AbsoluteError"},
            "normaliser": {"class_path": "written_for_01.Halved"},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "probe": {"seeds": [0], "tasks": {"carbons": {"class_path": "written_for_01.CarbonCount"}}},
    }
    (old / "own.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "own.yaml"])
    main(["test", "--run", "runs/own"])
    scores = {row["system"]: float(row["score"]) for row in rows_of(old / "runs" / "own" / "probes" / "scores.csv")}
    assert scores["letters"] > 0.99, "the teacher counts the letters that the task asks for"
    assert sys.modules["written_for_01"].Student is distill.students.base.Student


def test_every_method_of_version_0_1_is_there():
    assert len(METHODS) == 20


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_a_method_file_is_read_by_a_fit(old, method):
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "fit.yaml", "--config", str(method), "--print_config"])
    assert stop.value.code in (0, None)
    wanted = yaml.safe_load(method.read_text())["model"]["head"]["class_path"].rpartition(".")[2]
    assert yaml.safe_load(printed.getvalue())["model"]["head"]["class_path"].rpartition(".")[2] == wanted
