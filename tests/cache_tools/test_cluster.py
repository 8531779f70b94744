"""A real Ray cluster of three nodes on this machine, whose processes are killed."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from cache_tools import Items, Settings, build, read_manifest
from cache_tools import cluster as module
from cache_tools.building import remote
from cache_tools.cluster import Cluster, Resources
from cache_tools.errors import ConfigError, QuorumError, TeacherError
from distill.study.study import Study
from distill.study.study import make as make_runs

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

TEXTS = [f"{'x' * (number % 9)}{number}" for number in range(60)]  # 12 shards
TEACHER = '''
"""A teacher whose processes write down what they do."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from cache_tools import Teacher, TeacherError


class Logged(Teacher):
    modality = "text"
    dim = 2

    def __init__(self, log: str, pause: float = 0.0, poison: str = "", refused: str = ""):
        self.log, self.pause, self.poison, self.refused = log, pause, poison, refused

    def say(self, words):
        with open(self.log, "a") as file:
            file.write(f"{words} {os.getpid()}\\n")

    def fingerprint(self):
        return {"version": 1}

    def load(self, device):
        self.say("load")

    def embed(self, items):
        self.say(f"embed {items[0]}")
        time.sleep(self.pause)
        if self.poison in items:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.refused in items:
            raise TeacherError(f"cannot embed {self.refused}")
        return np.array([[len(item) / 3, float(item.lstrip("x"))] for item in items])
'''


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes of one core each. Here Ray would take the machine's own address and wait for it for ever."""
    from ray._private import services
    from ray.cluster_utils import Cluster as Nodes

    folder = tmp_path_factory.mktemp("modules")
    (folder / "logged_teacher.py").write_text(TEACHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node_ip_address", lambda *_, **__: "127.0.0.1")
        patch.syspath_prepend(folder)  # the tasks' processes take it from here
        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes):
    """One connection: each has processes of its own on the nodes, which import all anew."""
    with Cluster(nodes.address) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def serial(nodes, tmp_path_factory) -> dict[str, bytes]:
    """The shards of a build without a cluster."""
    return contents(make(tmp_path_factory.mktemp("serial") / "cache") / "teachers" / "logged")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make(cache, name="texts", cluster=None, **arguments):
    from logged_teacher import Logged

    settings = Settings(workers=1, shard_rows=5)
    log = cache.parent / "log"
    return build(
        cache, name, Items(TEXTS, "text"), {"logged": Logged(str(log), **arguments)}, {}, settings, cluster=cluster
    )


def test_without_a_cluster_the_user_is_told_how_to_start_one(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # Ray notes the cluster of this machine in that folder
    with pytest.raises(ConfigError, match="no Ray cluster at auto .*: start one with `ray start --head`"):
        Cluster("auto").__enter__()


def test_an_address_without_a_cluster_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"no Ray cluster at {address} \(.*refused"):
            Cluster(address).__enter__()


def test_a_node_that_does_not_share_the_cache_is_named(tmp_path):
    task = remote._Task((), tmp_path / "not here" / "mark")
    with pytest.raises(ConfigError, match=rf"{socket.gethostname()} has another .*not here.*must share the folder"):
        remote._make(task)


@pytest.mark.parametrize("zombies", [False, True], ids=["the whole node", "a node whose processes go on"])
def test_a_build_whose_node_is_killed_is_equal_to_a_serial_one(nodes, cluster, serial, tmp_path, caplog, zombies):
    caplog.set_level(logging.INFO)
    killed = nodes.add_node(num_cpus=1)

    def kill():  # as soon as one of its processes is in a shard
        log = tmp_path / "log"
        while True:
            running = {
                int(line.split()[-1]) for line in (log.read_text().splitlines() if log.exists() else []) if "embed" in line
            }
            mine = [pid for pid in running if parent(pid) == killed.all_processes["raylet"][0].process.pid]
            if mine:
                break
            time.sleep(0.01)
        nodes.remove_node(killed, allow_graceful=False)
        for pid in mine:
            os.kill(pid, 0 if zombies else signal.SIGKILL)  # 0: it is there, and finishes its shard beside its successor

    thread = threading.Thread(target=kill)
    thread.start()
    made = make(tmp_path / "ray", cluster=cluster, pause=0.2)
    thread.join()
    assert_equal(made / "teachers" / "logged", serial)
    lines = (tmp_path / "log").read_text().split("\n")
    loads, embeds = sum("load" in line for line in lines), sum("embed" in line for line in lines)
    assert loads <= 5 and 12 <= embeds <= 14, lines  # a process keeps its teacher; only the killed node's shards run twice
    assert zombies or "its process ended, it starts again" in caplog.text
    while len([node for node in ray.nodes() if node["Alive"]]) > 2:  # Ray notices within seconds
        time.sleep(0.1)
    assert cluster.call(len, "four", str) == 4
    assert "lost, its tasks go to others" in caplog.text


def assert_equal(column: Path, serial: dict[str, bytes]) -> None:
    """The same files; those of shards byte for byte."""
    assert contents(column).keys() == serial.keys()
    for name, content in serial.items():
        assert contents(column)[name] == content or not name.endswith(".h5"), name


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except FileNotFoundError:
        return 0


def test_an_item_that_ends_every_process_stops_the_build_and_names_the_shard(cluster, tmp_path):
    with pytest.raises(QuorumError, match=r"logged, shard 1: its process ended 3 times"):
        make(tmp_path / "cache", cluster=cluster, poison=TEXTS[7])
    log = (tmp_path / "log").read_text()
    assert log.count(f"embed {TEXTS[5]} ") == 3
    assert not read_manifest(tmp_path / "cache" / "texts" / "teachers" / "logged" / "manifest.json")["finished"]


def test_an_error_of_a_teacher_is_told_in_words_and_with_its_shard(cluster, tmp_path):
    with pytest.raises(TeacherError, match=r"^\S+, logged, shard 2: cannot embed") as error:
        make(tmp_path / "cache", cluster=cluster, refused=TEXTS[12])
    assert "Traceback" not in str(error.value)


def test_a_task_that_no_node_can_run_is_explained_and_runs_when_one_comes(nodes, cluster, caplog, monkeypatch):
    monkeypatch.setattr(module, "SAY", 1.0)
    monkeypatch.setattr(cluster, "resources", Resources(gpus=1))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(cluster.call, len, "four", str)
        while "waiting" not in caplog.text:
            assert not result.done()
            time.sleep(0.1)
        node = nodes.add_node(num_cpus=1, num_gpus=1)
        assert result.result(timeout=60) == 4
        nodes.remove_node(node, allow_graceful=False)
    assert "a task needs 1 CPUs and 1 GPUs of one node, the cluster's nodes have: 1 and 0" in caplog.text


def test_a_killed_driver_s_build_is_continued_by_the_same_one(nodes, cluster, serial, tmp_path):
    code = f"""
from pathlib import Path
from ray._private import services
services.get_node_ip_address = lambda *_, **__: "127.0.0.1"
from cache_tools import Items, Settings, build
from cache_tools.cluster import Cluster
from logged_teacher import Logged
with Cluster({nodes.address!r}) as cluster:
    teacher = Logged({str(tmp_path / "log")!r}, pause=0.2)
    build(Path({str(tmp_path / "cache")!r}), "texts", Items({TEXTS!r}, "text"), {{"logged": teacher}}, {{}},
          Settings(workers=1, shard_rows=5), cluster=cluster)
"""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(sys.modules["logged_teacher"].__file__).parent)])
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    column = tmp_path / "cache" / "texts" / "teachers" / "logged"
    while len(list(column.glob("*.h5"))) < 2:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert not read_manifest(column / "manifest.json")["finished"]
    make(tmp_path / "cache", cluster=cluster, pause=0.2)
    assert_equal(column, serial)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'quorum-distill\[ray\]'"):
        Cluster("local")


def test_a_study_on_a_cluster_survives_the_kill_of_a_run(cluster, cache, tmp_path):
    config = {
        "trainer": {"max_epochs": 12, "precision": "32-true", "enable_progress_bar": False},
        "data": {"corpus": str(cache / "mol"), "teachers": ["maccs"], "batch_size": 64},
        "model": {
            "student": {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 1, "width": 16}}
        },
        "probe": {
            "tasks": {
                "qed": {
                    "class_path": "distill.evaluation.tasks.ComputedProperty",
                    "init_args": {"name": "qed", "limit": 40},
                }
            }
        },
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "cosine.yaml").write_text("model: {head: {class_path: distill.heads.CosineHead}}")
    study = Study(tmp_path / "base.yaml", {"cosine": tmp_path / "cosine.yaml"}, tmp_path / "runs", [0, 1])
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(make_runs, study.grid, 2, cluster)
        first = study.grid[0].folder
        while not first.last.exists():
            assert not made.done()
            time.sleep(0.1)
        kill_fit_of(first.path)
        made.result(timeout=200)
    assert [run.folder.finished.exists() and run.outcome.exists() for run in study.grid] == [True, True]


def kill_fit_of(folder: Path) -> None:
    """Kill the task's process whose child is the fit of a run."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if f"--run\0{folder}\0".encode() in (entry / "cmdline").read_bytes():
                os.kill(parent(int(entry.name)), signal.SIGKILL)
