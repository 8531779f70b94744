"""CPU seconds until a command answers, beside the interpreter alone or the library that it does not need."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cache_tools import MoleculeGraph, RdkitSamples, build
from cache_tools.teachers.molecule import Maccs
from measure import Row, Setup, benchmark, shown

ROOT = Path(__file__).parents[1]
NOTHING, LIGHTNING = ["-c", "pass"], ["-c", "import lightning.pytorch"]
DISTILL, CACHE = ["-m", "distill.cli"], ["-m", "cache_tools.cli"]
FIT = [*DISTILL, "fit", "--config", "configs/mol.yaml"]


def processor(words: list[str], status: int) -> float:
    """CPU seconds, user and system, of one process of Python that ends with ``status``."""
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, **silent)  # type: ignore[call-overload]
    _, ended, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}, expected {status}")
    return usage.ru_utime + usage.ru_stime


@benchmark(
    "start: CPU s of `distill --help`, peer: the interpreter alone",
    "start: CPU s of `distill fit` with a wrong key, peer: the import of Lightning",
    "start: CPU s of `distill fit` with a wrong key of its student, peer: the import of Lightning",
    "start: CPU s of `distill fit` with a missing configuration, peer: the import of Lightning",
    "start: CPU s of `distill-cache list`, peer: the interpreter alone",
    "start: CPU s of `distill-cache verify`, peer: the interpreter alone",
)
def start(setup: Setup) -> Iterator[Row]:
    cache = setup.folder / "startup"
    build(cache, "mol", RdkitSamples(limit=setup.size(300, 20)), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    cases = [
        ([*DISTILL, "--help"], 0, NOTHING, 0.5),
        ([*FIT, "--trainer.max_epoch", "3"], 2, LIGHTNING, 3.5),
        ([*FIT, "--model.student.widht", "3"], 2, LIGHTNING, 3.5),
        ([*DISTILL, "fit", "--config", "configs/nothing.yaml"], 1, LIGHTNING, 0.6),
        ([*CACHE, "list", "--cache", str(cache)], 0, NOTHING, 0.6),
        ([*CACHE, "verify", "--cache", str(cache)], 0, NOTHING, 0.6),
    ]
    for words, status, peer, target in cases:
        pairs = [(processor(words, status), processor(peer, 0)) for _ in range(setup.size(3, 1))]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        yield Row(shown(ours), shown(theirs), ours, f"<= {target}")


BENCHMARKS = (start,)
