"""The order of samples as a pure function of numbers: (seed, epoch, rows, weights, block, ranks, batch). No torch Dataset.

Nothing here is as long as the corpus: a permutation of a billion rows is a formula, evaluated where it is needed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

Array = np.ndarray[Any, Any]

Lengths = Callable[[Array], Array]  # rows to their lengths, both (rows,)


ROUNDS = 4

SLAB = 128  # batches whose rows are computed at once: numpy's cost per call is shared by all of them

GOLDEN = (math.sqrt(5) - 1) / 2

MANY = 1_000_000_000  # more than a pass has windows

SPREAD = 0x9E3779B1  # neighbours begin with different views


def permute(positions: Array, rows: int, *key: int) -> Array:
    """The rows at ``positions`` of a permutation of ``range(rows)`` that only the ``key`` decides; (positions,), int64.

    Rounds of an affine map and a shift-xor are a bijection of a power of two; a value beyond ``rows`` goes round
    again until it falls inside (cycle walking; Black and Rogaway, CT-RSA 2002).

    Example:
        >>> sorted(permute(np.arange(5), 5, 42).tolist())
        [0, 1, 2, 3, 4]
    """
    bits = max(6, (rows - 1).bit_length())  # rounds of fewer bits mix badly
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    constants = np.random.SeedSequence(key).generate_state(2 * ROUNDS, np.uint64).reshape(ROUNDS, 2)
    out = np.asarray(positions).astype(np.uint64)
    outside = np.ones(len(out), np.bool_)
    while outside.any():
        x = out[outside]
        for factor, summand in constants:
            x = (x * (factor | np.uint64(1)) + summand) & mask
            x ^= x >> shift
        out[outside] = x
        outside = out >= rows
    return out.astype(np.int64)


@dataclass(frozen=True)
class Source:
    """One corpus of a run.

    The corpus is cut into as many strata as rows are held out, and one row of each stratum is: so the n-th row to train on
    is found without a list of rows.

    Where a corpus holds several views of every item, one after the other, all of this counts items, and :meth:`view` says
    which row stands for an item in an epoch.

    Args:
        rows: of the corpus.
        held: rows that are never trained on, at most half of all.
        seed: which rows these are.
        weight: share of a batch, relative to the other corpora's; by default the rows to train on.
        block: rows of a block of a block shuffle; 0 shuffles all rows at once.
        window: blocks that are shuffled together.
        views: rows of each item.
        turning: take another view of an item in each epoch; the first one otherwise.

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

    def view(self, items: Array, epoch: int = 0) -> Array:
        """The rows that show ``items`` in an epoch; after ``views`` epochs each view had its turn."""
        turn = (items * SPREAD >> 16) + epoch if self.turning else np.zeros_like(items)
        rows: Array = items * self.views + turn % self.views
        return rows

    def __len__(self) -> int:
        return self.rows - self.held

    @property
    def _stratum(self) -> int:
        return self.rows // max(1, self.held)

    @cached_property
    def _chosen(self) -> Array:
        """Which row of each stratum is held out; beyond the last stratum none is."""
        state = np.random.SeedSequence((self.rows, self.held, self.seed)).generate_state(self.held, np.uint64)
        return np.append((state % np.uint64(self._stratum)).astype(np.int64), self.rows)

    @cached_property
    def held_out(self) -> Array:
        """The rows for validation, for good; sorted, (held,)."""
        return np.arange(self.held) * self._stratum + self._chosen[:-1]

    def training(self, positions: Array) -> Array:
        """The rows to train on at ``positions`` of their list in the corpus's order."""
        if not self.held:
            return positions
        kept = self._stratum - 1  # rows to train on in a stratum
        stratum = np.minimum(positions // kept, self.held)
        rows: Array = positions + stratum + (positions - stratum * kept >= self._chosen[stratum])
        return rows


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
    """One pass in blocks: whole blocks in a random sequence, the rows of ``window`` blocks shuffled together.

    For caches larger than memory: the disk reads long runs.
    """

    def __init__(self, source: Source, *key: int):
        super().__init__(source, *key)
        count = -(-source.rows // source.block)
        self.order = permute(np.arange(count), count, *key, 1)  # (blocks,)
        starts = np.minimum(np.arange(count + 1) * source.block, source.rows)
        kept = np.diff(starts - np.searchsorted(source.held_out, starts))  # rows to train on, (blocks,)
        ends = np.concatenate([[0], np.cumsum(kept[self.order])])
        self.edges = np.append(ends[: -1 : source.window], ends[-1])  # positions at which windows begin, and the end

    def take(self, start: int, stop: int) -> Array:
        first, last = self.window_at(start), self.window_at(stop - 1)
        rows = np.concatenate([self._rows(window) for window in range(first, last + 1)])
        return rows[start - self.edges[first] : stop - self.edges[first]]

    def window_at(self, position: int) -> int:
        return int(np.searchsorted(self.edges, position, side="right")) - 1

    def blocks(self, window: int) -> list[tuple[int, int]]:
        size, rows = self.source.block, self.source.rows
        numbers = self.order[window * self.source.window : (window + 1) * self.source.window]
        return [(number * size, min(size, rows - number * size)) for number in sorted(numbers.tolist())]

    def _rows(self, window: int) -> Array:
        every = np.concatenate([np.arange(first, first + count) for first, count in self.blocks(window)])
        kept = every[~np.isin(every, self.source.held_out)]
        return kept[permute(np.arange(len(kept)), len(kept), *self.key, 2, window)]


class Stream:
    """A source's rows for one epoch, pass after pass when its weight asks for more rows than it has."""

    def __init__(self, source: Source, seed: int, epoch: int, number: int):
        self.source, self.key, self.epoch = source, (seed, epoch, number), epoch
        self._passes: dict[int, Shuffled] = {}

    def pass_at(self, position: int) -> tuple[Shuffled, int]:
        """The pass that holds ``position`` of the stream, and the position inside it."""
        number, inside = divmod(position, len(self.source))
        if number not in self._passes:
            kind = BlockShuffled if self.source.block else Shuffled
            near = {key: each for key, each in self._passes.items() if abs(key - number) == 1}
            self._passes = {**near, number: kind(self.source, *self.key, number)}
        return self._passes[number], inside

    def windows(self, start: int, stop: int) -> list[tuple[int, Shuffled, int]]:
        """Windows that hold positions ``start`` to ``stop``, in order: a growing number, the pass, the window in it."""
        out = []
        while start < stop:
            one, inside = self.pass_at(start)
            count = min(stop - start, len(self.source) - inside)
            before = start // len(self.source) * MANY
            found = range(one.window_at(inside), one.window_at(inside + count - 1) + 1)
            out += [(before + window, one, window) for window in found]
            start += count
        return out

    def take(self, start: int, stop: int) -> Array:
        """The rows at positions ``start`` to ``stop`` of the stream."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            one, inside = self.pass_at(start)
            count = min(stop - start, len(self.source) - inside)
            turn = self.epoch + start // len(self.source)
            parts.append(self.source.view(one.take(inside, inside + count), turn))
            start += count
        return np.concatenate(parts)


def shares(sources: Sequence[Source], batch: int, batches: int, seed: int, epoch: int) -> Array:
    """Rows that each source gives to each batch, (batches, sources); every batch sums to ``batch``.

    A fraction of a row is given by systematic sampling, with offsets that fill [0, 1) evenly.

    Example:
        >>> shares([Source(30), Source(10)], batch=8, batches=2, seed=0, epoch=0).tolist()
        [[6, 2], [6, 2]]
    """
    weights = np.array([len(each) if each.weight is None else each.weight for each in sources], np.float64)
    exact = batch * np.cumsum(weights) / weights.sum()
    exact[-1] = batch
    start = np.random.SeedSequence((seed, epoch, 3)).generate_state(1, np.uint64)[0] / 2**64
    offset = (start + GOLDEN * np.arange(batches)) % 1
    edges = np.floor(exact + offset[:, None] + 1e-9).astype(np.int64)  # (batches, sources)
    return np.diff(edges, axis=1, prepend=0)


class Step(NamedTuple):
    """One rank's rows of one batch."""

    rows: list[Array]  # per source: rows of its corpus, sorted
    windows: tuple[int, ...] = ()  # per source: changes when the rows before will not come again soon
    ahead: tuple[list[tuple[int, int]], ...] = ()  # per source: first row and count of runs that come soon


class BatchOrder(Sampler[Step]):
    """Batch sampler of one rank: rank r of R takes every R-th row of each global batch.

    Rows of a batch are sorted: their order inside it means nothing, and memory likes it.

    Args:
        sources: the corpora.
        batch: rows of a step over all ranks together; a multiple of ``ranks``.
        seed: of the run.
        rank: this process.
        ranks: all of them.
        shuffle: off for validation: then the held-out rows come in order, corpus after corpus.
        lengths: per source, what tells the lengths of rows, where a student pads them: then the rows of ``SLAB`` batches
            are dealt out by length, and these batches come in random order.

    Attributes:
        start: batches to leave out of an epoch that was begun before.
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
    ):
        self.sources, self.batch, self.seed, self.rank, self.ranks = list(sources), batch, seed, rank, ranks
        self.shuffle, self.epoch, self.start = shuffle, 0, 0
        self.lengths = list(lengths) or [None] * len(self.sources)
        self.sampler = self  # Lightning calls set_epoch on `batch_sampler.sampler`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return sum(len(source) for source in self.sources) // self.batch
        return sum(self._batches(source) for source in self.sources)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the global batches of every epoch; ranks do not."""
        sources = [(each.rows, each.held, each.weight, each.block, each.window, each.views) for each in self.sources]
        return {"rows": [list(each) for each in sources], "batch": self.batch, "seed": self.seed}

    @property
    def dropped(self) -> int:
        """Rows of an epoch's end that fill no batch; others in each epoch."""
        return sum(len(source) for source in self.sources) % self.batch

    def __iter__(self) -> Iterator[Step]:
        return self._training() if self.shuffle else self._validation()

    def _batches(self, source: Source) -> int:
        """Validation batches of a source, as many on every rank."""
        return -(-source.held // (self.batch * self.ranks))

    def _validation(self) -> Iterator[Step]:
        for number, source in enumerate(self.sources):
            for mine in np.array_split(source.held_out[self.rank :: self.ranks], self._batches(source)):
                rows = [np.empty(0, np.int64)] * len(self.sources)
                rows[number] = source.view(mine)
                yield Step(rows)

    def _training(self) -> Iterator[Step]:
        streams = [Stream(source, self.seed, self.epoch, number) for number, source in enumerate(self.sources)]
        counts = shares(self.sources, self.batch, len(self), self.seed, self.epoch)
        ends = np.concatenate([np.zeros((1, len(streams)), np.int64), np.cumsum(counts, 0)])  # (batches + 1, sources)
        seen = [-1] * len(streams)  # the last window of each source that was read ahead
        for first in range(self.start // SLAB * SLAB, len(counts), SLAB):
            last = min(first + SLAB, len(counts))
            slab = [stream.take(*ends[[first, last], k].tolist()) for k, stream in enumerate(streams)]
            slab = [rows if of is None else _by_length(rows, of) for rows, of in zip(slab, self.lengths, strict=True)]
            spans = (ends[first : last + 1] - ends[first]).tolist()  # where each batch begins in the slab
            bucketed = any(each is not None for each in self.lengths)
            for place, number in enumerate(self._mixed(first, last) if bucketed else range(first, last), first):
                if place < self.start:
                    continue
                start, stop = spans[number - first], spans[number - first + 1]
                rows = [each[a:b] for each, a, b in zip(slab, start, stop, strict=True)]
                if not any(source.block for source in self.sources):
                    yield Step(self._slice(rows))
                    continue
                # a slab that is dealt out by length needs all of its windows from its first batch on
                begin, end = (first, last) if bucketed else (place, place + 1)
                windows, ahead = self._windows(streams, ends[begin].tolist(), ends[end].tolist(), seen)
                yield Step(self._slice(rows), windows, ahead)

    def _mixed(self, first: int, last: int) -> list[int]:
        """The batches of a slab in random order."""
        count = last - first
        return (first + permute(np.arange(count), count, self.seed, self.epoch, first, 4)).tolist()  # type: ignore[no-any-return]

    def _slice(self, rows: list[Array]) -> list[Array]:
        before = itertools.accumulate((len(each) for each in rows), initial=0)
        return [
            np.sort(each[(self.rank - start) % self.ranks :: self.ranks]) for each, start in zip(rows, before, strict=False)
        ]

    @staticmethod
    def _windows(
        streams: list[Stream], starts: list[int], stops: list[int], seen: list[int]
    ) -> tuple[tuple[int, ...], tuple[list[tuple[int, int]], ...]]:
        """Each source's first window, and the blocks of all its windows and of the next that ``seen`` does not know yet."""
        first, ahead = [], []
        for k, (stream, start, stop) in enumerate(zip(streams, starts, stops, strict=True)):
            covered = stream.windows(start, max(stop, start + 1))
            number, one, window = covered[-1]
            blocks = [
                block
                for label, each, inside in [*covered, (number + 1, one, window + 1)]
                if label > seen[k]
                for block in each.blocks(inside)
            ]
            seen[k] = max(seen[k], number + 1)
            first.append(covered[0][0])
            ahead.append([(row * stream.source.views, count * stream.source.views) for row, count in blocks])
        return tuple(first), tuple(ahead)


def _by_length(rows: Array, lengths: Lengths) -> Array:
    return rows[np.argsort(lengths(rows), kind="stable")]
