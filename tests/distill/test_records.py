"""Results and scores that were cut short or changed are refused in words, with the command that makes them again."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cache_tools import ConfigError
from distill.records import SCORES, Cost, Record, Results, merged, read_scores, save_scores
from distill.run_folder import RunFolder

RECORDS = [
    Record(system, "student", "tox 21", "measured", "random", seed, "auroc", 0.5 + seed / 7, 1234, 56)
    for system in ("student", "b")
    for seed in range(3)
]


@pytest.fixture
def results(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.probes.mkdir(parents=True)
    Results(run, RECORDS, {"student": Cost(4, 5, 0.5)}, {"checkpoint": "best.ckpt"}).save()
    return run


def test_results_come_back_as_they_were(results, tmp_path):
    assert Results.load(results.path).records == RECORDS
    save_scores(tmp_path, RECORDS)
    assert read_scores(tmp_path) == RECORDS


def test_results_that_were_cut_anywhere_are_refused(results):
    whole = results.results.read_bytes()
    for size in range(0, len(whole) - 2, 7):  # the last two bytes are a brace and a line break
        results.results.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"results\.json .*: probe the run again with `distill test --run"):
            Results.load(results.path)


def test_scores_that_were_cut_inside_a_line_are_refused(tmp_path):
    save_scores(tmp_path, RECORDS)
    whole = (tmp_path / SCORES).read_text()
    for size in (size for size in range(len(whole)) if not whole[:size].endswith("\n")):
        (tmp_path / SCORES).write_text(whole[:size])
        with pytest.raises(ConfigError, match=r"scores\.csv .*have the report written again"):
            read_scores(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("score", None), ("score", "high"), ("seed", "0"), ("task", ["a"]), ("kind", 1), ("test_rows", 1.5)]
)
def test_a_value_of_another_type_is_named(results, key, value):
    content = json.loads(results.results.read_text())
    content["records"][1] = asdict(RECORDS[1]) | {key: value}
    results.results.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"{key} is .*probe the run again"):
        Results.load(results.path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "[]", '{"records": {"a": 1}}', '{"records": [], "costs": 3}', "\ud800"]
)
def test_a_file_of_something_else_is_no_result(results, text):
    results.results.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="probe the run again"):
        Results.load(results.path)


def test_prefixes_have_the_name_of_their_student_among_several():
    named = RunFolder(Path("run"))
    records = [
        Record(system, kind, "t", "measured", "random", 0, "r2", 0.5, 9)
        for system, kind in (("student", "student"), ("student[:64]", "prefixes"), ("student[:128]", "prefixes"))
    ]
    found, _ = merged({name: [Results(named, records, {}, {})] for name in ("mol", "text")})
    assert [record.system for record in found] == ["mol", "mol[:64]", "mol[:128]", "text", "text[:64]", "text[:128]"]
