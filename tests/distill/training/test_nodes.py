"""A fit on two nodes that share no disk, as torchrun and SLURM start it: processes on loopback, with a folder each."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cache_tools import build
from cache_tools.building.column import Settings
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.teachers.molecule import MorganCounts
from distill.run_folder import RunFolder

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "fixtures" / "nodes.py"
FIT = {
    "trainer": {
        **{"devices": 1, "num_nodes": 2, "accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
        "callbacks": [{"class_path": "nodes.KilledOnce"}],
    },
    "data": {"corpus": "cache/mol", "teachers": ["counts"], "batch_size": 64, "held_out": 24},
    "model": {
        "student": {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 1, "width": 16}},
        "head": {"class_path": "distill.heads.MseHead"},
    },
    "checkpoint_every": 4,
    "run": "runs/mol",
}
KILLED = 14  # in the second epoch of 9 steps, behind the checkpoint of step 12


class Nodes:
    """Two folders, as of two machines, in which the ranks of a fit run."""

    def __init__(self, folder: Path, cache: Path):
        self.folders = [folder / "a", folder / "b"]
        for each in self.folders:
            shutil.copytree(cache / "mol", each / "cache" / "mol")
            (each / "fit.yaml").write_text(yaml.safe_dump(FIT))
        variables = {"PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, str(SCRIPT)], env=variables, **pipes)

    def start(self, environments: list[dict[str, str]], commands: list[list[str]]) -> list[int]:
        """The status of each node's process."""
        for folder in self.folders:
            (folder / "log").unlink(missing_ok=True)
        nodes = list(zip(map(str, self.folders), environments, commands, strict=True))
        self.process.stdin.write(json.dumps(nodes) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def torchrun(self, run: str, kill_at: int = 0, restarts: int = 0) -> list[int]:
        """``torchrun`` on each node, with the words of docs/training.md."""
        rendezvous = f"--master_addr 127.0.0.1 --master_port {free_port()} --max_restarts {restarts}".split()
        fit = ["--", "distill", "fit", "--config", "fit.yaml", "--run", run]
        commands = [
            ["torchrun", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1", *rendezvous, *fit]
            for node in (0, 1)
        ]
        return self.start([{"KILL_AT": str(kill_at)}] * 2, commands)

    def srun(self, job: int, kill_at: int = 0, restarts: int = 0) -> list[int]:
        """What ``srun`` tells the two tasks of a job on two nodes."""
        job_of_both = {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NAME": "fit",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NNODES": "2",
            "SLURM_NODELIST": "127.0.0.1,127.0.0.1",
            "SLURM_RESTART_COUNT": str(restarts),
            "MASTER_PORT": str(free_port()),
            "KILL_AT": str(kill_at),
        }
        tasks = [
            {**job_of_both, "SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"} for node in (0, 1)
        ]
        return self.start(tasks, [["fit", "--config", "fit.yaml"]] * 2)

    def end(self, run: str) -> dict:
        """Weights and optimiser of a finished run, on the first node; the second has no folder of it."""
        assert not (self.folders[1] / "runs").exists()
        folder = RunFolder(self.folders[0] / "runs" / run)
        assert folder.finished.exists()
        checkpoint = torch.load(folder.last, weights_only=True)
        return {"weights": checkpoint["state_dict"], "moments": checkpoint["optimizer_states"][0]["state"]}

    def logs(self) -> list[str]:
        return [" ".join((folder / "log").read_text().split()) for folder in self.folders]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def nodes(cache, tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("nodes"), cache)
    yield nodes
    nodes.process.kill()
    nodes.process.wait()


@pytest.fixture(scope="module")
def undisturbed(nodes):
    assert nodes.torchrun("runs/whole") == [0, 0], nodes.logs()
    return nodes.end("whole")


def test_a_rank_that_torchrun_starts_again_ends_with_the_weights_of_an_undisturbed_pair(nodes, undisturbed):
    assert nodes.torchrun("runs/killed", KILLED, restarts=1) == [0, 0], nodes.logs()
    torch.testing.assert_close(nodes.end("killed"), undisturbed, rtol=0, atol=0)


def test_a_job_that_slurm_starts_again_ends_with_the_weights_of_an_undisturbed_pair(nodes, undisturbed):
    first, second = nodes.srun(4711, KILLED)
    assert second == -9 and first == 1
    assert "error: another process of this command ended or cannot be reached" in nodes.logs()[0]
    assert nodes.srun(4711, restarts=1) == [0, 0], nodes.logs()
    torch.testing.assert_close(nodes.end("mol-4711"), undisturbed, rtol=0, atol=0)


def test_nodes_whose_caches_differ_are_refused_in_words_before_a_run_is_made(nodes):
    other = nodes.folders[1] / "cache" / "mol" / "teachers" / "counts"
    shutil.move(other, nodes.folders[1] / "kept")
    teachers = {"counts": MorganCounts(128, radius=3)}
    build(other.parents[2], "mol", RdkitSamples(limit=600), teachers, {}, Settings(workers=1))
    assert nodes.torchrun("runs/refused") == [1, 1]
    shutil.rmtree(other)
    shutil.move(nodes.folders[1] / "kept", other)
    for text in nodes.logs():
        assert "error: the ranks do not train on the same: column counts of corpus 1 is made by" in text
        assert "give all nodes one configuration, and copies of one cache" in text
    assert not (nodes.folders[0] / "runs" / "refused").exists()
