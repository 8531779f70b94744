import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache_tools.errors import ConfigError
from distill.compare import compare
from distill.evaluate import Record
from distill.report import alike
from distill.results import Results, merged

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
    compare([one, two], tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    assert [text.count(f"\n| {name} | 0.") for name in ("one", "two", "maccs")] == [1, 1, 1]
    assert "| two - one | +0.200 |" in text
    assert "the best of 2 students by these very scores, `two`, has a mean of 0.705" in text
    page = (tmp_path / "both" / "report.html").read_text()
    assert page.count("<svg") == text.count("](figures/") == len(list((tmp_path / "both" / "figures").glob("*.png")))
    assert not re.search(r"(src|href)=.?(https?:|/)", page.replace('xlink:href="#', "")), "the page needs something else"


def test_a_teacher_that_scores_otherwise_is_told(tmp_path, caplog):
    runs = run(tmp_path / "one", 0.5), run(tmp_path / "two", 0.7, teacher=0.65)
    _, notes = merged({each.name: [Results.load(each)] for each in runs})
    assert len(notes) == 4
    assert "maccs on t1 has 0.6000 in one run and 0.6500 in" in caplog.text


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="probe the run first with `distill test --run"):
        compare([tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ConfigError, match="two runs are called one"):
        compare([run(tmp_path / "one", 0.5), run(tmp_path / "b" / "one", 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_were_tested_on_other_rows_are_told(tmp_path, caplog):
    one, two = run(tmp_path / "one", 0.5), run(tmp_path / "two", 0.7)
    file = two / "probes" / "results.json"
    file.write_text(file.read_text().replace('"test_rows": 10', '"test_rows": 9'))
    merged({each.name: [Results.load(each)] for each in (one, two)})
    assert "t1, random split, seed 0: " in caplog.text
    assert "tested on 9 rows, another run on 10" in caplog.text


def test_means_are_over_tasks_that_all_systems_have(tmp_path):
    one, two = run(tmp_path / "one", 0.8), run(tmp_path / "two", 0.84)
    path = one / "probes" / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({"records": [each for each in found["records"] if each["task"] == "t1"]}))
    records, _ = merged({each.name: [Results.load(each)] for each in (one, two)})
    groups = alike(records)
    assert {name: (scores.tasks, sorted(scores.systems)) for name, scores in groups.items()} == {
        "random, t1": (["t1"], ["maccs", "one", "two"]),
        "random, t2": (["t2"], ["maccs", "two"]),
    }


def test_a_run_that_is_called_like_another_system_is_refused(tmp_path):
    for name in ("maccs", "pca"):
        with pytest.raises(ConfigError, match=f"a student is called {name}, as another system is"):
            compare([run(tmp_path / name, 0.5), run(tmp_path / f"{name}-other", 0.5)], tmp_path / "out")


@pytest.mark.parametrize("text", ["{", '{"records": [{"what": 1}]}', '{"records": []}', "[]"])
def test_damaged_results_are_told(tmp_path, text):
    folder = run(tmp_path / "one", 0.5)
    (folder / "probes" / "results.json").write_text(text)
    with pytest.raises(ConfigError, match="probe the run again with `distill test --run"):
        compare([folder], tmp_path / "out")
