"""The GPU script runs on a CPU at a tiny size; what it measures there means nothing."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpu
from measure import Benchmark, Row, Setup, run_all

ROOT = Path(__file__).parents[2]

TINY = """
import sys
import lightning.pytorch  # looks for some of the libraries below, and takes them where they are installed

for name in {lacking}:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]
    sys.modules[name] = None  # cannot be imported any more
sys.argv = ["gpu.py"]
import gpu
sys.exit(not gpu.main(sys.argv[1:], tiny=True))
"""

LACKING = (
    "transformers",
    "torch_geometric",
    "sentence_transformers",
    "open_clip",
    "datasets",
    "skimage",
    "sklearn",
    "mteb",
)


@pytest.mark.slow
def test_every_gpu_row_runs_with_the_named_libraries_alone_and_is_written(tmp_path):
    paths = os.pathsep.join(map(str, [ROOT / "benchmarks", ROOT]))
    environment = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", TINY.format(lacking=LACKING)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert f"left out: {'; '.join(gpu.graphs_on_a_gpu.names)}: needs torch_geometric" in done.stdout
    names = [name for each in gpu.BENCHMARKS for name in each.names if each is not gpu.graphs_on_a_gpu]
    assert list(written["rows"]) == names
    assert len(names) > 10
    for name, row in written["rows"].items():
        assert math.isfinite(row["figure"]), name
        assert row["figure"] >= 0, name
        assert row["met"] == "" or row["target"], name
        assert name in done.stdout
    assert written["device"] == "no GPU"


@pytest.mark.slow
def test_the_rows_of_a_student_of_graphs_run_too(tmp_path):
    rows = dict(gpu.graphs_on_a_gpu.run(Setup(tmp_path, tiny=True)))
    assert tuple(rows) == gpu.graphs_on_a_gpu.names
    assert all(math.isfinite(row.figure) and row.figure >= 0 for row in rows.values())


def test_what_would_begin_too_late_is_left_out_and_the_rest_is_kept(tmp_path, capsys):
    quick = Benchmark(("quick",), lambda setup: iter([Row("1 s", "2 s", 2.0, ">= 1")]))
    late = Benchmark(("late",), lambda setup: iter([Row("", "", 1.0)]))
    limits = iter([gpu.LONGEST + 60, 0])

    def both():
        for each in (quick, late):
            yield from gpu.within(next(limits), tmp_path / "rows.json", [each])

    assert run_all(both(), Setup(tmp_path), None)
    assert "left out: late: 0 of 0 seconds are over" in capsys.readouterr().out
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert kept["rows"] == {"quick": {"ours": "1 s", "peer": "2 s", "figure": 2.0, "target": ">= 1", "met": "yes"}}


def test_without_a_gpu_every_row_says_that_it_needs_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert run_all(gpu.BENCHMARKS, Setup(tmp_path), None)
    assert capsys.readouterr().out.count("needs a GPU") == len(gpu.BENCHMARKS)


def test_kernels_that_overlap_are_busy_once():
    assert gpu.union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert gpu.union([]) == 0
