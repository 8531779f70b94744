"""Every benchmark runs; what it measures at this size means nothing."""

import gzip
import json
import math

import pytest
import torch
from safetensors.torch import save_file

import cache
import measure
import peers
import probes
import processor
import run as bench
import train
from cache_tools import RdkitSamples
from cache_tools.teachers import gnn
from measure import RESULTS, Benchmark, LeftOut, Row, Setup, benchmark, compare, drop_stale, met, needed, run_all

ATOM_TYPES = 120


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    return Setup(tmp_path_factory.mktemp("benchmarks"), tiny=True)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Folders as WEIGHTS and DATA name them: networks of random weights, and a few molecules."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mol").mkdir()
    torch.manual_seed(0)
    for name in train.GNNS:
        kind = name.partition("_")[0]
        state = gnn._Gnn(gnn.KINDS[kind], ATOM_TYPES).state_dict()
        save_file(state, folder / "mol" / f"{name}.safetensors", metadata={"kind": kind})
    save_file(gnn._MolClr(ATOM_TYPES).state_dict(), folder / "mol" / "molclr_gcn.safetensors", {"kind": "molclr_gcn"})
    _, items, _ = RdkitSamples(limit=120).read()
    with gzip.open(folder / "mol" / "corpus.csv.gz", "wt") as file:
        file.write("\n".join(["smiles", *(item.decode() for item in items)]) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("which", bench.benchmarks(), ids=lambda each: each.names[0])
def test_every_benchmark_yields_each_of_its_rows_with_a_finite_figure(which: Benchmark, setup, outside, monkeypatch):
    monkeypatch.setenv("WEIGHTS", str(outside))
    monkeypatch.setenv("DATA", str(outside))
    try:
        rows = dict(which.run(setup))
    except LeftOut as reason:
        assert str(reason).startswith("pip install"), "the files that it needs are there"
        pytest.skip(str(reason))
    assert tuple(rows) == which.names
    for name, row in rows.items():
        assert math.isfinite(row.figure), name
        assert row.figure >= 0, name
        assert met(row) in ("yes", "NO"), name


def test_no_two_benchmarks_share_a_row_and_every_kept_figure_has_a_benchmark():
    names = [name for each in (*bench.benchmarks(), *peers.BENCHMARKS) for name in each.names]
    assert len(set(names)) == len(names) > 20
    kept = json.loads(RESULTS.read_text())
    assert kept
    assert set(kept) <= set(names)


def test_make_bench_runs_the_benchmarks_of_every_module():
    for module in (cache, probes, processor, train):
        assert module.BENCHMARKS
        written = [value for value in vars(module).values() if isinstance(value, Benchmark)]
        assert {each.names for each in written} <= {each.names for each in module.BENCHMARKS}
        assert {each.names for each in module.BENCHMARKS} <= {each.names for each in bench.benchmarks()}


@benchmark("first", "second")
def good(setup):
    yield Row("1 ms", "2 ms", 2.0, ">= 1")
    yield Row("3 MB", "", 3.0, "< 2")


@benchmark("half", "never")
def broken(setup):
    yield Row("1 s", "", 1.0)
    raise AttributeError("'DistillData' object has no\nattribute 'columns'")


@benchmark("elsewhere")
def needs_weights(setup):
    yield Row(str(needed("WEIGHTS", "mol/network.safetensors")), "", 1.0)


def test_rows_are_printed_and_kept_as_they_come_and_a_failure_stops_no_other(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WEIGHTS", raising=False)
    results = tmp_path / "results.json"
    seen = []

    @benchmark("last")
    def looks(setup):
        seen.append((capsys.readouterr().out, json.loads(results.read_text())))
        yield Row("", "", 4.0)

    assert run_all([broken, needs_weights, good, looks], Setup(tmp_path), results) is False
    ((printed, kept),) = seen
    assert kept == {
        "half": {"figure": 1.0, "target": ""},
        "first": {"figure": 2.0, "target": ">= 1"},
        "second": {"figure": 3.0, "target": "< 2"},
    }
    assert "failed: half; never: AttributeError: 'DistillData' object has no attribute 'columns'\n" in printed
    assert "left out: elsewhere: set WEIGHTS to a folder with mol/network.safetensors\n" in printed
    lines = {line.split("  (")[0].split()[-1]: line.split() for line in printed.splitlines() if line[0] == " "}
    assert lines["first"][:4] == ["2.000", ">=", "1", "yes"]
    assert lines["second"][:4] == ["3.000", "<", "2", "NO"]
    assert "last" in json.loads(results.read_text())


def test_what_was_left_out_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    with pytest.raises(LeftOut, match="set WEIGHTS to a folder with mol/network.safetensors"):
        dict(needs_weights.run(Setup(tmp_path)))
    assert run_all([needs_weights, good], Setup(tmp_path), None)


def test_a_benchmark_that_yields_other_rows_than_it_names_is_a_failure(tmp_path, capsys):
    assert not run_all([Benchmark(("one",), good.rows)], Setup(tmp_path), None)
    assert not run_all([Benchmark(("one", "two", "three"), good.rows)], Setup(tmp_path), None)
    assert capsys.readouterr().out.count("failed: one") == 2


def test_make_bench_ends_with_status_1_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(bench, "start_console", lambda: None)
    monkeypatch.setattr(bench.sys, "argv", ["run", str(tmp_path)])
    for outcome, status in ((False, 1), (True, 0)):
        monkeypatch.setattr(bench, "run_all", lambda benchmarks, setup, outcome=outcome: outcome)
        with pytest.raises(SystemExit) as stop:
            bench.main()
        assert int(stop.value.code) == status


def test_figures_that_nobody_measures_any_more_leave(tmp_path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"old": {"figure": 1}, "kept": {"figure": 2}}))
    drop_stale(results, ["kept", "not measured here"])
    assert json.loads(results.read_text()) == {"kept": {"figure": 2}}


def test_twice_as_fast_is_a_figure_of_two(monkeypatch):
    durations = iter([1.0, 2.0, 2.0, 5.0, 1.0, 2.0])
    monkeypatch.setattr(measure, "seconds", lambda work: next(durations))
    row = compare(lambda: None, lambda: None, 3, ">= 2")
    assert row == Row("1.00 s", "2.00 s", 2.0, ">= 2")
