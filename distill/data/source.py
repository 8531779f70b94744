"""The rows of one corpus of a run: which are held out, which are trained on, and in which part of the corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SPREAD = 0x9E3779B1  # a multiplier that lets neighbouring items start with different views


@dataclass(frozen=True)
class Source:
    """The rows of one corpus of a run: which are held out, and which are trained on.

    The corpus is cut into as many strata as rows are held out, and one row of each stratum is held out. So the n-th row to
    train on is found without a list of rows.

    Where a corpus holds several views of every item, one after the other, all numbers below count items, and :meth:`view`
    says which row stands for an item in an epoch.

    Args:
        rows: of the corpus.
        held: rows that are never trained on, at most half of all.
        seed: which rows these are.
        weight: share of a batch, relative to the other corpora's; by default the rows to train on.
        block: rows of a block of a block shuffle; 0 shuffles all rows at once.
        window: blocks that are shuffled together.
        views: rows of each item.
        turning: take another view of an item in each epoch; the first one otherwise.
        near: blocks that all rows held out lie in, drawn by the seed; 0 spreads these rows over the corpus.
        part: number of a part of the rows to train on, of so many equal ones; one group of processes reads it.

    Example:
        >>> source = Source(rows=10, held=2)
        >>> sorted([*source.held_out.tolist(), *source.training(np.arange(8)).tolist()])
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    rows: int
    held: int = 0
    seed: int = 0
    weight: float | None = None
    block: int = 0
    window: int = 16
    views: int = 1
    turning: bool = False
    near: int = 0
    part: tuple[int, int] = (0, 1)

    def view(self, items: Array, epoch: int = 0) -> Array:
        """The rows that show ``items`` in an epoch; over ``views`` epochs every view is shown once."""
        turn = (items * SPREAD >> 16) + epoch if self.turning else np.zeros_like(items)
        rows: Array = items * self.views + turn % self.views
        return rows

    def __len__(self) -> int:
        return self._cut(1) - self._cut(0)

    def _cut(self, end: int) -> int:
        """Where the part begins (0) or ends (1) in the list of all rows to train on."""
        number, parts = self.part
        return (self.rows - self.held) * (number + end) // parts

    @cached_property
    def span(self) -> tuple[int, int]:
        """The first row of the part, and the row after its last one."""
        number, parts = self.part
        first, stop = self.training(np.array([0, len(self)])).tolist()
        return first if number else 0, stop if number + 1 < parts else self.rows

    @cached_property
    def held_blocks(self) -> list[tuple[int, int]]:
        """First row and rows of each block that rows are held out in, where these are not spread over the corpus."""
        count = -(-self.rows // self.block) if self.near else 0
        numbers = _one_of_each(count, min(self.near, count), self.seed).tolist()
        return [(number * self.block, min(self.block, self.rows - number * self.block)) for number in numbers]

    @cached_property
    def held_out(self) -> Array:
        """The rows for validation, never trained on; sorted, (held,)."""
        if not self.near:
            return _one_of_each(self.rows, self.held, self.seed)
        rows = runs(self.held_blocks)
        return rows[_one_of_each(len(rows), self.held, self.seed)]

    @cached_property
    def _earlier(self) -> Array:
        """How many rows to train on come before each row held out, (held,)."""
        return self.held_out - np.arange(self.held)

    def training(self, positions: Array) -> Array:
        """The rows at ``positions`` of the list of the rows to train on, in the corpus's order."""
        positions = positions + self._cut(0)
        rows: Array = positions + np.searchsorted(self._earlier, positions, side="right")
        return rows

    def sample(self, count: int) -> Array:
        """At most ``count`` rows to train on, spread evenly; over the blocks of rows held out where there are such."""
        if self.near:
            rows = np.setdiff1d(runs(self.held_blocks), self.held_out)
            return rows[np.arange(min(count, len(rows))) * len(rows) // min(count, len(rows))]
        return self.training(np.arange(count) * len(self) // count)


def _one_of_each(rows: int, count: int, seed: int) -> Array:
    """One row of each of ``count`` equal strata of ``range(rows)``; sorted, (count,)."""
    stratum = rows // max(1, count)
    state = np.random.SeedSequence((rows, count, seed)).generate_state(count, np.uint64)
    return np.arange(count) * stratum + (state % np.uint64(max(1, stratum))).astype(np.int64)


def runs(blocks: Sequence[tuple[int, int]]) -> Array:
    """All rows of blocks, of each of which the first row and the number of rows are given."""
    return np.concatenate([np.arange(first, first + count) for first, count in blocks])
