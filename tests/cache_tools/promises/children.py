"""What the tests of the cache's promises run in other processes; as a script it starts them, by fork, on request."""

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.building.launch import Place
from cache_tools.corpora.base import Items
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import BadItem
from cache_tools.format import shard
from cache_tools.inputs import MoleculeGraph
from cache_tools.items.image import decode_image
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.molecule import AtomPairs

TEXTS = [f"{'x' * (number % 9)}{number}" for number in range(60)]


class Logged(Teacher):
    """Appends a line for every call to the file CALLS of the environment, and takes PAUSE seconds."""

    modality = "text"
    dim = 2

    def embed(self, items):
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{items[0]}\n")
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return np.array([[len(item) / 3, float(item.lstrip("x"))] for item in items])


def build_molecules(cache, limit, shard_rows):
    settings = Settings(workers=1, shard_rows=shard_rows, batch_size=16)
    build(Path(cache), "mol", RdkitSamples(limit), {"pairs": AtomPairs(512)}, {"graph": MoleculeGraph()}, settings)


def build_texts(cache, calls, pause=0.0, rank=0, world=1):
    os.environ |= {"CALLS": str(calls), "PAUSE": str(pause)}
    settings = Settings(workers=1, shard_rows=5)
    build(Path(cache), "texts", Items(TEXTS, "text"), {"logged": Logged()}, {}, settings, Place(rank, world))


def write_rounds(folder, rounds, me, other):
    """Write shard 7 of every round's folder at the same moment as the process ``other`` does."""
    for number in range(rounds):
        here = Path(folder) / str(number)
        (here / f"ready {me}").touch()
        while not (here / f"ready {other}").exists():
            pass
        facts = shard.write_shard(here, 7, {"embedding": np.full((50, 40), me, np.float32)}, {"writer": me})
        (here / f"facts {me}.json").write_text(json.dumps(facts))


def memory_of_decoding(image, report):
    """Report by how many bytes this process grew at most while it decoded ``image``."""
    item = Path(image).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode_image(item)
    except BadItem:
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        Path(report).write_text(str(grown))


def rows_of(column, indices):
    """Rows of a column that came through a pickle, and of the same one opened here."""
    return column.rows(np.array(indices)).tolist(), open_column(column.path).rows(np.array(indices)).tolist()


def _child(name, arguments):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the pipes are the server's
    os.dup2(2, 1)
    try:
        globals()[name](*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def serve():
    """A line in, a number out: ``[function, arguments...]`` gives a process id, ``["wait", id]`` its exit code."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1])
        elif not (answer := os.fork()):
            _child(name, arguments)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    build_texts(sys.argv[1], os.devnull)  # imports all there is to import
    build_molecules(sys.argv[1], 20, 20)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    serve()
