"""The order of samples: a pure function of numbers (seed, epoch, rows, weights, block, ranks, batch), without a Dataset.

Nothing here is as long as the corpus: a permutation of a billion rows is a formula, evaluated where it is needed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from distill.data.source import Array, Source, runs

Lengths = Callable[[Array], Array]  # rows to their lengths, both (rows,)

ROUNDS = 4  # of a permutation

SLAB = 128  # batches whose rows are computed at once, so that they share numpy's cost per call

GOLDEN = (math.sqrt(5) - 1) / 2

MANY = 1_000_000_000  # more windows than a pass has


def permute(positions: Array, rows: int, *key: int) -> Array:
    """The rows at ``positions`` of a permutation of ``range(rows)`` that depends on ``key`` alone; (positions,), int64.

    Rounds of an affine map and a shift-xor are a bijection of the numbers below a power of two. A value beyond ``rows``
    is mapped again until it falls inside (cycle walking; Black and Rogaway, CT-RSA 2002).

    Example:
        >>> sorted(permute(np.arange(5), 5, 42).tolist())
        [0, 1, 2, 3, 4]
    """
    bits = max(6, (rows - 1).bit_length())  # rounds of fewer bits mix badly
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    constants = np.random.SeedSequence(key).generate_state(2 * ROUNDS, np.uint64).reshape(ROUNDS, 2)
    out = np.asarray(positions).astype(np.uint64)
    outside: Any = slice(None)  # all at first
    while len(x := out[outside]):
        for factor, summand in constants:  # in place: new arrays would take as long as the arithmetic
            x *= factor | np.uint64(1)
            x += summand
            x &= mask
            x ^= x >> shift
        out[outside] = x
        outside = np.flatnonzero(out >= rows)
    return out.astype(np.int64)


class Shuffled:
    """One pass over a source's rows, all shuffled at once; the order of a cache in memory or on a fast disk."""

    def __init__(self, source: Source, *key: int):
        self.source, self.key = source, key

    def take(self, start: int, stop: int) -> Array:
        """The rows at positions ``start`` to ``stop`` of the pass."""
        return self.source.training(permute(np.arange(start, stop), len(self.source), *self.key))

    def window_at(self, position: int) -> int:
        """Number of the window that holds ``position``."""
        return 0

    def blocks(self, window: int) -> list[tuple[int, int]]:
        """First row and rows of each block of a window, to be read ahead."""
        return []


class BlockShuffled(Shuffled):
    """One pass over a source's rows in blocks: blocks come in random order, and ``window`` of them are shuffled together.

    It is for caches larger than memory: the disk then reads long runs of rows.
    """

    def __init__(self, source: Source, *key: int):
        super().__init__(source, *key)
        first, stop = source.span
        numbers = np.arange(first // source.block, -(-stop // source.block) + 1)
        self.starts = np.clip(numbers * source.block, first, stop)  # of blocks, and the end
        count = len(self.starts) - 1
        self.order = permute(np.arange(count), count, *key, 1)  # (blocks,)
        kept = np.diff(self.starts - np.searchsorted(source.held_out, self.starts))  # rows to train on, (blocks,)
        ends = np.concatenate([[0], np.cumsum(kept[self.order])])
        self.edges = np.append(ends[: -1 : source.window], ends[-1])  # positions at which windows begin, and the end

    def take(self, start: int, stop: int) -> Array:
        first, last = self.window_at(start), self.window_at(stop - 1)
        rows = np.concatenate([self._rows(window) for window in range(first, last + 1)])
        return rows[start - self.edges[first] : stop - self.edges[first]]

    def window_at(self, position: int) -> int:
        return int(np.searchsorted(self.edges, position, side="right")) - 1

    def blocks(self, window: int) -> list[tuple[int, int]]:
        numbers = np.sort(self.order[window * self.source.window : (window + 1) * self.source.window])
        firsts, stops = self.starts[numbers], self.starts[numbers + 1]
        return list(zip(firsts.tolist(), (stops - firsts).tolist(), strict=True))

    def _rows(self, window: int) -> Array:
        rows = runs(self.blocks(window))
        kept = rows[~np.isin(rows, self.source.held_out)]
        return kept[permute(np.arange(len(kept)), len(kept), *self.key, 2, window)]


class Stream:
    """A source's rows for one epoch, pass after pass when its weight asks for more rows than it has."""

    def __init__(self, source: Source, seed: int, epoch: int, number: int):
        self.source, self.epoch = source, epoch
        kind = BlockShuffled if source.block else Shuffled
        self.shuffled = lru_cache(3)(lambda turn: kind(source, seed, epoch, number, turn))  # number of a pass -> the pass

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, Shuffled, int, int]]:
        """Positions ``start`` to ``stop`` by passes: number of the pass, the pass, first and end position in it."""
        while start < stop:
            number, first = divmod(start, len(self.source))
            end = min(first + stop - start, len(self.source))
            yield number, self.shuffled(number), first, end
            start += end - first

    def windows(self, start: int, stop: int) -> list[tuple[int, Shuffled, int]]:
        """Windows that hold positions ``start`` to ``stop``, in order: a growing number, the pass, the window in it."""
        return [
            (number * MANY + window, shuffled, window)
            for number, shuffled, first, end in self._pieces(start, stop)
            for window in range(shuffled.window_at(first), shuffled.window_at(end - 1) + 1)
        ]

    def take(self, start: int, stop: int) -> Array:
        """The rows at positions ``start`` to ``stop`` of the stream."""
        pieces = self._pieces(start, stop)
        rows = [self.source.view(shuffled.take(first, end), self.epoch + number) for number, shuffled, first, end in pieces]
        return np.concatenate([np.empty(0, np.int64), *rows])


def shares(sources: Sequence[Source], batch: int, batches: int, seed: int, epoch: int) -> Array:
    """Rows that each source gives to each batch, (batches, sources); they sum to ``batch`` in every batch.

    Fractions of a row are rounded by systematic sampling, with offsets that fill [0, 1) evenly.

    Example:
        >>> shares([Source(30), Source(10)], batch=8, batches=2, seed=0, epoch=0).tolist()
        [[6, 2], [6, 2]]
    """
    weights = np.array([len(source) if source.weight is None else source.weight for source in sources], np.float64)
    exact = batch * np.cumsum(weights) / weights.sum()
    exact[-1] = batch
    start = np.random.SeedSequence((seed, epoch, 3)).generate_state(1, np.uint64)[0] / 2**64
    offset = (start + GOLDEN * np.arange(batches)) % 1
    edges = np.floor(exact + offset[:, None] + 1e-9).astype(np.int64)  # (batches, sources)
    return np.diff(edges, axis=1, prepend=0)


class Step(NamedTuple):
    """One rank's rows of one batch."""

    rows: list[Array]  # per source: rows of its corpus, sorted
    windows: tuple[int, ...] = ()  # per source: a change says that earlier rows are not needed again soon
    ahead: tuple[list[tuple[int, int]], ...] = ()  # per source: first row and count of runs that are needed soon


class BatchOrder(Sampler[Step]):
    """Batch sampler of one rank: rank r of R takes every R-th row of each global batch, or of its group's part of it.

    Rows of a batch are sorted: their order inside it has no meaning, and sorted rows are read faster.

    Args:
        sources: the corpora.
        batch: rows of a step over all ranks together; a multiple of ``ranks``.
        seed: of the run.
        rank: this process.
        ranks: all of them.
        shuffle: off for validation: the held-out rows then come in order, corpus after corpus.
        lengths: per source, the lengths of rows where a student pads them, else None. With lengths, the rows of ``SLAB``
            batches are sorted by length before they are cut into batches, and these batches come in random order.
        groups: of consecutive ranks, as many as there are nodes. Each group reads its own part of every corpus, and gives
            an equal share of each global batch; so a node needs the shards of that part only.

    Attributes:
        start: batches of the epoch to leave out, since an earlier process did them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        lengths: Sequence[Lengths | None] = (),
        groups: int = 1,
    ):
        self.sources, self.batch, self.seed, self.rank, self.ranks = list(sources), batch, seed, rank, ranks
        self.shuffle, self.epoch, self.start = shuffle, 0, 0
        self.lengths, self.groups = list(lengths) or [None] * len(self.sources), groups
        self.sampler = self  # Lightning calls set_epoch on `batch_sampler.sampler`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return sum(len(source) // self.groups for source in self.sources) * self.groups // self.batch
        return sum(self._batches(source) for source in self.sources)

    @property
    def identity(self) -> dict[str, Any]:
        """All that the global batches of every epoch depend on; the number of ranks is not part of it."""
        rows = [[each.rows, each.held, each.weight, each.block, each.window, each.views] for each in self.sources]
        identity: dict[str, Any] = {"rows": rows, "batch": self.batch, "seed": self.seed}
        if self.groups > 1:  # checkpoints of version 0.1 know of neither
            identity["groups"] = self.groups
        if any(near := [each.near for each in self.sources]):
            identity["near"] = near
        return identity

    @property
    def dropped(self) -> int:
        """Rows at an epoch's end that fill no batch; they are different ones in each epoch."""
        return sum(len(source) for source in self.sources) - len(self) * self.batch

    def __iter__(self) -> Iterator[Step]:
        return self._training() if self.shuffle else self._validation()

    def _batches(self, source: Source) -> int:
        """Validation batches of a source, the same number on every rank."""
        return -(-source.held // (self.batch * self.ranks))

    def _validation(self) -> Iterator[Step]:
        for number, source in enumerate(self.sources):
            for mine in np.array_split(source.held_out[self.rank :: self.ranks], self._batches(source)):
                rows = [np.empty(0, np.int64)] * len(self.sources)
                rows[number] = source.view(mine)
                yield Step(rows)

    def _training(self) -> Iterator[Step]:
        group = self.rank * self.groups // self.ranks
        sources = [replace(source, part=(group, self.groups)) for source in self.sources]
        numbered = enumerate(sources, group * len(sources))  # a number of its own, so that no group repeats another's order
        streams = [Stream(source, self.seed, self.epoch, number) for number, source in numbered]
        counts = shares(sources, self.batch // self.groups, len(self), self.seed, self.epoch)
        ends = np.concatenate([np.zeros((1, len(streams)), np.int64), np.cumsum(counts, 0)])  # (batches + 1, sources)
        seen = [-1] * len(streams)  # the last window of each source that was read ahead
        for first in range(self.start // SLAB * SLAB, len(counts), SLAB):
            last = min(first + SLAB, len(counts))
            slab = [stream.take(*ends[[first, last], k].tolist()) for k, stream in enumerate(streams)]
            slab = [
                rows if lengths is None else rows[by_length(rows, lengths)]
                for rows, lengths in zip(slab, self.lengths, strict=True)
            ]
            spans = (ends[first : last + 1] - ends[first]).tolist()  # where each batch begins in the slab
            bucketed = any(lengths is not None for lengths in self.lengths)
            for place, number in enumerate(self._mixed(first, last) if bucketed else range(first, last), first):
                if place < self.start:
                    continue
                start, stop = spans[number - first], spans[number - first + 1]
                rows = [each[a:b] for each, a, b in zip(slab, start, stop, strict=True)]
                if not any(source.block for source in self.sources):
                    yield Step(self._slice(rows))
                    continue
                # a slab that is sorted by length needs all of its windows from its first batch on
                begin, end = (first, last) if bucketed else (place, place + 1)
                windows, ahead = self._windows(streams, ends[begin].tolist(), ends[end].tolist(), seen)
                yield Step(self._slice(rows), windows, ahead)

    def _mixed(self, first: int, last: int) -> list[int]:
        """The batches of a slab in random order."""
        count = last - first
        return (first + permute(np.arange(count), count, self.seed, self.epoch, first, 4)).tolist()  # type: ignore[no-any-return]

    def _slice(self, rows: list[Array]) -> list[Array]:
        before = itertools.accumulate((len(each) for each in rows), initial=0)
        ranks = self.ranks // self.groups  # of the group
        return [np.sort(each[(self.rank - start) % ranks :: ranks]) for each, start in zip(rows, before, strict=False)]

    @staticmethod
    def _windows(
        streams: list[Stream], starts: list[int], stops: list[int], seen: list[int]
    ) -> tuple[tuple[int, ...], tuple[list[tuple[int, int]], ...]]:
        """Each source's first window, and the blocks of its windows and of the next one that were not read ahead yet."""
        first, ahead = [], []
        for k, (stream, start, stop) in enumerate(zip(streams, starts, stops, strict=True)):
            covered = stream.windows(start, max(stop, start + 1))
            number, shuffled, window = covered[-1]
            blocks = [
                block
                for label, one_pass, inside in [*covered, (number + 1, shuffled, window + 1)]
                if label > seen[k]
                for block in one_pass.blocks(inside)
            ]
            seen[k] = max(seen[k], number + 1)
            first.append(covered[0][0])
            ahead.append([(row * stream.source.views, count * stream.source.views) for row, count in blocks])
        return tuple(first), tuple(ahead)


def by_length(rows: Array, lengths: Lengths) -> Array:
    """Positions that sort ``rows`` (rows,) by length, so that rows padded to one length waste little; (rows,)."""
    return np.argsort(lengths(rows), kind="stable")
