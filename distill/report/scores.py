"""Statistics of scores: means, ranks, their intervals, and which systems differ."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from distill.records import Record

Array = np.ndarray[Any, Any]

EVERY = "every"  # kind of split: the mean over the splits that a task has, and over seeds


class Duel(NamedTuple):
    """One system against another: mean difference over tasks with its 95 % interval; tasks won, tied and lost.

    Of a single score there is no interval: ``low`` and ``high`` are NaN.
    """

    difference: float
    low: float
    high: float
    won: int
    tied: int
    lost: int


class Scores:
    """Records arranged as systems x tasks x seeds for one split.

    Args:
        records: from an evaluation; all splits may be mixed.
        split: the kind of split to look at.

    Attributes:
        tasks: in the order of the records; metrics, provenance and test_rows are by task.
        systems: best mean first.
        values: (systems, tasks, seeds); NaN where nothing was measured.
    """

    def __init__(self, records: Iterable[Record], split: str):
        chosen = [record for record in records if record.split == split]
        self.split = split
        self.kinds = {record.system: record.kind for record in chosen}
        self.tasks = list(dict.fromkeys(record.task for record in chosen))
        self.metrics = {record.task: record.metric for record in chosen}
        self.test_rows = {record.task: (record.seen_rows, record.test_rows) for record in chosen}
        self.provenance = {record.task: record.provenance for record in chosen}
        self.seeds = sorted({record.seed for record in chosen})
        cells = {(record.system, record.task, record.seed): record.score for record in chosen}
        systems = list(self.kinds)
        values = np.array([[[cells.get((s, t, e), np.nan) for e in self.seeds] for t in self.tasks] for s in systems])
        order = np.argsort(-np.nanmean(values, (1, 2)), kind="stable")
        self.systems, self.values = [systems[row] for row in order], values[order]

    @property
    def averaged(self) -> bool:
        """Whether the scores are means over seeds that are no longer known."""
        return self.split == EVERY or self.seeds == [-1]

    def of_kind(self, *kinds: str) -> list[int]:
        """Rows of the systems of these kinds, best first."""
        return [row for row, system in enumerate(self.systems) if self.kinds[system] in kinds]

    @property
    def several(self) -> bool:
        """Whether there are several seeds: with one seed no task is won or lost, and no mean has an interval."""
        return len(self.seeds) > 1

    def mean(self) -> Array:
        """Mean over tasks and seeds, (systems,)."""
        return np.asarray(np.nanmean(self.values, (1, 2)))

    def half_width(self) -> Array:
        """Half of the 95 % t-interval of :meth:`mean` over seeds, (systems,); NaN with one seed."""
        deviation = self.values - mean_of_known(self.values)[..., None]  # a seed that a task lacks moves no mean
        return half_width(np.nan_to_num(deviation).mean(1))

    def mean_rank(self) -> Array:
        """Mean over tasks and seeds of the system's rank, 1 is best, (systems,)."""
        return np.asarray(np.nanmean(self.ranks(), (1, 2)))

    def ranks(self) -> Array:
        """Rank of each system on each task and seed, 1 is best, ties share, (systems, tasks, seeds)."""
        return np.asarray(stats.rankdata(-self.values, axis=0, nan_policy="omit"))

    def rank_interval(self, resamples: int = 2000) -> Array:
        """95 % interval of :meth:`mean_rank`, (2, systems): a bootstrap over tasks, since the choice of tasks varies."""
        per_task = mean_of_known(self.ranks())  # (systems, tasks)
        drawn = np.random.default_rng(0).integers(len(self.tasks), size=(resamples, len(self.tasks)))
        return np.asarray(np.nanpercentile(np.nanmean(per_task[:, drawn], 2), [2.5, 97.5], axis=1))

    def kept(self) -> Array:
        """Each system's mean as a share of that of the concatenated teachers, (systems,); NaN without them."""
        mean = self.mean()
        whole = mean[self.of_kind("concatenated")]
        return np.asarray(mean / whole[0] if whole.size and whole[0] > 0 else np.full(len(mean), np.nan))

    def against(self, one: int, other: int, resamples: int = 2000) -> "Duel":
        """System ``one`` against ``other``, task by task.

        A task is won where the t-interval of the difference over seeds is above zero, lost where it is below, tied
        otherwise. The mean difference has a bootstrap interval over tasks and seeds together.
        """
        difference = self.values[one] - self.values[other]  # (tasks, seeds)
        middle, half = np.nanmean(difference, 1), half_width(difference)
        half = np.where(np.isnan(half), np.inf, half)  # with one seed every task is tied
        random, (tasks, seeds) = np.random.default_rng(0), difference.shape
        drawn = random.integers(tasks, size=(resamples, tasks, 1)), random.integers(seeds, size=(resamples, 1, seeds))
        low, high = np.nanpercentile(np.nanmean(difference[drawn], (1, 2)), [2.5, 97.5])
        won, lost = int((middle - half > 0).sum()), int((middle + half < 0).sum())
        if difference.size == 1:
            low = high = np.nan
        return Duel(float(np.nanmean(difference)), float(low), float(high), won, tasks - won - lost, lost)

    def critical_difference(self) -> float:
        """Least difference of two mean ranks that Nemenyi's test finds at 5 % (Demšar, JMLR 2006, eq. 6)."""
        count = len(self.systems)
        quantile = stats.studentized_range.ppf(0.95, count, np.inf) / np.sqrt(2)
        return float(quantile * np.sqrt(count * (count + 1) / (6 * len(self.tasks))))

    def not_told_apart(self, ranks: Array) -> list[tuple[int, int]]:
        """First and last system of each longest run within the critical difference; ``ranks`` are in ascending order."""
        last = (np.searchsorted(ranks, ranks + self.critical_difference(), "right") - 1).tolist()
        spans = [(first, end) for first, end in enumerate(last) if end > first]
        return [span for number, span in enumerate(spans) if number == 0 or span[1] > spans[number - 1][1]]

    def teachers_mean(self) -> Array:
        """Mean over the teachers per task, (tasks,)."""
        values = self.values[self.of_kind("teachers")]  # (teachers, tasks, seeds)
        return mean_of_known(values.transpose(1, 0, 2).reshape(len(self.tasks), -1))


def mean_of_known(values: Array) -> Array:
    """Mean over the last axis of the finite values; NaN where there is none."""
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan))


def half_width(values: Array) -> Array:
    """Half of the 95 % t-interval of the mean over the last axis."""
    seeds = values.shape[-1]
    if seeds < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(stats.t.ppf(0.975, seeds - 1) * values.std(-1, ddof=1) / np.sqrt(seeds))
