import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache_tools.errors import ConfigError
from distill.compare import compare, merged
from distill.evaluate import Record

BASE = Record("student", "student", "t1", "measured", "random", 0, "r2", 0.5, 10)


def run(folder: Path, student: float, teacher: float = 0.6) -> Path:
    records = [
        replace(BASE, system=system, kind=kind, task=task, seed=seed, score=score + 0.01 * seed)
        for system, kind, score in (("student", "student", student), ("maccs", "teachers", teacher))
        for task in ("t1", "t2")
        for seed in (0, 1)
    ]
    (folder / "probes").mkdir(parents=True)
    (folder / "probes" / "results.json").write_text(json.dumps({"records": [asdict(each) for each in records]}))
    return folder


def test_runs_stand_side_by_side_and_teachers_once(tmp_path):
    one, two = run(tmp_path / "one", 0.5), run(tmp_path / "two", 0.7)
    compare([one, two], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert [text.count(f"\n| {name} |") for name in ("one", "two", "maccs")] == [1, 1, 1]
    assert "| two - one | +0.200 |" in text
    assert (tmp_path / "report-compare.png").exists()


def test_a_teacher_that_scores_otherwise_is_told(tmp_path, caplog):
    merged([run(tmp_path / "one", 0.5), run(tmp_path / "two", 0.7, teacher=0.65)])
    assert "maccs on t1 has 0.6000 in one run and 0.6500 in" in caplog.text


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="probe the run first with `distill test --run"):
        merged([tmp_path / "none"])
    with pytest.raises(ConfigError, match="two runs are called one"):
        merged([run(tmp_path / "one", 0.5), run(tmp_path / "b" / "one", 0.5)])
