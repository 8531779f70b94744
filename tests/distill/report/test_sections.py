"""Sections of a report that read what a run kept."""

from pathlib import Path

import numpy as np

from distill.records import Record, Results
from distill.report.scores import Scores
from distill.report.sections import map_plots, split_plots, training_plots, training_table
from distill.run_folder import MAP, RunFolder


def run_of(folder: Path) -> Results:
    run = RunFolder(folder)
    run.probes.mkdir(parents=True, exist_ok=True)
    return Results(run, [], {}, {})


def test_a_map_that_was_cut_short_is_left_out_with_a_warning(tmp_path: Path, caplog):
    results = run_of(tmp_path)
    assert map_plots({"a": results}) == []
    assert not caplog.records
    plane = np.random.default_rng(0).normal(size=(5, 2))
    np.savez_compressed(results.run.probes / MAP, task="t", kind="regression", labels=np.arange(5.0), student=plane)
    assert [plot.caption for plot in map_plots({"a": results})] == ["a: items of t"]
    whole = (results.run.probes / MAP).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 3):
        caplog.clear()
        (results.run.probes / MAP).write_bytes(whole[:size])
        assert map_plots({"a": results}) == []
        assert "is damaged" in caplog.text


def test_the_training_table_says_where_figures_were_floored(tmp_path: Path):
    head, line = "epoch,floored/rare,nats/maccs,nats/rare,step,val/loss", "1,,0.25,0.5,7,1.0"
    (tmp_path / "metrics.csv").write_text(f"{head}\n{line}\n")
    table = training_table({"a": run_of(tmp_path)})
    assert (table.head, table.note) == (["teacher", "nats"], "")
    (tmp_path / "metrics.csv").write_text(f"{head}\n{line.replace(',,', ',2.0,')}\n")
    table = training_table({"a": run_of(tmp_path)})
    assert table.head == ["teacher", "nats", "floored"]
    assert table.rows == [["maccs", "0.250", "-"], ["rare", "0.500", "2"]]
    assert "such values count as the mean" in table.note


def test_a_curve_of_one_point_is_left_out(tmp_path: Path):
    text = "epoch,nats/maccs,step,train/loss,val/loss\n0,,3,2.0,\n0,,5,1.5,\n1,0.25,7,,1.0\n"
    (tmp_path / "metrics.csv").write_text(text)
    assert [plot.name for plot in training_plots({"a": run_of(tmp_path)})] == ["training-student-loss"]
    (tmp_path / "metrics.csv").write_text("epoch,nats/maccs,step,train/loss,val/loss\n1,0.25,7,,1.0\n2,0.3,9,,0.9\n")
    names = [plot.name for plot in training_plots({"a": run_of(tmp_path)})]
    assert names == ["training-student-loss", "training-student-nats"]


def test_ranks_on_one_task_are_left_out():
    records = [Record(s, "student", f"t{t}", "measured", "own", 0, "r2", 0.5, 9) for s in "ab" for t in range(2)]
    assert [plot.name for plot in split_plots("own", Scores(records, "own"))] == ["scores-own", "ranks-own"]
    assert [plot.name for plot in split_plots("own", Scores(records[::2], "own"))] == ["scores-own"]
