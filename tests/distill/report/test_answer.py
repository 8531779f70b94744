"""The verdict in words: the same figures as the tables, one sentence, and what a script may require."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cache_tools.errors import ConfigError
from distill.cli.compare import main
from distill.records import Cost, Record, Results, save_scores
from distill.report.answer import check_requirements, speed_words, students_table, unmet, verdict_table
from distill.report.compare import compare_runs
from distill.report.sections import summarise
from distill.report.tables import score_table
from distill.run_folder import RunFolder

BASE = Record("student", "student", "t1", "measured", "random", 0, "r2", 0.5, 10)
KINDS = {"student": "student", "a": "teachers", "b": "teachers", "concatenated": "concatenated", "untrained": "untrained"}
LEVEL = {"student": 0.6, "a": 0.5, "b": 0.45, "concatenated": 0.59, "untrained": 0.2}


def records(
    tasks: int = 8, splits: tuple[str, ...] = ("random", "scaffold"), seed: int = 0, **level: float
) -> list[Record]:
    """Two seeds of every split; differences of tasks vary by about .02."""
    random, level = np.random.default_rng(seed), LEVEL | level
    own = {(system, task): random.normal(0, 0.02) for system, task in product(level, range(tasks))}
    return [
        replace(BASE, system=s, kind=KINDS.get(s, "student"), task=f"t{t}", split=split, seed=k, score=score)
        for s, t, split, k in product(level, range(tasks), ("random", "scaffold"), range(2))
        for score in [level[s] + own[s, t] + random.normal(0, 0.01) - 0.1 * (split == "scaffold")]
    ]


def test_the_first_sentence_has_the_figures_and_the_speed():
    costs = {"student": Cost(8, None, 800.0), "a": Cost(8, None, 100.0)}
    (answer,) = summarise(records(), costs).answers
    first, rest = str(answer).split(" Also, ")
    figures = r"\(\+0\.\d{3}, \+0\.\d{3} to \+0\.\d{3}\)"
    assert re.fullmatch(rf"`student` beats the best teacher, `a`, on 8 tasks {figures}, 8 times faster to compute\.", first)
    assert rest == "it beats the teachers concatenated and the untrained student."
    row = verdict_table(answer).rows[0]
    assert (row[0], row[1], row[6]) == ("a (best teacher)", "beats", "8 times faster")
    assert f"({row[2]}, {row[3]})" in first


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (8.2, "8.2 times faster to compute"),
        (0.1, "10 times slower to compute"),
        (1.05, "as fast to compute"),
        (1234, "1,200 times faster to compute"),
        (None, ""),
    ],
)
def test_speed_is_said_in_words(ratio, words):
    assert speed_words(ratio) == words


@pytest.mark.parametrize(
    "missing", [[], [("b", "t0", "random", 1)], [("student", "t3", "scaffold", 0), ("a", "t1", "random", 0)]]
)
def test_a_verdict_never_contradicts_the_tables_below_it(missing):
    kept = [each for each in records() if (each.system, each.task, each.split, each.seed) not in missing]
    summary = summarise(kept)
    (answer,) = summary.answers
    columns = verdict_table(answer).head[4:6]
    assert columns == ["random", "scaffold"]
    means = {
        split: {row[0]: float(row[1]) for row in score_table(scores).rows} for split, scores in summary.by_split.items()
    }
    for verdict, row in zip(answer.best, verdict_table(answer).rows, strict=True):
        by_split = [means[split]["student"] - means[split][verdict.other] for split in columns]
        np.testing.assert_allclose(by_split, [float(cell) for cell in row[4:6]], atol=0.0011, err_msg="digits of a table")
        assert verdict.difference == pytest.approx(np.mean(by_split), abs=0.002)
        assert verdict.low <= verdict.difference <= verdict.high
        if verdict.word in ("beats", "below"):
            assert np.sign(verdict.difference) == (1 if verdict.word == "beats" else -1)
    teachers = {name: np.mean([of[name] for of in means.values()]) for name in ("a", "b")}
    assert answer.best[0].other == max(teachers, key=teachers.get)


def test_seeds_that_a_system_lacks_are_told(caplog):
    summarise([each for each in records() if (each.system, each.task, each.split, each.seed) != ("b", "t0", "random", 1)])
    assert "('t0', 'random', 1)" in caplog.text


def test_several_students_are_shown_against_each_other_and_the_best_one_first():
    (answer,) = summarise(records(other=0.5, third=0.3)).answers
    assert str(answer).startswith("`student`, the best of 3 students by these scores, beats")
    table = students_table(answer)
    assert table.head == ["student", "best-teacher", "concatenated", "untrained", "student", "other", "third"]
    cells = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert cells["student"]["third"].startswith("beats\n+0.3")
    assert cells["third"]["student"].startswith("below\n-0.3")
    assert cells["other"]["best-teacher"].split("\n")[0] in ("equal", "unresolved")


def test_an_exported_student_beside_the_run_is_one_more_column():
    exported = [replace(each, kind="other") if each.system == "tiny" else each for each in records(tiny=0.4)]
    (answer,) = summarise(exported).answers
    assert students_table(answer).head == ["student", "best-teacher", "concatenated", "untrained", "tiny"]


def test_each_probe_of_a_task_has_its_own_verdict():
    """By one probe the student is ahead, by the other one behind: one mean would hide both."""
    by_probe = [
        replace(each, task=f"{each.task} {probe}", probe=probe)
        for probe, level in (("linear", 0.3), ("rbf", 0.7))
        for each in records(student=level)
    ]
    summary = summarise(by_probe)
    searched = [replace(each, task=f"{each.task}-search", split="own", probe="search") for each in records(student=0.5)]
    assert [*summarise([*by_probe, *searched]).by_split][-1] == "own, search probe", "one probe beside tasks of two"
    assert [(each.scores.group, each.best[0].word, each.best[0].tasks) for each in summary.answers] == [
        ("linear probe", "below", 8),
        ("rbf probe", "beats", 8),
    ]
    pairs = product(("linear", "rbf"), ("random", "scaffold"))
    assert [*summary.by_split] == [f"{split}, {probe} probe" for probe, split in pairs]
    assert [scores.title for scores in summary.by_split.values()][-1] == "Scaffold split, rbf probe"


def test_what_a_script_requires_is_met_or_told_in_a_sentence():
    (answer,) = found = summarise(records()).answers
    assert unmet(["beats:best-teacher", "equal:best-teacher", "beats:untrained", "equal:concatenated"], found) == []
    (sentence,) = unmet(["beats:pca"], found)
    assert sentence == "beats:pca is not met: the student was compared with best-teacher, concatenated and untrained"
    (sentence,) = unmet(["equal:best-teacher"], summarise(records(student=0.4)).answers)
    assert sentence.startswith("equal:best-teacher is not met: `student` is below the best teacher, `a`, on 8 tasks (-0.")
    for wrong in ("best-teacher", "wins:best-teacher", "beats:"):
        with pytest.raises(ConfigError, match="expected beats:NAME or equal:NAME; NAME is one of best-teacher, conc"):
            check_requirements([wrong])
    assert answer.best[0].word == "beats"


def test_a_command_ends_with_status_3_when_a_requirement_is_not_met(tmp_path: Path, capsys):
    save_scores(tmp_path, records())
    given = ["--studies", str(tmp_path), "--out", str(tmp_path / "out"), "--require"]
    main([*given, "beats:best-teacher", "equal:concatenated"])
    shown = capsys.readouterr().out
    assert shown.index("`student` beats the best teacher") < shown.index("Random split")
    with pytest.raises(SystemExit, match="3"):
        main([*given, "beats:best-teacher", "beats:start"])
    assert "beats:start is not met: the student was compared with" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected beats:NAME"):
        main([*given, "above:pca"])


def test_the_report_the_terminal_and_the_table_say_the_same(tmp_path: Path, capsys):
    run = RunFolder(tmp_path / "mine")
    run.probes.mkdir(parents=True)
    Results(run, records(tasks=6), {"student": Cost(8, None, 30.0), "a": Cost(8, None, 10.0)}, {}).save()
    (answer,) = compare_runs([run.path], tmp_path / "out", margin=0.02)
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.splitlines()[:3] == ["# Run mine", "", str(answer)]
    assert str(answer) in " ".join(capsys.readouterr().out.split())
    assert "it is above -0.02" in text


def test_costs_are_drawn_where_they_differ(tmp_path: Path):
    run = RunFolder(tmp_path / "mine")
    run.probes.mkdir(parents=True)
    Results(run, records(), {"student": Cost(8, 7, 30.0), "untrained": Cost(8, 7, 10.0)}, {}).save()
    compare_runs([run.path], tmp_path / "out")
    drawn = {path.stem.partition("-")[0] for path in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {"scores", "ranks", "cost"}
    assert len(list((tmp_path / "out" / "figures").glob("cost-*"))) == 1, "both have as many parameters"
