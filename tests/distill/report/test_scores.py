from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from distill.records import Record
from distill.report.scores import Scores, comparable_scores, half_width
from distill.report.tables import caption, score_table, table

BASE = Record("student", "student", "t1", "measured", "random", 0, "r2", 0.0, 10)
KINDS = {"student": "student", "a": "teachers", "b": "teachers", "untrained": "untrained"}
VALUES = {  # system -> task -> a score per seed
    "student": {"t1": [0.8, 0.9], "t2": [0.6, 0.5]},
    "a": {"t1": [0.7, 0.7], "t2": [0.7, 0.6]},
    "b": {"t1": [0.1, 0.2], "t2": [0.2, 0.3]},
    "untrained": {"t1": [0.0, 0.1], "t2": [0.1, 0.2]},
}
RECORDS = [
    replace(BASE, system=system, kind=KINDS[system], task=task, seed=seed, score=score)
    for system, tasks in VALUES.items()
    for task, scores in tasks.items()
    for seed, score in enumerate(scores)
]


def test_systems_are_ordered_by_their_mean():
    scores = Scores(RECORDS, "random")
    assert scores.systems == ["student", "a", "b", "untrained"]
    np.testing.assert_allclose(scores.mean(), [0.7, 0.675, 0.2, 0.1])
    np.testing.assert_allclose(scores.mean_rank(), [1.5, 1.5, 3, 4])
    np.testing.assert_allclose(scores.teachers_mean(), [0.425, 0.45])


def test_the_interval_is_the_t_interval_over_seeds():
    from scipy import stats

    sample = np.array([0.3, 0.5, 0.9])
    low, high = stats.t.interval(0.95, 2, loc=sample.mean(), scale=stats.sem(sample))
    assert half_width(sample) == pytest.approx((high - low) / 2)
    assert np.isnan(half_width(sample[:1]))


def test_a_cell_that_could_not_be_scored_does_not_hide_the_rest():
    scores = Scores([record for record in RECORDS if (record.task, record.seed) != ("t2", 1)], "random")
    np.testing.assert_allclose(scores.mean()[0], np.mean([0.85, 0.6]), err_msg="each task counts once")
    assert np.isfinite(scores.mean_rank()).all()


def test_tables_fit_a_terminal_of_80_columns_and_name_the_labels():
    scores = Scores(RECORDS, "random")
    console = Console(width=80, record=True)
    console.print(table(scores, "title", 80))
    text = console.export_text()
    assert "Labels measured: t1, t2" in text
    assert any(line.strip().startswith("mean of teachers") and "0.438" in line for line in text.splitlines())
    assert "| **student** | 0.700 | 0.000 | 1.50 | 1.0 to 2.0 |  | 0.850 | 0.550 |" in score_table(scores).markdown()


def test_a_caption_does_not_list_many_tasks_whose_labels_are_of_one_kind():
    many = [replace(record, task=f"t{n}") for n in range(20) for record in RECORDS if record.task == "t1"]
    assert caption(Scores(many, "random")) == "Labels measured: all 20 tasks"
    mixed = [replace(record, provenance="computed") if record.task == "t0" else record for record in many]
    assert caption(Scores(mixed, "random")).endswith("; computed: t0")


def test_the_rank_interval_is_a_bootstrap_over_tasks():
    low, high = Scores(RECORDS, "random").rank_interval()
    np.testing.assert_allclose([low[0], high[0]], [1, 2], err_msg="first on one task, second on the other")
    np.testing.assert_allclose([low[3], high[3]], [4, 4])


def test_the_share_of_the_concatenated_teachers_is_told():
    records = [*RECORDS, *(replace(each, system="both", kind="concatenated", score=1.4) for each in RECORDS[:4])]
    scores = Scores(records, "random")
    assert scores.kept()[scores.systems.index("student")] == pytest.approx(0.5)
    assert "50%" in score_table(scores).rows[scores.systems.index("student")]
    assert np.isnan(Scores(RECORDS, "random").kept()).all()


def test_a_seed_that_a_task_lacks_widens_no_interval():
    scored = {"t1": [0.9, 0.9, 0.9], "t2": [0.1, 0.1]}
    records = [replace(BASE, task=t, seed=seed, score=x) for t, found in scored.items() for seed, x in enumerate(found)]
    assert Scores(records, "random").half_width()[0] == 0


def test_no_share_of_concatenated_teachers_that_know_nothing():
    worse = replace(BASE, system="both", kind="concatenated", score=-0.4)
    assert np.isnan(Scores([replace(BASE, score=-0.2), worse], "random").kept()).all()


def test_a_table_that_just_fits_breaks_no_cell():
    def lines(width: int) -> list[str]:
        console = Console(width=width, record=True)
        console.print(table(Scores(RECORDS, "random"), "", width))
        return [line.rstrip() for line in console.export_text().partition("Labels")[0].strip().splitlines()]

    whole = lines(200)
    width = max(map(len, whole))
    assert [line.split() for line in lines(width)] == [line.split() for line in whole]
    assert "t1" not in lines(width - 1)[0]


def test_tasks_that_do_not_fit_are_left_to_the_report():
    many = [replace(each, task=f"{each.task}-{k}") for each in RECORDS for k in range(8)]
    shown = table(Scores(many, "random"), "title", 80)
    assert [column.header for column in shown.columns] == ["system", "mean", "± 95 %", "mean\nrank"]


def test_scores_of_marked_rows_stand_beside_the_means():
    marked = [replace(each, folds=5, beside={"rmse": 9.0, "r2 cliff": each.score - 0.1}) for each in RECORDS[:12:2]]
    scores = Scores([*marked, *(replace(each, folds=5) for each in RECORDS[12:])], "random")
    shown = score_table(scores)
    assert shown.head[5:8] == ["of\nconcatenated", "r2 cliff\n2 tasks", "t1\nr2"]
    cells = {row[0]: row[6] for row in shown.rows}
    means = {"student": np.mean([0.8, 0.6]), "a": np.mean([0.7, 0.7]), "b": np.mean([0.1, 0.2])}
    assert cells == {name: f"{mean - 0.1:.3f}" for name, mean in means.items()} | {"untrained": "-", "mean of teachers": ""}
    assert scores.folds == 5


def test_of_many_scores_that_not_all_systems_have_three_are_named(caplog):
    lacking = [each for each in RECORDS if each.system != "b" or each.seed == 0]
    tasks = [replace(each, task=f"{each.task}-{number}") for number in range(3) for each in lacking]
    assert list(comparable_scores(tasks)["random"].seeds) == [0]
    assert "('t1-2', 'random', 1)] and 3 more" in caplog.text
