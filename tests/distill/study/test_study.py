"""Subsets of the teachers: who brought how much, in runs that can be killed, fail, or be a cluster's."""

import csv
import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from cache_tools.errors import ConfigError, QuorumError
from distill.cli.study import main, study
from distill.records import Record
from distill.report.page import TEMPLATES
from distill.run_folder import RunFolder
from distill.study.attribution import attribute, choose, draw, joining, shapley, table
from distill.study.run import Run, Sweep
from distill.study.study import Study

PYTHON = sys.executable  # a study's processes are stubs, in its place
TEACHERS = ["a", "b", "c", "d"]
WORTH = {"a": 0.1, "b": 0.2, "c": 0.2}  # of the stub's teachers; c knows what b knows


def game(seeds: int = 2) -> dict[frozenset[str], np.ndarray]:
    """Any numbers at all."""
    random = np.random.default_rng(7)
    return {subset: random.normal(size=seeds) for subset in [frozenset(), *choose(TEACHERS, "all")]}


def worth(names) -> float:
    return 0.3 + WORTH["a"] * ("a" in names) + WORTH["b"] * bool({"b", "c"} & set(names))


def test_the_shapley_value_is_the_mean_over_all_orders_of_joining():
    values, orders = game(), list(permutations(TEACHERS))
    for teacher in TEACHERS:
        added = []
        for order in orders:
            here: frozenset[str] = frozenset()
            for name in order:
                if name == teacher:
                    added.append(values[here | {name}] - values[here])
                here |= {name}
        np.testing.assert_allclose(shapley(values, teacher), np.mean(added, 0), rtol=1e-12)
        np.testing.assert_array_equal(joining(values, orders, teacher), added)


def test_additive_teachers_keep_what_they_bring_and_equal_ones_share():
    additive = {subset: np.array([sum(TEACHERS.index(each) for each in subset)]) for subset in game()}
    assert [shapley(additive, each)[0] for each in TEACHERS] == pytest.approx([0, 1, 2, 3])
    equal = {subset: np.array([worth(subset)]) for subset in game()}
    assert [shapley(equal, each)[0] for each in TEACHERS] == pytest.approx([0.1, 0.1, 0.1, 0.0])


def test_subsets_begin_with_all_teachers_and_hold_every_step_of_a_sampled_order():
    assert len(choose(TEACHERS, "all")) == len(set(choose(TEACHERS, "all"))) == 15
    assert choose(TEACHERS, "leave-one-out") == [frozenset(each) for each in ("abcd", "bcd", "acd", "abd", "abc")]
    steps = {frozenset(order[:size]) for order in draw(TEACHERS, 3) for size in range(1, 5)}
    sampled = choose(TEACHERS, 3)
    assert set(sampled) == steps | set(choose(TEACHERS, "leave-one-out"))
    assert sampled[0] == frozenset(TEACHERS)
    assert draw(TEACHERS, 5)[:3] == draw(TEACHERS, 3), "more orders keep the runs of fewer"


@pytest.mark.parametrize(
    ("teachers", "subsets", "message"),
    [(["a"], "all", "two or more"), (["a", "b", "a"], "all", "each named once"), (["a", "b"], 0, "random orders above 0")],
)
def test_subsets_that_cannot_be_are_refused(teachers, subsets, message):
    with pytest.raises(ConfigError, match=message):
        choose(teachers, subsets)


def measured(values: dict[frozenset[str], np.ndarray]) -> tuple[list[Record], dict[frozenset[str], str]]:
    """Records of two tasks whose mean is the value; a subset's system is its names."""
    records = [
        Record("+".join(sorted(subset)) or "untrained", "student", task, "measured", "own", seed, "r2", score + shift, 9)
        for subset, scores in values.items()
        for seed, score in enumerate(scores.tolist())
        for task, shift in (("t1", 0.25), ("t2", -0.25))
    ]
    return records, {subset: "+".join(sorted(subset)) for subset in values if subset}


def named(values):
    """All teachers first, as a study has them."""
    return {subset: values[subset] for subset in [frozenset(), *choose(TEACHERS, "all")]}


def test_an_attribution_is_a_mean_over_seeds_with_its_interval():
    values = game(seeds=4)
    found = attribute(*measured(values), "nll", "own")
    for name in TEACHERS:
        for share, by_seed in (
            (found.teachers[name].alone, values[frozenset(name)] - values[frozenset()]),
            (found.teachers[name].left_out, values[frozenset(TEACHERS)] - values[frozenset(TEACHERS) - {name}]),
            (found.teachers[name].shapley, shapley(values, name)),
        ):
            interval = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
            assert share.mean == pytest.approx(by_seed.mean())
            assert share.seeds == pytest.approx((interval.high - interval.low) / 2)
            assert share.orders is None
    assert sum(each.shapley.mean for each in found.teachers.values()) == pytest.approx(found.gain.mean)
    assert found.gain.mean == pytest.approx((values[frozenset(TEACHERS)] - values[frozenset()]).mean())
    assert (found.tasks, found.seeds, found.subsets, found.orders) == (2, 4, 15, 0)


def test_a_task_that_one_subset_lacks_counts_for_none():
    records, systems = measured(game())
    lost = [each for each in records if (each.system, each.task, each.seed) != ("a+b", "t2", 0)]
    spoilt = [
        Record(**{**vars(each), "score": 1e6}) if (each.task, each.seed, each.system) == ("t2", 0, "c") else each
        for each in lost
    ]
    assert attribute(lost, systems, "nll", "own") == attribute(spoilt, systems, "nll", "own")


def test_sampled_orders_give_estimates_with_an_interval_of_their_own():
    values, orders = game(), draw(TEACHERS, 3)
    chosen = choose(TEACHERS, 3)
    assert len(chosen) < 15
    found = attribute(*measured({each: values[each] for each in [frozenset(), *chosen]}), "nll", "own", orders)
    assert sum(each.shapley.mean for each in found.teachers.values()) == pytest.approx(found.gain.mean)
    for name, share in found.teachers.items():
        by_order = joining(values, orders, name).mean(1)
        interval = stats.ttest_1samp(by_order, 0).confidence_interval(0.95)
        assert share.shapley.orders == pytest.approx((interval.high - interval.low) / 2)
    caption = TEMPLATES.get_template("study/attribution.md.jinja").render(attribution=found)
    assert caption.startswith("Differences of the mean score over 2 tasks, over 2 seeds, ± half of the 95 % t-interval; 11")
    assert "all teachers among them. They are estimated from 3 random orders; in brackets, half of" in caption
    everything = attribute(*measured(values), "nll", "own", orders)
    assert everything.orders == 0, "with every subset at hand nothing is estimated"


def shown(attribution):
    return table(attribution).head, table(attribution).rows


def test_a_table_tells_what_was_measured_and_who_brought_most_first():
    values = {subset: np.array([worth(subset), worth(subset) + 0.01]) for subset in game()}
    head, lines = shown(attribute(*measured(values), "nll", "own"))
    assert head == ["teacher", "alone", "left out", "Shapley value"]
    assert lines[-1] == ["all teachers", "+0.300 ± 0.000", "", "+0.300 ± 0.000"]
    assert lines[1] == ["b", "+0.200 ± 0.000", "+0.000 ± 0.000", "+0.100 ± 0.000"]
    assert lines[3][0] == "d"
    few = {subset: values[subset][:1] for subset in [frozenset(), *choose(TEACHERS, "leave-one-out")]}
    head, lines = shown(attribute(*measured(few), "nll", "own"))
    assert head == ["teacher", "left out"]
    assert lines[0] == ["a", "+0.100"]


STUB = f"""#!{sys.executable}
import json, os, pathlib, sys, yaml
arguments = sys.argv[3:]
with open(os.environ["CALLS"], "a") as file:
    slurm = [name for name in os.environ if name.startswith("SLURM_")]
    file.write(json.dumps({{"arguments": arguments, "slurm": slurm, "here": os.getcwd()}}) + "\\n")
if arguments[0] == "study":
    sys.exit()
checkpoint = "--ckpt_path" in arguments
run = pathlib.Path(arguments[arguments.index("--ckpt_path" if checkpoint else "--run") + 1])
run = run.parents[1] if checkpoint else run
if run.name in os.environ.get("BROKEN", "").split():
    sys.exit("it broke")
if arguments[0] == "fit" and not checkpoint:
    config = yaml.safe_load(open([b for a, b in zip(arguments, arguments[1:]) if a == "--config"][-1]))
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "checkpoints" / "best.ckpt").touch()
    rate = float(arguments[arguments.index("--model.student_lr") + 1]) if "--model.student_lr" in arguments else 0
    (run / "metrics.csv").write_text(f"step,val/loss\\n1,9\\n2,{{os.environ.get('LOSS') or 1 + abs(rate - 0.001)}}\\n3,\\n")
if arguments[0] == "fit":
    if run.name in os.environ.get("STOPPED", "").split():
        sys.exit(int(os.environ["STATUS"]))
    if checkpoint:
        (run / "checkpoints" / "best.ckpt").touch()
    (run / "finished").touch()
if arguments[0] == "test":
    names, seed = yaml.safe_load((run / "config.yaml").read_text())["data"]["teachers"], int(arguments[4].strip("[]"))
    student = 0.3 + 0.1 * ("a" in names) + 0.2 * bool({{"b", "c"}} & set(names)) + 0.01 * seed * len(names)
    scores = {{"student": student}} | ({{"untrained": 0.3}} if "untrained" in arguments[-1] else {{}})
    scores |= {{"pca": 0.4}} if "pca" in arguments[-1] and "PCA" in os.environ else {{}}
    facts = {{"task": "t", "provenance": "measured", "split": "own", "seed": seed, "metric": "r2", "test_rows": 9}}
    records = [{{"system": each, "kind": each, "score": score, **facts}} for each, score in scores.items()]
    (run / "probes").mkdir(exist_ok=True)
    (run / "probes" / "results.json").write_text(json.dumps({{"records": records}}))
"""
SBATCH = f"""#!{sys.executable}
import os, pathlib, re, subprocess, sys
with open("submitted", "a") as file:
    file.write(" ".join(sys.argv[1:-1]) + "\\n")
if "--wrap" in sys.argv:
    sys.exit(subprocess.run(["sh", "-c", sys.argv[-1]], cwd="/").returncode)
last = int(re.search(r"^#SBATCH --array=0-(\\d+)$", pathlib.Path(sys.argv[-1]).read_text(), re.M)[1])
for number in range(last + 1):
    slurm = {{"SLURM_JOB_ID": str(70 + number), "SLURM_ARRAY_TASK_ID": str(number)}}
    subprocess.run(["bash", os.path.abspath(sys.argv[-1])], env=os.environ | slurm, cwd="/", check=True)
print(70)
"""


class Stub:
    """Processes that only pretend to fit and probe, in a user's folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        for name, text in {"distill": STUB, "sbatch": SBATCH}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        heads = {name: {"class_path": "distill.heads.MseHead"} for name in WORTH}
        (folder / "base.yaml").write_text(yaml.safe_dump({"model": {"heads": heads}}))
        (folder / "nll.yaml").write_text("model: {head: {class_path: distill.heads.GaussianHead}}")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "executable", str(folder / "distill"))
        monkeypatch.setenv("CALLS", str(folder / "calls"))

    def study(self, **options) -> None:
        given = {"runs": Path("runs/s"), "seeds": [0, 1], "jobs": 2, "teachers": list(WORTH), "subsets": "all"} | options
        study(Path("base.yaml"), given.pop("methods", {"nll": Path("nll.yaml")}), Path("docs/s"), **given)

    def sweep(self, *values: float, **options) -> None:
        """A study of all teachers and of all but each, after a sweep."""
        sweep = Sweep(["model.student_lr", "model.head_lr"], list(values))
        self.study(**{"seeds": [4, 5], "subsets": "leave-one-out", "sweep": sweep} | options)

    def report(self) -> str:
        return (self.folder / "docs" / "s" / "report.md").read_text()

    def calls(self) -> list[dict]:
        """What was called since the last time that this was asked."""
        found = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        (self.folder / "calls").write_text("")
        return found

    def attribution(self) -> dict:
        (found,) = json.loads((self.folder / "runs" / "s" / "attribution.json").read_text())
        return found


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Stub:
    folder = tmp_path / "a user's folder"
    folder.mkdir()
    return Stub(folder, monkeypatch)


def test_a_study_of_subsets_tells_what_each_teacher_brought(stub, capsys):
    stub.study()
    found = stub.attribution()
    got = {name: [share[key]["mean"] for key in ("alone", "left_out")] for name, share in found["teachers"].items()}
    assert got["a"] == pytest.approx([0.105, 0.105])  # half a hundredth per teacher: the mean of the two seeds
    assert got["b"] == got["c"] == pytest.approx([0.205, 0.005])
    assert [found["teachers"][each]["shapley"]["mean"] for each in "abc"] == pytest.approx([0.105] * 3)
    assert (found["gain"]["mean"], found["untrained"], found["subsets"]) == (pytest.approx(0.315), 0.3, 7)
    assert "written: docs/s/report.html" in capsys.readouterr().out
    report = stub.report()
    assert re.search(r"\| teacher \| alone \| left out \| Shapley value \|\n.*\n\| a \| \+0.105", report)
    assert '<th style="text-align:right">Shapley value</th>' in (stub.folder / "docs" / "s" / "report.html").read_text()
    systems = ["all", "only a", "only b", "only c", "without a", "without b", "without c"]
    assert all(f"| **nll, {each}** |" in report for each in systems)


def test_a_run_has_the_heads_of_its_own_teachers_and_only_the_first_one_probes_all_systems(stub):
    stub.study(seeds=[5], subsets="leave-one-out")
    tests = [each["arguments"] for each in stub.calls() if each["arguments"][0] == "test"]
    assert ["teachers" in each[-1] for each in tests] == [True, False, False, False]
    assert "nll-all-5" in tests[0][2]
    mine = yaml.safe_load((stub.folder / "runs" / "s" / "nll-without-b-5.yaml").read_text())
    assert mine["data"] == {"teachers": ["a", "c"]}
    assert list(mine["model"]["heads"]) == ["a", "c"]


def test_runs_on_the_same_splits_share_the_scores_of_systems_that_no_fit_changes(stub):
    stub.monkeypatch.setenv("PCA", "1")
    stub.study(seeds=[3, 4], subsets="leave-one-out", redraw=False)
    tests = [each["arguments"] for each in stub.calls() if each["arguments"][0] == "test"]
    assert {each[4] for each in tests} == {"[3]"}
    probed = {each[2].split("/")[-3]: each[-1].strip("[]").split(",") for each in tests}
    assert {"untrained", "pca", "teachers"} <= {*probed["nll-all-3"]}
    assert {*probed["nll-all-4"]} == {"student", "prefixes", "untrained", "start", "tokens"}
    rows = list(csv.DictReader((stub.folder / "docs" / "s" / "scores.csv").open()))
    assert {(row["system"], row["seed"]) for row in rows if row["system"] in ("pca", "untrained")} == {
        *product(("pca", "untrained"), "34")
    }
    assert ", all on the same splits; subsets" in stub.report()


def test_what_another_configuration_made_is_not_reported_as_this_one_s(stub):
    stub.study(seeds=[0], subsets="leave-one-out")
    (stub.folder / "nll.yaml").write_text("model: {head: {class_path: distill.heads.MseHead}}")
    with pytest.raises(QuorumError, match="nll-all-0 was made by another content of base.yaml, nll.yaml"):
        stub.study(seeds=[0], subsets="leave-one-out")
    shutil.rmtree(stub.folder / "runs")
    stub.study(seeds=[0], subsets="leave-one-out")


def test_what_is_done_is_not_done_again(stub):
    stub.study()
    stub.calls()
    shutil.rmtree(stub.folder / "runs" / "s" / "nll-only-a-1" / "probes")
    killed = stub.folder / "runs" / "s" / "nll-only-b-0"  # in its fit
    shutil.rmtree(killed / "probes")
    (killed / "finished").unlink()
    stub.study()
    again = [each["arguments"] for each in stub.calls()]
    assert sorted(each[0] for each in again) == ["fit", "test", "test"]
    assert again[0][3:] == ["--ckpt_path", "runs/s/nll-only-b-0/checkpoints/last.ckpt"]


@pytest.mark.parametrize("status", [0, 130, 143, 1])
def test_a_run_whose_fit_was_stopped_is_continued_and_never_probed_before(stub, status):
    stub.monkeypatch.setenv("STOPPED", "nll-without-b-0")
    stub.monkeypatch.setenv("STATUS", str(status))
    with pytest.raises(QuorumError, match="1 of 4 runs failed:\nnll, without b, seed 0: .* see the end of"):
        stub.study(seeds=[0], subsets="leave-one-out")
    stopped = stub.folder / "runs" / "s" / "nll-without-b-0"
    assert not (stopped / "probes").exists()
    (stopped / "checkpoints" / "fitted").touch()  # as version 0.1 believed
    shutil.copytree(stub.folder / "runs" / "s" / "nll-all-0" / "probes", stopped / "probes")
    stub.monkeypatch.delenv("STOPPED")
    stub.calls()
    stub.study(seeds=[0], subsets="leave-one-out")
    again = [call["arguments"] for call in stub.calls()]
    assert [words[0] for words in again] == ["fit", "test"], "results of the unfinished student are made again"
    assert again[0][3:] == ["--ckpt_path", "runs/s/nll-without-b-0/checkpoints/last.ckpt"]


@pytest.mark.slow
def test_two_studies_at_once_make_every_run_once(stub):
    code = "import sys; sys.executable = sys.argv[1]\nfrom distill.cli import main\nmain(sys.argv[2:])"
    settings = {"base": "base.yaml", "methods": {"nll": "nll.yaml"}, "runs": "runs/s", "out": "docs/s", "seeds": [0]}
    settings |= {"jobs": 2, "teachers": ["a", "b"], "subsets": "leave-one-out"}
    (stub.folder / "study.yaml").write_text(yaml.safe_dump(settings))
    command = [PYTHON, "-c", code, sys.executable, "study", "--config", "study.yaml"]
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sorted(call["arguments"][0] for call in stub.calls()) == ["fit"] * 3 + ["test"] * 3
    assert stub.attribution()["subsets"] == 3


def test_a_run_that_fails_stops_no_other_and_names_its_log(stub):
    stub.monkeypatch.setenv("BROKEN", "nll-without-b-0")
    with pytest.raises(QuorumError, match="1 of 14 runs failed:\nnll, without b, seed 0: .* see the end of (.*)") as caught:
        stub.study()
    log = re.search(r"see the end of (.*)", str(caught.value))[1]
    assert Path(log).read_text() == "it broke\n"
    assert len(list((stub.folder / "runs" / "s").glob("*/probes/results.json"))) == 13
    stub.monkeypatch.delenv("BROKEN")
    stub.calls()
    stub.study()
    assert [each["arguments"][0] for each in stub.calls()] == ["fit", "test"]
    assert stub.attribution()["subsets"] == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": []}, "0 seeds"),
        ({"jobs": 0}, "0 jobs"),
        ({"methods": {"a/b": Path("nll.yaml")}}, "'a/b'"),
        ({"methods": {"nll": Path("gone.yaml")}}, "no file gone.yaml"),
        ({"methods": {"odd": Path("odd.yaml")}}, "(?s)odd, of base.yaml, odd.yaml: .*'modus' is not accepted"),
        ({"methods": {"a": Path("four.yaml"), "b": [Path("four.yaml"), Path("nll.yaml")]}}, "a and b come to one config"),
        ({"methods": {"prefixes": "nll.yaml"}}, "a method is called prefixes, as another system of the report is"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_runs(stub, given, message):
    for name, option in {"odd": "modus", "four": "modes"}.items():
        head = f"{{class_path: distill.heads.GaussianHead, init_args: {{{option}: 4}}}}"
        (stub.folder / f"{name}.yaml").write_text(f"model: {{head: {head}}}")
    with pytest.raises(ConfigError, match=message):
        stub.study(**given)
    assert not (stub.folder / "runs").exists()


def test_a_study_of_a_corpus_that_is_gone_is_refused_unless_all_is_done(stub):
    (stub.folder / "base.yaml").write_text(yaml.safe_dump({"data": {"corpus": "cache/mine"}}))
    with pytest.raises(ConfigError, match="no corpus cache/mine, which nll is to be fitted on"):
        stub.study()
    assert not (stub.folder / "runs").exists()
    corpus = stub.folder / "cache" / "mine"
    corpus.mkdir(parents=True)
    stub.study()
    corpus.rmdir()
    stub.study()


def test_a_folder_of_other_teachers_is_refused(stub):
    stub.study(seeds=[0], subsets="leave-one-out")
    with pytest.raises(QuorumError, match="nll-all-0 has a run with the teachers a, b, c, the study asks for a, b"):
        stub.study(seeds=[0], subsets="leave-one-out", teachers=["a", "b"])
    with pytest.raises(ConfigError, match="teachers and subsets go together"):
        stub.study(subsets=None)


def test_a_study_waits_for_the_process_that_a_killed_one_left_behind(stub, caplog):
    caplog.set_level("INFO")
    (run,) = Study(Path("base.yaml"), {"nll": Path("nll.yaml")}, Path("runs"), [0]).grid
    run.folder.path.parent.mkdir()
    with open("runs/nll-0.log", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        left = subprocess.Popen(["sh", "-c", "sleep 0.5; touch ended"], stdout=file)
    ended: list[bool] = []

    def fit(*_) -> None:
        ended.append(Path("ended").exists())
        run.folder.path.mkdir()
        run.folder.finish(epoch=1, step=1)

    stub.monkeypatch.setattr(Run, "_distill", fit)
    run.fit()
    left.wait()
    assert ended == [True]
    assert "waits for another process" in caplog.text


def test_an_array_makes_every_run_and_then_the_report(stub):
    stub.study(slurm=True)
    script = stub.folder / "runs" / "s" / "array.sh"
    (line,) = re.findall(r"^#   (job=.*)$", script.read_text(), re.M)
    variables = os.environ | {"PATH": f"{stub.folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", line], env=variables, check=True)
    submitted = (stub.folder / "submitted").read_text().splitlines()
    assert submitted == ["--parsable", "--dependency=afterok:70 --kill-on-invalid-dep=yes --wrap"]
    calls = stub.calls()
    assert {each["here"] for each in calls} == {str(stub.folder)}
    study_command = ["study", "--config", "runs/s/array.yaml"]
    assert [each["arguments"] for each in calls[:-1]] == [[*study_command, "--only", str(run)] for run in range(14)]
    assert calls[-1]["arguments"] == study_command
    assert yaml.safe_load((stub.folder / "runs" / "s" / "array.yaml").read_text()) == {
        **{"base": "base.yaml", "methods": {"nll": "nll.yaml"}, "out": "docs/s", "runs": "runs/s"},
        **{"seeds": [0, 1], "jobs": 2, "teachers": ["a", "b", "c"], "subsets": "all"},
        "redraw": True,
    }


def test_one_run_of_a_study_is_made_alone_and_knows_nothing_of_slurm(stub):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_RESTART_COUNT"):
        stub.monkeypatch.setenv(name, "2")
    stub.study(only=3)
    calls = stub.calls()
    assert [each["arguments"][0] for each in calls] == ["fit", "test"]
    assert [each["slurm"] for each in calls] == [[], []]
    assert [path.parts[-3] for path in (stub.folder / "runs").glob("*/*/probes/results.json")] == ["nll-without-c-0"]
    assert not (stub.folder / "docs").exists()
    with pytest.raises(ConfigError, match="only is 14, the study has the runs 0 to 13"):
        stub.study(only=14)


def rates(call: dict) -> dict[str, str]:
    """What one call sets beside configurations."""
    words = call["arguments"]
    return {a: b for a, b in pairwise(words) if a.startswith(("--model", "--trainer", "--seed"))}


def test_every_run_has_the_learning_rate_that_its_methods_trials_chose(stub):
    stub.sweep(5e-4, 1e-3, 2e-3)
    fits = [each for each in stub.calls() if each["arguments"][0] == "fit"]
    trials, runs = fits[:3], fits[3:]
    assert len(runs) == 8
    assert sorted(rates(each)["--model.head_lr"] for each in trials) == ["0.0005", "0.001", "0.002"]
    for each in trials:
        assert rates(each)["--trainer.max_epochs"] == "1"
        assert rates(each)["--seed_everything"] == "4"
        assert "nll-all" not in str(each["arguments"])
    for each in runs:
        assert rates(each)["--model.student_lr"] == rates(each)["--model.head_lr"] == "0.001"
        assert "--trainer.max_epochs" not in rates(each)
    assert "| method | 0.0005 | 0.001 | 0.002 | chosen | fit, s |" in stub.report()
    assert "\n| nll | 1.0005 | 1 | 1.001 | 0.001 | - |\n" in stub.report()
    assert not list((stub.folder / "runs" / "s" / "trials").glob("*/checkpoints"))


def test_a_trial_is_made_once_and_a_killed_one_goes_on(stub):
    stub.sweep(5e-4, 1e-3)
    stub.calls()
    trial = stub.folder / "runs" / "s" / "trials" / "nll-0.0005"
    (trial / "trial.json").unlink()
    (trial / "checkpoints").mkdir()
    (trial / "checkpoints" / "last.ckpt").touch()
    stub.sweep(5e-4, 1e-3)
    (again,) = stub.calls()
    assert again["arguments"][3:] == ["--ckpt_path", "runs/s/trials/nll-0.0005/checkpoints/last.ckpt"]
    assert json.loads((trial / "trial.json").read_text())["val/loss"] == pytest.approx(1.0005)
    assert not (trial / "checkpoints").exists()


def test_a_trial_that_fails_is_not_chosen_and_not_repeated(stub):
    stub.monkeypatch.setenv("BROKEN", "nll-0.001")
    stub.sweep(5e-4, 1e-3, 1e-2)
    assert "\n| nll | 1.0005 | failed | 1.009 | 0.0005 | - |\n" in stub.report()
    stub.calls()
    stub.monkeypatch.delenv("BROKEN")
    stub.sweep(5e-4, 1e-3, 1e-2)
    assert stub.calls() == []


def test_all_trials_failing_names_the_log_and_they_are_made_again(stub):
    stub.monkeypatch.setenv("BROKEN", "nll-0.001 nll-0.01")
    with pytest.raises(
        QuorumError, match="8 of 8 runs failed:\nevery trial of nll failed, see the end of (.*log)$"
    ) as caught:
        stub.sweep(1e-3, 1e-2)
    assert Path(re.search(r"see the end of (.*)", str(caught.value))[1]).read_text() == "it broke\n"
    stub.monkeypatch.delenv("BROKEN")
    stub.sweep(1e-3, 1e-2)
    assert "\n| nll | 1 | 1.009 | 0.001 | - |\n" in stub.report()


def test_trials_that_end_without_a_loss_are_made_again(stub):
    stub.monkeypatch.setenv("LOSS", "nan")
    with pytest.raises(QuorumError, match="every trial of nll failed"):
        stub.sweep(1e-3, 1e-2)
    stub.monkeypatch.delenv("LOSS")
    stub.sweep(1e-3, 1e-2)
    assert "\n| nll | 1 | 1.009 | 0.001 | - |\n" in stub.report()


def test_a_trial_that_was_stopped_has_no_outcome(stub):
    stub.monkeypatch.setattr(Run, "stopped", True)
    stub.monkeypatch.setenv("BROKEN", "nll-0.001")
    with pytest.raises(QuorumError, match="8 of 8 runs failed:\nnll, trial of 0.001, seed 4: `distill fit"):
        stub.sweep(1e-3, 1e-2)
    assert [path.parent.name for path in (stub.folder / "runs" / "s" / "trials").glob("*/trial.json")] == ["nll-0.01"]


def test_one_run_of_a_swept_study_makes_the_trials_of_its_own_method(stub):
    methods = {"nll": Path("nll.yaml"), "more": [Path("nll.yaml"), Path("more.yaml")]}
    (stub.folder / "more.yaml").write_text("model: {weight_decay: 0.1}")
    stub.sweep(1e-3, 1e-2, methods=methods, slurm=True)
    given = yaml.safe_load((stub.folder / "runs" / "s" / "array.yaml").read_text())
    assert given["sweep"] == {"keys": ["model.student_lr", "model.head_lr"], "values": [0.001, 0.01], "epochs": 1}
    assert given["methods"] == {"nll": "nll.yaml", "more": ["nll.yaml", "more.yaml"]}
    main(["--config", "runs/s/array.yaml", "--only", "5"])
    calls = stub.calls()
    assert [each["arguments"][0] for each in calls] == ["fit", "fit", "fit", "test"]
    assert {path.name for path in (stub.folder / "runs" / "s" / "trials").glob("*/")} >= {"more-0.001", "more-0.01"}
    assert [word for word in calls[0]["arguments"] if word.endswith(".yaml")][:3] == ["base.yaml", "nll.yaml", "more.yaml"]
    main(["--config", "runs/s/array.yaml", "--only", "6"])
    assert [each["arguments"][0] for each in stub.calls()] == ["fit", "test"]


def test_runs_of_another_learning_rate_are_not_reported_as_this_ones(stub):
    stub.study(seeds=[4], subsets="leave-one-out")
    with pytest.raises(QuorumError, match="nll-all-4 was made by another content of .* or with another learning rate"):
        stub.sweep(1e-3, seeds=[4])


@pytest.mark.parametrize(
    "given", [{"keys": []}, {"values": []}, {"epochs": 0}, {"epochs": 1.5}, {"epochs": math.inf}, {"values": [1e-3, 1e-3]}]
)
def test_a_sweep_of_nothing_is_refused(given):
    with pytest.raises(ConfigError, match="expected keys, values that differ, and epochs"):
        Sweep(**{"keys": ["model.student_lr"], "values": [1e-3]} | given)


def test_the_seconds_of_a_fit_are_those_of_the_steps_that_it_went_on_from(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    assert RunFolder(tmp_path).seconds() is None
    killed, after = [(100, 0), (110, 10), (120, 20), (140, 30)], [(500, 0), (517, 30)]
    for number, events in enumerate([killed, after]):
        with open(tmp_path / f"events.out.tfevents.{number}", "wb") as file:
            for time, step in events:
                RecordWriter(file).write(Event(wall_time=time, step=step).SerializeToString())
    assert RunFolder(tmp_path).seconds() == pytest.approx(20 + 17)


FIT = """
trainer: {max_steps: 3, accelerator: cpu, limit_val_batches: 1}
data: {corpus: cache/mol, batch_size: 64}
model:
  student: {class_path: distill.students.molecule.GraphStudent, init_args: {layers: 2, width: 16}}
  head: {class_path: distill.heads.MseHead}
  heads:
    maccs: {class_path: distill.heads.BernoulliHead, init_args: {width: 32}}
    morgan: {class_path: distill.heads.BernoulliHead, init_args: {width: 32}}
probe:
  tasks: {tpsa: {class_path: distill.evaluation.tasks.ComputedProperty, init_args: {name: TPSA, limit: 100}}}
"""


@pytest.mark.slow
def test_an_element_of_an_array_is_fitted_and_probed_for_real(cache, tmp_path, monkeypatch):
    """The second run, before the first one, in a job whose variables would make two ranks of it."""
    shutil.copytree(cache / "mol", tmp_path / "cache" / "mol")
    (tmp_path / "fit.yaml").write_text(FIT)
    (tmp_path / "nll.yaml").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    arguments = Path("fit.yaml"), {"nll": Path("nll.yaml")}, Path("report"), Path("runs/s"), [0]
    chosen = {"teachers": ["maccs", "morgan"], "subsets": "leave-one-out"}
    study(*arguments, **chosen, slurm=True)
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "s"}
    variables = os.environ | slurm | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(["bash", "runs/s/array.sh"], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + Path("runs/s/nll-only-morgan-0.log").read_text()
    config = yaml.safe_load(Path("runs/s/nll-only-morgan-0/config.yaml").read_text())
    assert config["data"]["teachers"] == list(config["model"]["heads"]) == ["morgan"]
    (record,) = json.loads(Path("runs/s/nll-only-morgan-0/probes/results.json").read_text())["records"]
    for name, systems in {"nll-all-0": ["student", "untrained"], "nll-only-maccs-0": ["student"]}.items():
        Path("runs/s", name, "probes").mkdir(parents=True)
        records = [{**record, "system": each, "kind": each, "score": 0.0} for each in systems]
        Path("runs/s", name, "probes", "results.json").write_text(json.dumps({"records": records}))
    study(*arguments, **chosen)
    (found,) = json.loads(Path("runs/s/attribution.json").read_text())
    assert found["teachers"]["morgan"]["alone"]["mean"] == pytest.approx(record["score"])
    assert found["teachers"]["morgan"]["shapley"]["mean"] == pytest.approx(record["score"] / 2)
