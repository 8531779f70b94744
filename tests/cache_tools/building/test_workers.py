"""Worker processes of real builds: how a Ctrl-C, a kill -9 and an error end them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache_tools import Items, RdkitSamples, open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build, build_like
from cache_tools.building.pipeline import Pipeline
from cache_tools.errors import TeacherError
from cache_tools.format.shard import map_shard
from cache_tools.teachers.molecule import Maccs, MorganBits, MorganCounts, RdkitDescriptors

TEACHERS = """
import ctypes
import os
import time
from pathlib import Path

import numpy as np

from cache_tools import Teacher, TeacherError


class Stuck(Teacher):
    "When the first shard is done, a batch holds Python's lock for a minute."

    modality = "molecule"
    python_bound = True
    dim = 1

    def embed(self, items):
        if (Path(__file__).parent / "cache/mol/teachers/a/00000.json").exists():
            ctypes.PyDLL(None).sleep(60)
        return np.ones((len(items), 1))


class Dying(Stuck):
    def embed(self, items):
        os.kill(os.getpid(), 9)


class Refusing(Stuck):
    def embed(self, items):
        raise TeacherError("no such weights")


class Wrong(Stuck):
    def embed(self, items):
        return {}["key"]


class SlowOnce(Stuck):
    def prepare(self, item):
        time.sleep(item == b"slow")
        return item

    def embed(self, items):
        return np.array([[item == b"slow"] for item in items])


class Processes(Stuck):
    "The process that prepared an item, and the one that embeds it."

    on_device = True
    dim = 2

    def prepare(self, item):
        return os.getpid()

    def embed(self, items):
        return np.array([[item, os.getpid()] for item in items])


class Loading(Stuck):
    "The process that embeds an item, and how often it loaded this teacher."

    dim, loads = 2, 0

    def load(self, device):
        type(self).loads += 1

    def embed(self, items):
        return np.array([[os.getpid(), self.loads]] * len(items))
"""

DESCRIPTORS = "cache_tools.teachers.molecule.RdkitDescriptors"


@pytest.fixture
def teachers(tmp_path, monkeypatch) -> Path:
    """The folder with the module of teachers, importable here and in other processes."""
    (tmp_path / "own_teachers.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_teachers", None)


def alive(session: int) -> list[str]:
    """The command lines of the processes of a session that have not ended."""
    running = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                running.append(f"{entry.name} {(entry / 'cmdline').read_bytes().decode()}")
    return running


def until(happened, seconds: float) -> float:
    """The seconds that it took until something had happened."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < seconds
        time.sleep(0.05)
    return time.monotonic() - started


@contextlib.contextmanager
def building(folder: Path, teacher: str, workers: int, *options: str) -> Iterator[subprocess.Popen]:
    """`distill-cache build` of real molecules, in a session of its own, when one shard of the teacher is on disk."""
    config = {
        "corpus": {"class_path": "cache_tools.RdkitSamples", "init_args": {"limit": 4000}},
        "teachers": {"a": {"class_path": teacher}},
        "inputs": {},
        "cache": str(folder / "cache"),
        "settings": {"workers": workers, "batch_size": 64, "shard_rows": 128, "device": "cpu"},
    }
    (folder / "build.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "cache_tools.cli", "build", "--config", str(folder / "build.yaml")]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until(lambda: list(folder.glob("cache/mol/teachers/a/00000.json")), 60)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("teacher", "send"),
    [(DESCRIPTORS, os.killpg), ("own_teachers.Stuck", os.kill)],
    ids=["in a terminal", "processes that hold the lock, kill -INT"],
)
def test_a_ctrl_c_ends_a_build_at_once_and_keeps_its_shards(teachers, teacher, send):
    with building(teachers, teacher, 2) as process:
        send(process.pid, signal.SIGINT)
        until(lambda: process.poll() is not None, 20)  # below 2 s on a quiet machine; a minute without the mend
        said = process.stderr.read()
        assert (process.returncode, "Traceback" in said) == (130, False), said
        assert said.endswith("interrupted: finished shards are kept, the same command goes on from there\n")
        until(lambda: not alive(process.pid), 10)
    shards = sorted(teachers.glob("cache/mol/teachers/a/*.h5"))
    for path in shards:
        map_shard(path)
    assert shards


@pytest.mark.slow
def test_no_worker_process_outlives_a_main_process_that_is_killed(teachers):
    with building(teachers, "own_teachers.Stuck", 2) as process:
        assert len(alive(process.pid)) >= 4, "the build, the fork server and two workers"
        process.kill()
        until(lambda: not alive(process.pid), 10)


@pytest.mark.slow
def test_no_writer_outlives_the_first_one_that_is_killed(teachers):
    with building(teachers, DESCRIPTORS, 1, "--devices", "3") as process:
        until(lambda: len([line for line in alive(process.pid) if "--rank" in line]) == 2, 30)
        process.kill()
        until(lambda: not alive(process.pid), 10)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_no_thread_of_a_build_but_one_takes_a_ctrl_c(teachers, workers):
    with building(teachers, DESCRIPTORS, workers) as process:
        blocked = [line for line in masks(process.pid) if int(line, 16) >> (signal.SIGINT - 1) & 1]
        assert len(blocked) == len(masks(process.pid)) - 1, "the one that waits for it"


def masks(process: int) -> list[str]:
    """The blocked signals of each thread of a process."""
    texts = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/status")]
    return [line.split()[1] for text in texts for line in text.splitlines() if line.startswith("SigBlk")]


def run(teacher) -> None:
    with Pipeline(teacher, 2) as pipeline:
        list(pipeline([[b"CCO"] * 3] * 5))


def test_a_worker_process_that_is_killed_or_fails_is_an_error_in_words(teachers, capfd):
    import own_teachers

    forkserver._forkserver._stop()  # one of an earlier test writes where that test's output went
    with pytest.raises(TeacherError, match=r"a worker process of own_teachers.Dying ended with -9 \(-9: killed"):
        run(own_teachers.Dying())
    with pytest.raises(TeacherError, match="^no such weights$"):
        run(own_teachers.Refusing())
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(TeacherError, match=r"a worker process of own_teachers.Wrong ended with 1 .* said is above"):
        run(own_teachers.Wrong())
    assert "KeyError: 'key'" in capfd.readouterr().err


def test_worker_processes_give_what_one_process_gives_in_the_order_of_the_batches(tmp_path):
    columns = {}
    teachers = {"descriptors": RdkitDescriptors(), "counts": MorganCounts(), "maccs": Maccs()}
    assert all(teacher.python_bound for teacher in teachers.values()), "thus all cores work for each of them"
    for workers in (1, 3):
        settings = Settings(workers=workers, batch_size=10, shard_rows=60)
        folder = build(tmp_path / str(workers), "mol", RdkitSamples(limit=100), teachers, {}, settings)
        columns[workers] = [
            (folder / "teachers" / name / f"0000{number}.h5").read_bytes() for name in teachers for number in range(2)
        ]
    assert columns[1] == columns[3]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_worker_processes_do_all_the_work_and_beside_a_gpu_they_process_the_items(teachers, device):
    import own_teachers

    with Pipeline(own_teachers.Processes(), 2, device) as pipeline:
        values = np.concatenate([result.values for result in pipeline([[b"CCO"] * 3] * 8)])
    prepared, embedded = values.T
    assert os.getpid() not in prepared
    np.testing.assert_array_equal(embedded, prepared if device == "cpu" else os.getpid())


@pytest.mark.parametrize("workers", [1, 2])
def test_small_tasks_share_the_processes_and_the_load_of_a_teacher(teachers, tmp_path, caplog, workers):
    import own_teachers

    caplog.set_level("INFO")
    settings = Settings(workers=workers, batch_size=8, dtype="float32")
    path = build(tmp_path, "c", Items(["C"], "molecule"), {"a": own_teachers.Loading()}, {}, settings) / "teachers" / "a"
    before = own_teachers.Loading.loads
    tasks = [Items(["C" * length for length in range(first, first + 20)], "molecule") for first in (1, 2, 3)]
    folders = build_like([path], tmp_path / "tasks", [*tasks, tasks[0]], settings)
    assert folders[3] == folders[0] and len(set(folders)) == 3
    made = np.concatenate([open_column(folder / "teachers" / "a").rows(np.arange(20)) for folder in folders[:3]])
    processes, loads = made.T
    assert len(set(processes)) <= workers, "each task alone is too small for a process, all together are not"
    assert (os.getpid() in processes) == (workers == 1)
    assert set(loads) == {before + 1 if workers == 1 else 1}
    assert own_teachers.Loading.loads == before + 1
    assert [text for text in caplog.messages if "made" in text][1:] == ["a: 60 rows of 3 corpora made"]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_taken_only_a_little_ahead_also_beside_a_slow_one(teachers, monkeypatch, workers):
    import own_teachers

    monkeypatch.setattr("cache_tools.building.pipeline.AHEAD", 4)
    taken = []

    def batches():
        for number in range(30):
            taken.append(number)
            yield [b"slow" if number == 1 else b"quick"]

    with Pipeline(own_teachers.SlowOnce(), workers) as pipeline:
        for number, result in enumerate(pipeline(batches())):
            assert result.values.tolist() == [[number == 1]]
            assert len(taken) <= number + 1 + 4 + workers, "a shard is claimed when its batches are taken"
    assert len(taken) == number + 1 == 30


def test_threads_that_prepare_items_stop_at_the_next_item(tmp_path):
    class Slow(MorganBits):
        def prepare(self, item):
            time.sleep(0.05)
            return super().prepare(item)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pipeline(Slow(8), 1) as pipeline:
        for _ in pipeline([[b"CCO"], [b"CCO"], [b"CCO"] * 500]):
            raise KeyboardInterrupt  # while the third batch is prepared
    assert time.monotonic() - started < 15  # 25 s for that batch
