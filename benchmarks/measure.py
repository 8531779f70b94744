"""What every benchmark shares: its size, figures of two ways to the same result, and the file that keeps them."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).with_name("results.json")


class Row(NamedTuple):
    """One measured figure."""

    ours: str
    peer: str
    figure: float  # times faster than the peer, or the thing itself where there is no peer
    target: str = ""  # such as ">= 0.8"; empty for a figure without a target


@dataclass(frozen=True)
class Setup:
    """Where a benchmark runs, and at which size.

    Args:
        folder: an empty folder for caches and other files; all benchmarks of a run share it.
        tiny: a few rows and steps, measured once: shows that a benchmark runs, its figures mean nothing.
    """

    folder: Path
    tiny: bool = False

    def size(self, real: int, tiny: int) -> int:
        return tiny if self.tiny else real


class Benchmark(NamedTuple):
    """Names of the rows, and what yields the rows in this order."""

    names: tuple[str, ...]
    rows: Callable[[Setup], Iterator[Row]]

    def run(self, setup: Setup) -> Iterator[tuple[str, Row]]:
        """Each row with its name, as soon as it was measured."""
        yield from zip(self.names, self.rows(setup), strict=True)


def benchmark(*names: str) -> Callable[[Callable[[Setup], Iterator[Row]]], Benchmark]:
    """Make a benchmark of a function that yields a row for each of ``names``."""
    return lambda rows: Benchmark(names, rows)


class LeftOut(Exception):
    """This benchmark cannot run here; the message says what it needs."""


def needed(variable: str, *names: str) -> list[Path]:
    """Files ``names`` of the folder that an environment variable gives.

    Raises:
        LeftOut: when the variable is not set or its folder lacks one of them.
    """
    folder = Path(os.environ.get(variable) or "/nowhere")
    if not all((folder / name).is_file() for name in names):
        raise LeftOut(f"set {variable} to a folder with {', '.join(names)}")
    return [folder / name for name in names]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def beside(ours: Callable[[], float], peer: Callable[[], float], turns: int, target: str = "") -> Row:
    """Median seconds of both, measured in turns, and the median over turns of peer / ours."""
    pairs = [(ours(), peer()) for _ in range(turns)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(shown(mine), shown(theirs), statistics.median(b / a for a, b in pairs), target)


def compare(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, target: str = "", warm: bool = True
) -> Row:
    """The same for two functions that do not take their own time."""
    if warm:
        ours(), peer()
    return beside(lambda: seconds(ours), lambda: seconds(peer), repeats, target)


def shown(duration: float) -> str:
    return f"{duration:.2f} s" if duration >= 1 else f"{duration * 1e3:.2f} ms"


def line(name: str, row: Row) -> str:
    beside_peer = f"{row.ours}, peer {row.peer}" if row.peer else row.ours
    return f"{row.figure:9.3f}  {row.target:9} {met(row):3}  {name}" + f"  ({beside_peer})" * bool(beside_peer)


def met(row: Row) -> str:
    if not row.target:
        return ""
    sign, limit = row.target.split()
    return "yes" if (row.figure >= float(limit) if sign == ">=" else row.figure < float(limit)) else "NO"


def keep(results: Path, name: str, row: Row) -> None:
    """Write a figure into the file of results."""
    kept = json.loads(results.read_text()) if results.exists() else {}
    kept[name] = {"figure": round(row.figure, 3), "target": row.target}
    results.write_text(json.dumps(kept, indent=1) + "\n")


def drop_stale(results: Path, names: Iterable[str]) -> None:
    """Remove figures from the file of results that no benchmark measures any more."""
    kept = json.loads(results.read_text()) if results.exists() else {}
    results.write_text(json.dumps({name: kept[name] for name in kept if name in set(names)}, indent=1) + "\n")


def run_all(benchmarks: Iterable[Benchmark], setup: Setup, results: Path | None = RESULTS) -> bool:
    """Print each row, and write it to ``results``, as soon as it was measured; whether every benchmark ran to its end.

    A benchmark that fails does not stop the others. Its error, and what a benchmark that was left out needs, is one line.
    """
    whole = True
    print("   figure  target    met  what", flush=True)
    for each in benchmarks:
        try:
            for name, row in each.run(setup):
                print(line(name, row), flush=True)
                if results:
                    keep(results, name, row)
        except LeftOut as reason:
            print(f"left out: {'; '.join(each.names)}: {reason}", flush=True)
        except Exception as error:  # whatever it is: hours of other benchmarks must not be lost with it
            whole = False
            said = " ".join(str(error).split())
            print(f"failed: {'; '.join(each.names)}: {type(error).__name__}: {said}", flush=True)
    return whole
