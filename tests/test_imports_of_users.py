"""Where both command lines import a user's classes from: last of all, the current folder and those of configurations."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SHADOWS = ("rdkit", "torch", "numpy", "torch_geometric")
TEACHER = """
import numpy as np

from cache_tools import Teacher


class Letters(Teacher):
    modality = "molecule"
    dim = 2

    def embed(self, items):
        return np.array([[item.count("C"), item.count("O")] for item in items], np.float32)
"""
STUDENT = """
import torch

from distill.students.base import Student


class Plain(Student):
    input = "graph"

    def __init__(self):
        super().__init__()
        self.dim = 4
        self.scale = torch.nn.Parameter(torch.ones(4))

    def embeddings(self, inputs):
        return [inputs["atoms"].counts.unsqueeze(1) * self.scale]
"""
INSTALLED = Path(sys.executable).parent


def run(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """A folder to work in, whose files have the names of libraries, and one with configurations and their own classes."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for name in SHADOWS:
        (here / f"{name}.py").write_text("raise SystemExit('shadowed')")
    (there / "own_teacher.py").write_text(TEACHER)
    (there / "own_student.py").write_text(STUDENT)
    (there / "molecules.csv").write_text(
        "smiles\n" + "\n".join("C" * (n + 1) + "O" * m for n in range(10) for m in range(4))
    )
    cache = {
        "corpus": {"class_path": "cache_tools.SmilesFile", "init_args": {"path": str(there / "molecules.csv")}},
        "teachers": {
            "letters": {"class_path": "own_teacher.Letters"},
            "descriptors": {"class_path": "cache_tools.teachers.molecule.RdkitDescriptors"},
        },
        "inputs": {"graph": {"class_path": "cache_tools.MoleculeGraph"}},
        "settings": {"workers": 2, "batch_size": 4},
    }
    fit = {
        "run": "runs/own",
        "data": {"corpus": "cache/mol", "batch_size": 8, "held_out": 8},
        "model": {"student": {"class_path": "own_student.Plain"}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "probe": {"every": 0, "tasks": {}},
    }
    (there / "cache.yaml").write_text(yaml.safe_dump(cache))
    (there / "fit.yaml").write_text(yaml.safe_dump(fit))
    return here, there


def test_a_class_beside_the_configuration_is_found_and_no_file_here_stands_for_a_library(places):
    here, there = places
    run([str(INSTALLED / "distill-cache"), "build", "--config", str(there / "cache.yaml")], here)
    run([str(INSTALLED / "distill"), "fit", f"--config={there / 'fit.yaml'}"], here)
    with open(here / "runs" / "own" / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file))


def test_a_class_in_the_current_folder_is_found_by_python_m_too(places):
    here, there = places
    (there / "own_teacher.py").rename(here / "own_teacher.py")
    run([sys.executable, "-m", "cache_tools.cli", "build", "--config", "../there/cache.yaml"], here)
    assert (here / "cache" / "mol" / "teachers" / "letters" / "00000.h5").exists()


def test_a_plain_script_builds_with_worker_processes_and_is_run_once(tmp_path):
    (tmp_path / "script.py").write_text(
        "print('started')\n"
        "from cache_tools import Items, Settings, build\n"
        "from cache_tools.teachers.molecule import MorganBits\n"
        "build('cache', 'mol', Items(['C' * n for n in range(1, 41)], 'molecule'), {'morgan': MorganBits(64)}, {},\n"
        "      Settings(workers=2, batch_size=4))\n"
    )
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "started\n"
    assert (tmp_path / "cache" / "mol" / "teachers" / "morgan" / "00000.h5").exists()


def test_a_teacher_in_a_script_needs_the_main_guard_alone(places):
    here, there = places
    script = (there / "own_teacher.py").read_text() + (
        "\n\nif __name__ == '__main__':\n"
        "    from cache_tools import Items, Settings, build\n"
        "    Letters.python_bound = True\n"
        "    build('cache', 'mol', Items(['C' * n for n in range(1, 41)], 'molecule'), {'letters': Letters()}, {},\n"
        "          Settings(workers=2, batch_size=4))\n"
    )
    (here / "script.py").write_text(script)
    run([sys.executable, "-P", "script.py"], here)
    assert (here / "cache" / "mol" / "teachers" / "letters" / "00000.h5").exists()
