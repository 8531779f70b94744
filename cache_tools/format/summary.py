"""Sum a column's shards up: the statistics of its rows, and ``skipped.csv``, the list of its masked rows."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.format.packing import cut
from cache_tools.format.shard import file_name, map_shard
from cache_tools.format.statistics import Statistics
from cache_tools.format.store import CorpusManifest, read_items

SKIPPED = "skipped.csv"

Facts = Mapping[str, Any]  # of a finished shard: its entry in the column's manifest


def merged_statistics(column: Path, shards: Sequence[Facts]) -> Statistics:
    """Statistics of all valid rows of the dense column at ``column``, from those that each of its ``shards`` holds."""
    total = Statistics(0, np.zeros(0), np.zeros(0))
    for number, facts in enumerate(shards):
        arrays, _ = map_shard(column / file_name(number))
        part = Statistics(facts["valid"], np.array(arrays["statistics/mean"]), np.array(arrays["statistics/var"]))
        total = total.merge(part)
    return total


def skipped_rows(column: Path, corpus: CorpusManifest, shards: Sequence[Facts]) -> bytes:
    """What ``skipped.csv`` of a column must hold; empty when no row is masked.

    Args:
        column: the column's folder, inside its corpus's.
        corpus: its manifest.
        shards: the facts of every shard.

    Raises:
        CacheError: when the ids of the rows cannot be read.
    """
    masked = [number for number, facts in enumerate(shards) if facts["valid"] < facts["rows"]]
    lines = [line for number in masked for line in _of_shard(column, corpus, number)]
    if not lines:
        return b""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("row", "id", "reason"), *lines])
    return text.getvalue().encode()


def _of_shard(column: Path, corpus: CorpusManifest, number: int) -> Iterator[tuple[int, str, str]]:
    arrays, _ = map_shard(column / file_name(number))
    ids, _ = read_items(column.parent.parent, number, corpus)
    first, _ = corpus.shard_span(number)
    rows = np.flatnonzero(arrays["valid"] == 0).tolist()
    for row, reason in zip(rows, cut(arrays, "reasons"), strict=True):
        yield first + row, ids[row], reason.decode()
