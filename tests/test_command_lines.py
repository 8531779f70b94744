"""The real commands, each in a process of its own."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cache_tools.cli import main as cache_command
from distill.cli import main as distill
from distill.cli.study import main as study

ROOT = Path(__file__).parents[1]

CACHE = """
name: mini
corpus: {class_path: cache_tools.corpora.molecule.RdkitSamples, init_args: {limit: 300}}
teachers:
  maccs: {class_path: cache_tools.teachers.molecule.Maccs}
  letters: {class_path: extension_example.Letters, init_args: {letters: CNO}}
inputs:
  graph: {class_path: cache_tools.inputs.MoleculeGraph}
"""
FIT = """
run: runs/mini
trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}
data: {corpus: cache/mini, batch_size: 32, held_out: 50}
model:
  student: {class_path: distill.students.molecule.GraphStudent, init_args: {layers: 2, width: 16}}
  head: {class_path: distill.heads.GaussianHead, init_args: {preset: mini}}
  heads: {maccs: {class_path: distill.heads.BernoulliHead}}
probe:
  splits: [random, scaffold]
  seeds: [0, 1]
  tasks:
    pains: {class_path: distill.evaluation.tasks.ComputedProperty, init_args: {name: TPSA, limit: 120}}
    activity: {class_path: distill.evaluation.tasks.MoleculeTask, init_args: {path: activity.csv, kind: regression}}
"""


class Place:
    """A user's folder, and the two commands run in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(module, *arguments, **environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def cache(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("cache_tools.cli", *arguments, **environment)

    def distill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("distill.cli", *arguments)

    def start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The same in the background."""
        # a folder on PYTHONPATH stands for any importable module of the user's
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": variables}
        return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=self.folder, **options)

    def inside(self, main: Callable[[list[str]], None], *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same command in this process: most of a short command's time goes into imports."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            try:
                main(list(arguments))
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
                err.write(f"{stop.code}\n" if isinstance(stop.code, str) else "")
        return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


@pytest.fixture
def as_command(monkeypatch):
    """What a process of its own would find."""
    monkeypatch.syspath_prepend(ROOT / "tests")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("COLUMNS", "200")


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(checkpoint: Path) -> dict[str, Any]:
    import torch

    return torch.load(checkpoint, weights_only=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A folder with a cache, two fitted runs and their probes."""
    from distill.evaluation.tasks import CmetActivity

    folder = tmp_path_factory.mktemp("place")
    (folder / "cache.yaml").write_text(CACHE)
    (folder / "fit.yaml").write_text(FIT)
    items, labels = CmetActivity().load()
    rows = [f"{smiles},{value}" for smiles, (value,) in zip(items[:120], labels, strict=False)]
    (folder / "activity.csv").write_text("\n".join(["smiles,activity", *rows, "not a molecule,5"]) + "\n")
    place = Place(folder)
    ok(place.cache("build", "--config", "cache.yaml"))
    ok(place.distill("fit", "--config", "fit.yaml"))
    ok(place.distill("test"))
    return place


def test_a_fit_imports_neither_the_writing_of_exports_nor_the_report():
    code = "import sys, distill.cli.fit; print(*[name for name in sys.modules if name.startswith('distill.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert "distill.cli.fit" in names
    assert [
        name for name in names if name.startswith(("distill.report", "distill.export.write", "distill.export.card"))
    ] == []


@pytest.mark.parametrize("words", [["fitt"], ["--config", "fit.yaml"]])
def test_a_wrong_command_is_refused_at_once(tmp_path, words):
    done = Place(tmp_path).inside(distill, *words)
    assert f"error: no command {words[0]!r}" in done.stderr
    assert done.returncode == 1
    assert "usage: distill COMMAND" in Place(tmp_path).inside(distill, "--help").stdout


LACKING = {  # command -> what it says when it is alone, without a run
    "fit": "required: fit.model.student",
    **dict.fromkeys(("test", "validate"), "no finished run at runs/: train one with `distill fit"),
    "compare": "name runs or --studies",
    "study": "required: base, methods, out",
    "export": "required: out",
    "predict": "required: corpus",
}


@pytest.mark.parametrize("command", LACKING)
def test_a_command_without_arguments_says_what_it_lacks(tmp_path, command):
    done = Place(tmp_path).inside(distill, command)
    assert done.returncode in (1, 2)
    assert f"error: {LACKING[command]}" in done.stderr.replace("the following arguments are ", "")


def test_cache_list_and_verify_tell_the_state(place):
    shown = ok(place.cache("list"))
    for word in (
        "corpus",
        "column",
        "rows",
        "valid",
        "dim",
        "dtype",
        "size",
        "state",
        "letters",
        "ragged",
        "bits",
        "finished",
    ):
        assert word in shown
    assert "every shard is as it was written" in ok(place.cache("verify"))


@pytest.mark.slow
def test_two_writers_on_one_machine_share_the_shards(place):
    options = ["--settings.shard_rows", "20", "--settings.batch_size", "20"]
    done = place.cache("build", "--config", "cache.yaml", "--name", "shared", "--devices", "2", *options)
    assert "shared" in ok(done), "the first writer shows the cache, the second only works"
    assert done.stdout.count("cache cache") == 1
    for column in ("maccs", "letters", "graph"):  # each writer says what it made
        lines = [line for line in done.stderr.splitlines() if f"{column}: " in line and " rows made" in line]
        assert sum(int(line.split(" rows made")[0].split()[-1]) for line in lines) == 300, done.stderr
    assert "every shard is as it was written" in ok(place.cache("verify"))
    assert not list(place.folder.glob("cache/shared/*/*/.*")), "no claim, no temporary file"


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--rank", "2", "--world", "2"], "0 <= rank < world"), (["--devices", "0"], "--devices is 0, expected at least 1")],
)
def test_a_place_that_cannot_be_is_refused(place, options, message):
    done = place.cache("build", "--config", "cache.yaml", *options)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.head", "nothing.Here"], "No module named 'nothing'"),
        (
            ["--model.head.widht", "3"],
            "Option 'widht' is not accepted by distill.heads.GaussianHead; did you mean width?\n"
            "  Its options: distill fit --model.head.help distill.heads.GaussianHead",
        ),
    ],
)
def test_a_class_or_option_that_is_not_there_is_named(place, options, message):
    done = place.inside(distill, "fit", "--config", "fit.yaml", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Expected a path" not in done.stderr


def test_several_corpora_and_blocks_from_yaml(place, as_command):
    shown = ok(place.cache("build", "--config", "cache.yaml", "--name", "second", "--corpus.limit", "120"))
    assert shown.endswith("next: distill fit --config mol --data.corpus cache/second\n"), "not that of cache/mini"
    mix = {"corpora": [{"path": "cache/mini", "weight": 2}, {"path": "cache/second", "teachers": ["maccs"]}]}
    mix |= {"block_rows": 16, "window_blocks": 2, "held_out": 20}
    (place.folder / "mix.yaml").write_text(yaml.safe_dump({"run": "mixed/run", "data": mix}))
    ok(place.inside(distill, "fit", "--config", "fit.yaml", "--config", "mix.yaml", "--trainer.max_epochs", "1"))
    assert "nll/letters" in (place.folder / "mixed" / "run" / "metrics.csv").read_text().splitlines()[0]


def test_a_fit_leaves_checkpoints_logs_and_its_configuration(place):
    run = place.folder / "runs" / "mini"
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "config.yaml"):
        assert (run / name).is_file()
    assert list(run.glob("events.out.tfevents*"))
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for name in ("train/loss", "val/loss", "nll/maccs", "r2/maccs", "nats/maccs", "nll/letters", "r2/letters"):
        assert name in header.split(",")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_fit_is_not_finished_and_says_how_to_continue(place, as_command, number, status):
    run = place.folder / "runs" / f"stopped-{status}"
    long = ["--trainer.max_epochs", "100000", "--run", str(run)]
    process = place.start("distill.cli", "fit", "--config", "fit.yaml", *long)
    while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    taken = place.inside(distill, "fit", "--config", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/last.ckpt")
    assert f"another fit is writing {run}" in taken.stderr
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == status, shown
    assert "Traceback" not in shown
    again = f"fit --config {run}/config.yaml --ckpt_path {run}/checkpoints/last.ckpt"
    assert f"is not finished; to continue: distill {again}" in " ".join(shown.split())
    assert not (run / "finished").exists()
    epochs = 1 + load(run / "checkpoints" / "last.ckpt")["epoch"]
    ok(place.inside(distill, *again.split(), "--trainer.max_epochs", str(epochs + 1)))
    assert json.loads((run / "finished").read_text())["epoch"] == epochs + 1


def children(process: int) -> list[int]:
    """The processes that a process started, as far as they have not ended."""
    texts = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [child for text in texts for child in map(int, text.split()) if lives(child)]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(happened: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    """Wait until something has happened, while a process goes on."""
    started = time.monotonic()
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - started < seconds
        time.sleep(0.05)


def test_no_process_that_reads_data_outlives_a_fit_that_is_killed(place):
    """Also not one that was only starting, as here: torch's own watch would take whoever adopted it for the fit."""
    slow = "import os, time; os.register_at_fork(after_in_child=lambda: time.sleep(1))"
    (place.folder / "slow").mkdir(exist_ok=True)
    (place.folder / "slow" / "sitecustomize.py").write_text(slow)
    options = ["--run", "runs/killed", "--trainer.max_epochs", "100000", "--data.num_workers", "2"]
    paths = os.pathsep.join(map(str, [place.folder / "slow", ROOT, ROOT / "tests"]))
    process = place.start("distill.cli", "fit", "--config", "fit.yaml", *options, PYTHONPATH=paths)
    until(lambda: len(children(process.pid)) >= 2, process)
    readers = children(process.pid)
    process.kill()
    until(lambda: not any(map(lives, readers)), seconds=30)
    process.communicate(timeout=5)


def test_a_ctrl_c_ends_a_test_at_once_and_keeps_the_earlier_probes(place):
    run = place.folder / "runs" / "mini"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = place.start("distill.cli", "test", "--run", "runs/mini")
    until(lambda: list(run.glob(".probes*")), process)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)  # 2 s on a quiet machine
    assert (process.returncode, shown.splitlines()[-1], "Traceback" in shown) == (130, "interrupted", False), shown
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "nothing lost or half written"


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system in memory with some options, and gives its folder."""

    def mount(options: str) -> Path:
        folder = tmp_path / options
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"only root can mount a file system: {done.stderr.decode()}")
        return folder

    yield mount
    for folder in tmp_path.iterdir():  # lazily: a fit of this process may still have a log open there
        subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)


def test_a_fit_on_a_disk_that_becomes_full_or_is_read_only_says_so_in_words(place, as_command, mounted):
    run = mounted("size=60k") / "run"
    done = place.inside(distill, "fit", "--config", "fit.yaml", "--run", str(run))
    assert f"{run}/checkpoints/" in done.stderr
    assert "No space left on device: make space on the disk, then continue" in done.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == [], "nothing that is half a checkpoint"
    assert not (run / "finished").exists()
    again = mounted("ro") / "other"
    refused = place.inside(distill, "fit", "--config", "fit.yaml", "--run", str(again))
    assert f"{again}: Read-only file system: choose a folder that can be written to" in refused.stderr
    for command in (done, refused):
        assert command.returncode == 1
        assert "Traceback" not in command.stderr


def test_a_tested_run_can_be_trained_on_from_its_last_checkpoint(place, as_command):
    """`distill test` once wrote its own configuration over the run's."""
    run = place.folder / "runs" / "mini"
    before = (run / "config.yaml").read_text()
    ok(
        place.inside(
            distill, "fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")
        )
    )
    after = yaml.safe_load((run / "config.yaml").read_text())
    assert yaml.safe_load(before)["model"] == after["model"]
    assert after["ckpt_path"] is None, "a new run of this configuration begins anew"
    assert "train/loss" in (run / "metrics-1.csv").read_text(), "the metrics of before it went on"


def test_a_run_that_is_refused_to_go_on_changes_nothing(place, as_command):
    run = place.folder / "runs" / "mini"
    last, before = str(run / "checkpoints" / "last.ckpt"), (run / "config.yaml").read_text()
    for options, message in (
        (["--data.batch_size", "16"], "the checkpoint's batches come from"),
        (["--model.student.init_args.width", "8"], "the checkpoint's student and heads are not those"),
    ):
        done = place.inside(distill, "fit", "--config", str(run / "config.yaml"), "--ckpt_path", last, *options)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    import torch

    content = load(Path(last))
    del content["optimizer_states"]
    torch.save(content, run / "checkpoints" / "average.ckpt")
    average = str(run / "checkpoints" / "average.ckpt")
    done = place.inside(distill, "fit", "--config", str(run / "config.yaml"), "--ckpt_path", average)
    (run / "checkpoints" / "average.ckpt").unlink()
    assert "a fit goes on from RUN/checkpoints/last.ckpt" in done.stderr
    assert (run / "config.yaml").read_text() == before


def test_what_a_checkpoint_is_best_in_is_checked_at_once(place, as_command):
    for monitor, message in (
        ("acc", "expected one of val/..."),
        ("probe/mean", "needs probe.every"),
        ("probe/none", "probe/mean, probe/activity"),
    ):
        every = ["--probe.every", "1", "--probe.during", "[activity]"] if monitor == "probe/none" else []
        done = place.inside(distill, "fit", "--config", "fit.yaml", "--run", "runs/bad", "--monitor", monitor, *every)
        assert message in done.stderr, done.stderr
        assert done.returncode == 1


SYSTEMS = {"student", "untrained", "maccs", "letters", "concatenated", "pca", "fingerprints", "student+fingerprints"}


def test_test_compares_every_system_and_says_what_was_measured(place):
    probes = place.folder / "runs" / "mini" / "probes"
    records = json.loads((probes / "results.json").read_text())["records"]
    assert {record["system"] for record in records} == SYSTEMS
    assert len(records) == 8 * 2 * 2 * 2  # systems, tasks, splits, seeds
    assert {(record["task"], record["provenance"]) for record in records} == {
        ("pains", "computed"),
        ("activity", "measured"),
    }
    assert all(-5 < record["score"] <= 1 for record in records)
    trained, untrained = ({r["task"]: r["score"] for r in records if r["system"] == s} for s in ("student", "untrained"))
    assert trained != untrained, "the checkpoint was not loaded, or the untrained student was trained"
    page, text = (probes / "report.html").read_text(), (probes / "report.md").read_text()
    for words in ("Random split", "Scaffold split", "What it costs", "Training", "Maps of the embeddings", "What was run"):
        assert f"<h2>{words}" in page
        assert f"\n## {words}" in text
    assert (probes / "figures" / "ranks-random.png").read_bytes()[:4] == b"\x89PNG"
    searches = json.loads((probes / "results.json").read_text())["search"]
    assert searches.keys() == {"maccs", "letters"}
    assert all(0 <= found["recall@10"] <= 1 and found["rows"] > 10 for found in searches.values())
    assert "recall@10: of the ten held-out items" in text
    costs = json.loads((probes / "results.json").read_text())["costs"]
    assert costs["student"]["parameters"] == costs["untrained"]["parameters"] > 0
    assert costs["maccs"]["parameters"] is None
    assert all(cost["per_second"] > 0 for cost in costs.values())
    assert costs["concatenated"]["per_second"] < costs["maccs"]["per_second"]


def test_the_predictions_that_were_kept_give_the_scores(place):
    from sklearn.metrics import r2_score

    probes = place.folder / "runs" / "mini" / "probes"
    kept, compared = np.load(probes / "predictions" / "activity-random-0.npz"), []
    parts = [kept[part] for part in ("train", "valid", "test")]
    assert sorted(np.concatenate(parts)) == list(range(len(json.loads(bytes(kept["items"])))))
    for record in json.loads((probes / "results.json").read_text())["records"]:
        if (record["task"], record["split"], record["seed"]) == ("activity", "random", 0):
            predicted = kept[f"predicted/{record['system']}"]
            assert r2_score(kept["labels"][kept["test"]], predicted) == pytest.approx(record["score"], abs=1e-5)
            compared.append(record["system"])
    assert sorted(compared) == sorted(SYSTEMS)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_student(place):
    import torch

    ok(place.distill("fit", "--config", "fit.yaml", "--run", "runs/again"))
    states = [load(place.folder / "runs" / run / "checkpoints" / "last.ckpt")["state_dict"] for run in ("mini", "again")]
    assert states[0]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_two_ranks_fit_and_test(place):
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--run", "runs/two"]
    ok(place.distill("fit", "--config", "fit.yaml", *two, "--probe.every", "1", "--monitor", "probe/mean"))
    shown = ok(place.distill("test", "--config", "fit.yaml", *two))
    assert shown.count("written:") == 1


def test_test_takes_the_run_of_its_configuration_and_no_other(place, as_command):
    (place.folder / "short.yaml").write_text("trainer: {log_every_n_steps: 2}\n")
    ok(place.inside(distill, "fit", "--config", "fit.yaml", "--trainer.max_epochs", "1", "--run", "runs/minimal"))
    (place.folder / "later.yaml").write_text(
        CACHE.replace("  maccs:", "  later: {class_path: cache_tools.teachers.molecule.Maccs}\n  maccs:")
    )
    ok(place.cache("build", "--config", "later.yaml"))  # a column that the run's fit did not know
    done = place.inside(distill, "test", "--config", "fit.yaml", "--config", "short.yaml", "--probe.seeds", "[0]")
    shutil.rmtree(place.folder / "cache" / "mini" / "teachers" / "later")
    assert "runs/mini/checkpoints/best.ckpt" in ok(done)


def test_a_script_can_require_a_verdict(place, as_command):
    words = ["test", "--run", "runs/mini", "--probe.seeds", "[0]", "--probe.systems", "[student,untrained]", "--require"]
    done = place.inside(distill, *words, "equal:untrained", "--margin", "99")
    assert "`student` is equal to the untrained student on 2 tasks (" in ok(done)
    assert json.loads((place.folder / "runs" / "mini" / "probes" / "results.json").read_text())["margin"] == 99
    done = place.inside(distill, *words, "equal:untrained", "beats:best-teacher")
    assert done.returncode == 3
    assert "beats:best-teacher is not met: the student was compared with untrained" in done.stderr
    done = place.inside(distill, *words, "best-teacher")
    assert done.returncode == 1
    assert "expected beats:NAME or equal:NAME" in done.stderr


def test_a_new_fit_never_overwrites_a_run(place, as_command):
    before = (place.folder / "runs" / "mini" / "checkpoints" / "last.ckpt").read_bytes()
    ok(place.inside(distill, "fit", "--config", "fit.yaml", "--trainer.max_epochs", "1"))
    assert (place.folder / "runs" / "mini-2" / "checkpoints" / "best.ckpt").is_file()
    assert (place.folder / "runs" / "mini" / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_fits_that_start_at_once_have_a_folder_each(place):
    words = ["fit", "--config", "fit.yaml", "--run", "runs/at-once", "--trainer.max_epochs", "1"]
    processes = [place.start("distill.cli", *words, "--seed_everything", str(seed)) for seed in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, errors
    runs = [place.folder / "runs" / name for name in ("at-once", "at-once-2", "at-once-3")]
    assert {yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] for run in runs} == {0, 1, 2}
    for run in runs:
        steps = [line.partition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]
        assert len(steps) == 1 + 7 + 1, "a line per step, the validation, and no other fit's"
        assert (run / "finished").is_file()
    assert len({(run / "metrics.csv").read_text() for run in runs}) == 3


@pytest.mark.slow
def test_tests_of_one_run_at_once_leave_whole_results(place):
    run = place.folder / "runs" / "at-once"
    words = ["test", "--run", str(run), "--probe.seeds", "[0]", "--probe.systems", "[student]"]
    processes = [place.start("distill.cli", *words) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 2, errors
    assert len(json.loads((run / "probes" / "results.json").read_text())["records"]) == 2 * 2
    assert (run / "probes" / "report.html").is_file()
    assert not list(run.glob(".probes*"))


def test_print_config_is_a_configuration(place, as_command):
    printed = yaml.safe_load(ok(place.inside(distill, "fit", "--config", "fit.yaml", "--print_config")))
    assert printed["model"]["student"]["init_args"]["layers"] == 2
    (place.folder / "printed.yaml").write_text(yaml.safe_dump(printed))
    again = yaml.safe_load(ok(place.inside(distill, "fit", "--config", "printed.yaml", "--print_config")))
    assert again == printed


def test_teacher_head_student_and_task_come_from_a_file_outside_by_class_path(place):
    config = yaml.safe_load(FIT)
    config["run"] = "runs/outside"
    config["model"] = {
        "student": {"class_path": "extension_example.BagOfAtoms"},
        "head": {"class_path": "extension_example.AbsoluteError"},
    }
    config["probe"] = {"seeds": [0], "tasks": {"carbons": {"class_path": "extension_example.CarbonCount"}}}
    (place.folder / "outside.yaml").write_text(yaml.safe_dump(config))
    ok(place.distill("fit", "--config", "outside.yaml"))
    ok(place.distill("test", "--config", "outside.yaml"))
    records = json.loads((place.folder / "runs" / "outside" / "probes" / "results.json").read_text())["records"]
    scores = {record["system"]: record["score"] for record in records}
    assert scores["letters"] > 0.99, "the teacher counts the letters that the task asks for"
    assert scores["student"] > 0.9


BAD_FITS = {
    "a wrong key": (["--model.stduent_lr", "1"], "no key 'model.stduent_lr'; did you mean model.student_lr"),
    "a wrong file": (["--config", "none.yaml"], "no file none.yaml, which --config names"),
    "a wrong cache": (["--data.corpus", "cache/none"], "build it first, for instance `distill-cache build --config mol`"),
    "a missing column": (["--data.teachers", "[gin]"], "no teacher column gin; it has: letters, maccs"),
    "a wrong class": (["--model.student", "distill.students.molecule.GraphStudnt"], "has no attribute 'GraphStudnt'"),
    "a GPU that is not there": (
        ["--trainer.accelerator", "gpu", "--trainer.devices", "9"],
        "suit neither this machine nor",
    ),
    "a head for nobody": (["--model.heads.gin", "distill.heads.MseHead"], "model.heads names gin"),
    "too large a batch": (["--data.batch_size", "999"], "lower data.held_out or data.batch_size"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_input_to_fit_gets_a_few_lines_that_say_what_to_do(place, as_command, case):
    arguments, message = BAD_FITS[case]
    done = place.inside(distill, "fit", "--config", "fit.yaml", "--run", "runs/bad", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 9, done.stderr
    assert not (place.folder / "runs" / "bad").exists()


def test_bad_input_to_test_gets_a_few_lines_that_say_what_to_do(place, as_command, tmp_path):
    (place.folder / "bad.csv").write_text("smi,activity\nCCO,1\n")
    text = FIT.replace("activity.csv", "bad.csv")
    (place.folder / "bad.yaml").write_text(text)
    done = place.inside(distill, "test", "--config", "bad.yaml")
    assert "bad.csv: no column smiles; its columns are: smi, activity" in done.stderr
    assert len(done.stderr.splitlines()) <= 9, done.stderr
    done = place.inside(distill, "test", "--ckpt_path", "runs/none/checkpoints/best.ckpt")
    assert "no checkpoint at" in done.stderr
    nowhere = Place(tmp_path).inside(distill, "test")
    assert "train one with `distill fit" in nowhere.stderr
    assert nowhere.returncode == done.returncode == 1


class OfAnotherProject:
    """An object, which a checkpoint may hold and which is never unpickled."""


def foreign_checkpoint(folder: Path, kind: str) -> Path:
    import torch

    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    content = {"state_dict": {"encoder.weight": torch.ones(9999)}, "epoch": 1, "global_step": 2}
    torch.save(content | ({"hyper_parameters": OfAnotherProject()} if kind == "objects" else {}), path)
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind in ("text", "cut"):
        path.write_bytes(b"epoch: 1" if kind == "text" else path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other project", "is a checkpoint of another program, without a student: expected RUN/checkpoints/best.ckpt"),
        ("objects", "holds more than tensors"),
        ("text", "is no checkpoint of `distill fit`, or was cut off"),
        ("cut", "is no checkpoint of `distill fit`, or was cut off"),
        ("folder", "expected RUN/checkpoints/best.ckpt or last.ckpt"),
    ],
)
def test_a_foreign_checkpoint_is_refused_in_words(tmp_path, as_command, command, kind, message):
    path = foreign_checkpoint(tmp_path, kind)
    options = ["--model.student", "distill.students.molecule.GraphStudent", "--ckpt_path", str(path)]
    done = Place(tmp_path).inside(distill, command, *options)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "weights_only" not in done.stderr
    assert "Traceback" not in done.stderr


BAD_BUILDS = {
    "an empty corpus": ("smiles\n", [], "holds no rows: expected at least one molecule"),
    "a corpus without the column": ("smi\nC\n", [], "no column smiles; its columns are: smi"),
    "no file": (None, [], "check the path"),
    "no molecule at all": ("smiles\nnothing\n", [], "not one row could be embedded"),
}


@pytest.mark.parametrize("case", BAD_BUILDS)
def test_bad_input_to_build_gets_a_few_lines_that_say_what_to_do(place, as_command, case, tmp_path):
    text, arguments, message = BAD_BUILDS[case]
    if text is not None:
        (tmp_path / "m.csv").write_text(text)
    corpus = ["--corpus", "cache_tools.corpora.molecule.SmilesFile", "--corpus.path", str(tmp_path / "m.csv")]
    done = place.inside(
        cache_command, "build", "--config", "cache.yaml", "--cache", str(tmp_path / "cache"), *corpus, *arguments
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_pretrained_teachers_say_where_their_weights_should_be(place):
    config = str(ROOT / "configs" / "cache" / "mol-pretrained.yaml")
    done = place.cache("build", "--config", config, WEIGHTS="/nowhere")
    assert "no weights at /nowhere/gcn_supervised.safetensors: point WEIGHTS at the folder" in done.stderr
    assert done.returncode == 1


@pytest.mark.slow
def test_a_study_compares_methods_and_goes_on_where_it_was(place, as_command):
    folder = place.folder
    for method, head in {"nll": "GaussianHead", "mse": "MseHead"}.items():
        (folder / f"{method}.yaml").write_text(f"model: {{head: {{class_path: distill.heads.{head}}}, heads: null}}\n")
    given = {"base": "fit.yaml", "methods": {"nll": "nll.yaml", "mse": "mse.yaml"}, "seeds": [0], "jobs": 2}
    (folder / "study.yaml").write_text(yaml.safe_dump({**given, "runs": "runs/study", "out": "docs/both"}))
    ok(place.inside(study, "--config", "study.yaml"))
    report = (folder / "docs" / "both" / "report.md").read_text()
    for words in ("nll", "mse", "untrained", "concatenated", "pca"):
        assert len(re.findall(rf"^\| \**{words}\** \| -?\d+\.\d{{3}} \|", report, re.M)) == 2, "one table per split"
    assert "`, the best of 2 students by these scores, " in report.splitlines()[2]
    assert re.search(r"^\| (nll|mse) \| \w+ \| [+-]0\.\d{3} \| ", report, re.M), "one against the other"
    (folder / "runs" / "study" / "mse-0" / "probes" / "results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs" / "study").rglob("best.ckpt")}
    assert len(before) == 2
    ok(place.inside(study, "--config", "study.yaml"))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished fit was fitted again"
    assert (folder / "runs" / "study" / "mse-0" / "probes" / "results.json").is_file(), "what is missing is probed again"
    again = (folder / "docs" / "both" / "report.md").read_text()
    first = [re.sub(r"[\d,.]+ times (faster|slower)|as fast", "SPEED", text).splitlines()[:8] for text in (report, again)]
    assert first[0] == first[1]
