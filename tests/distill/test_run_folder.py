"""The folder of a run: claimed by one fit alone, and its probes are replaced whole."""

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_tools import ConfigError, Items, build
from distill.run_folder import RunFolder, newest_run

FORK = multiprocessing.get_context("fork")


def at_once(task: Callable[[Path, int], None], folder: Path, count: int) -> list[int | None]:
    """Run a task in so many processes at the same moment; their exit statuses."""
    processes = [FORK.Process(target=task, args=(folder, number)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def claim_twenty(folder: Path, number: int) -> None:
    for _ in range(20):
        with open(RunFolder.claim(folder / "runs" / "mol").path / "mine", "x") as file:
            file.write(str(number))


def test_no_two_fits_get_one_folder(tmp_path):
    assert at_once(claim_twenty, tmp_path, 6) == [0] * 6
    names = {path.parent.name for path in tmp_path.glob("runs/*/mine")}
    assert names == {"mol", *(f"mol-{number}" for number in range(2, 121))}


def publish_twenty(folder: Path, number: int) -> None:
    for turn in range(20):
        complete = folder / f"{number}-{turn}" / "probes"
        complete.mkdir(parents=True)
        for name in ("results.json", "report.md"):
            (complete / name).write_text(json.dumps([number, turn]))
        RunFolder(folder / "run").publish_probes(complete)


def test_probes_that_are_published_at_once_stay_whole(tmp_path):
    (tmp_path / "run").mkdir()
    assert at_once(publish_twenty, tmp_path, 3) == [0] * 3
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["probes"]
    assert len({path.read_text() for path in (tmp_path / "run" / "probes").iterdir()}) == 1


def lock(folder: Path, number: int) -> None:
    RunFolder(folder).lock()


def test_a_run_that_is_written_is_locked_and_a_killed_fit_leaves_no_lock(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / ".last.ckpt.4711.tmp").touch()
    file = run.lock()
    assert not list(run.checkpoints.iterdir()), "a temporary file of a killed fit"
    assert at_once(lock, tmp_path, 1) == [1]
    file.close()
    assert at_once(lock, tmp_path, 1) == [0]

    def locked_and_killed(folder: Path, number: int) -> None:
        kept = run.lock()
        os.kill(os.getpid(), signal.SIGKILL)
        kept.close()

    assert at_once(locked_and_killed, tmp_path, 1) == [-9]
    run.lock().close()


def test_a_log_that_a_kill_cut_keeps_its_whole_lines(tmp_path, caplog):
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n0,1.5,\n1,,12.25\n2,1.75,12.")
    assert [row["step"] for row in RunFolder(tmp_path).metrics()] == ["0", "1"], "12. was 12.5, or any other number"
    assert "metrics.csv: line 4 was cut off while it was written, it is left out" in caplog.text
    (tmp_path / "conflict.csv").write_text("step,teacher_a,teacher_b,cosine\n0,a,a,1\n1,a,")
    assert RunFolder(tmp_path).last_conflict()[:2] == (0, ["a"])
    (tmp_path / "conflict.csv").write_text("")
    assert RunFolder(tmp_path).last_conflict() is None


@pytest.mark.parametrize("line", ["1,1.5", "1,1.5,2,3", "one,1.5,2", "\0\0\0", ",1.5,2"])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
    (tmp_path / "metrics.csv").write_text(f"step,train/loss,val/loss\n0,1.5,\n{line}\n2,1.5,\n")
    with pytest.raises(
        ConfigError, match=re.escape("metrics.csv, line 3: expected the columns step, train/loss, val/loss")
    ):
        RunFolder(tmp_path).metrics()


def test_a_cut_or_damaged_log_of_tensorboard_breaks_no_report(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        for step in range(3):
            writer.add_scalar("loss", 1.0, step, walltime=100.0 + step)
    (log,) = tmp_path.glob("events.out.tfevents.*")
    sound, run = log.read_bytes(), RunFolder(tmp_path)
    assert run.seconds() is not None
    for length in range(len(sound)):
        log.write_bytes(sound[:length])
        run.seconds()
        log.write_bytes(sound[:length] + bytes([sound[length] ^ 1]) + sound[length + 1 :])
        run.seconds()
    log.write_bytes(b"")
    assert run.seconds() is None


def test_the_newest_run_is_a_finished_one_of_the_modality(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    build(tmp_path, "texts", Items(["a"], "text"), {}, {})
    for age, (name, corpus, finished) in enumerate(
        [("interrupted", "mol", False), ("newer", "mol", True), ("texts", "texts", True), ("older", "mol", True)]
    ):
        run = RunFolder(tmp_path / "runs" / name)
        run.checkpoints.mkdir(parents=True)
        run.best.touch()
        os.utime(run.best, (1000 - age, 1000 - age))
        run.config.write_text(f"data: {{corpus: {corpus}}}\n")
        if finished:
            run.finish(1, 1)
    with caplog.at_level("INFO"):
        assert newest_run().name == "newer"
        assert newest_run(modality="text").name == "texts"
        assert newest_run(Path("runs/interrupted")).name == "interrupted"
    assert caplog.messages == [
        "the newest run: runs/newer",
        "the newest run: runs/texts",
        "the newest run: runs/interrupted, which is not finished",
    ]
    with pytest.raises(ConfigError, match="no finished run on images at runs/"):
        newest_run(modality="image")
