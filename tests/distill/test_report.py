from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from distill.evaluate import Record
from distill.report import Scores, half_width, markdown, plot, table

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
    np.testing.assert_allclose(scores.mean()[0], np.mean([0.8, 0.9, 0.6]))
    assert np.isfinite(scores.mean_rank()).all()


def test_tables_fit_a_terminal_of_80_columns_and_name_the_labels():
    scores = Scores(RECORDS, "random")
    console = Console(width=80, record=True)
    console.print(table(scores, "title"))
    text = console.export_text()
    assert "Labels measured: t1, t2" in text
    assert any(line.strip().startswith("mean of teachers") and "0.438" in line for line in text.splitlines())
    assert "| student | 0.850 | 0.550 | 0.700 | 0.000 | 1.50 |" in markdown(scores)


def test_the_plot_is_written(tmp_path):
    plot({"random": Scores(RECORDS, "random")}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
