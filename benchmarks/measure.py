"""What every benchmark shares: two ways to the same result, timed in turns in one run."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results.json")


class Row(NamedTuple):
    """A line of the table."""

    ours: str
    peer: str
    figure: float  # times faster than the peer, or the thing itself where there is no peer
    target: str = ""  # such as ">= 0.8"; empty for a figure without a target


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, target: str = "", warm: bool = True
) -> Row:
    """Median seconds of both and the median over turns of peer / ours."""
    if warm:
        ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(f"{mine * 1e3:.2f} ms", f"{theirs * 1e3:.2f} ms", statistics.median(b / a for a, b in pairs), target)


def met(row: Row) -> str:
    if not row.target:
        return ""
    sign, limit = row.target.split()
    return "yes" if (row.figure >= float(limit) if sign == ">=" else row.figure < float(limit)) else "NO"


def show(title: str, rows: dict[str, Row]) -> None:
    """Print a table and keep its figures in results.json."""
    threads = torch.get_num_threads()
    table = Table("what", "ours", "peer", "figure", "target", "met", title=f"{title}, {threads} threads")
    for name, row in rows.items():
        table.add_row(name, row.ours, row.peer, f"{row.figure:.2f}", row.target, met(row))
    Console(width=130).print(table)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept |= {name: {"figure": round(row.figure, 3), "target": row.target} for name, row in rows.items()}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
