"""The statistics of probe records, and their tables."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from distill.records import Record


class Duel(NamedTuple):
    """One system against another: mean difference over tasks with its 95 % interval; tasks won, tied and lost."""

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
        split: the one to look at.

    Attributes:
        systems: best mean first.
        values: (systems, tasks, seeds); NaN where nothing was measured.
    """

    def __init__(self, records: Iterable[Record], split: str):
        chosen = [record for record in records if record.split == split]
        self.kinds = {record.system: record.kind for record in chosen}
        self.tasks = list(dict.fromkeys(record.task for record in chosen))
        self.metrics = {record.task: record.metric for record in chosen}
        self.test_rows = {record.task: (record.seen_rows, record.test_rows) for record in chosen}
        self.provenance = {record.task: record.provenance for record in chosen}
        self.seeds = sorted({record.seed for record in chosen})
        cells = {(record.system, record.task, record.seed): record.score for record in chosen}
        systems = list(self.kinds)
        grid = [[[cells.get((s, t, e), np.nan) for e in self.seeds] for t in self.tasks] for s in systems]
        values = np.array(grid)
        order = np.argsort(-np.nanmean(values, (1, 2)), kind="stable")
        self.systems, self.values = [systems[each] for each in order], values[order]

    @property
    def several(self) -> bool:
        """Whether there are seeds to compare: of one no task is won or lost, and no mean has an interval."""
        return len(self.seeds) > 1

    def mean(self) -> np.ndarray[Any, Any]:
        """Mean over tasks and seeds, (systems,)."""
        means: np.ndarray[Any, Any] = np.nanmean(self.values, (1, 2))
        return means

    def half_width(self) -> np.ndarray[Any, Any]:
        """Half of the 95 % t-interval of :meth:`mean` over seeds, (systems,); NaN with one seed."""
        deviation = self.values - mean_of_known(self.values)[..., None]  # a seed that a task lacks moves no mean
        return half_width(np.nan_to_num(deviation).mean(1))

    def mean_rank(self) -> np.ndarray[Any, Any]:
        """Mean over tasks and seeds of the system's rank, 1 is best, (systems,)."""
        means: np.ndarray[Any, Any] = np.nanmean(self.ranks(), (1, 2))
        return means

    def ranks(self) -> np.ndarray[Any, Any]:
        """Rank of each system on each task and seed, 1 is best, ties share, (systems, tasks, seeds)."""
        ranks: np.ndarray[Any, Any] = stats.rankdata(-self.values, axis=0, nan_policy="omit")
        return ranks

    def rank_interval(self, resamples: int = 2000) -> np.ndarray[Any, Any]:
        """95 % interval of :meth:`mean_rank`, (2, systems): a bootstrap over tasks, for others might have been asked."""
        per_task = mean_of_known(self.ranks())  # (systems, tasks)
        drawn = np.random.default_rng(0).integers(len(self.tasks), size=(resamples, len(self.tasks)))
        interval: np.ndarray[Any, Any] = np.nanpercentile(np.nanmean(per_task[:, drawn], 2), [2.5, 97.5], axis=1)
        return interval

    def kept(self) -> np.ndarray[Any, Any]:
        """Each system's mean as a share of that of the concatenated teachers, (systems,); NaN without them."""
        mean = self.mean()
        whole = [mean[row] for row, system in enumerate(self.systems) if self.kinds[system] == "concatenated"]
        shares: np.ndarray[Any, Any] = mean / whole[0] if whole and whole[0] > 0 else np.full(len(mean), np.nan)
        return shares

    def against(self, one: int, other: int, resamples: int = 2000) -> "Duel":
        """System ``one`` against ``other``, task by task.

        A task is won where the t-interval of the difference over seeds is above zero, lost where it is below, tied
        otherwise. The mean difference has a bootstrap interval over tasks and seeds together.
        """
        difference = self.values[one] - self.values[other]  # (tasks, seeds)
        middle, half = np.nanmean(difference, 1), half_width(difference)
        half = np.where(np.isnan(half), np.inf, half)  # of one seed nothing can be said
        random, (tasks, seeds) = np.random.default_rng(0), difference.shape
        drawn = random.integers(tasks, size=(resamples, tasks, 1)), random.integers(seeds, size=(resamples, 1, seeds))
        low, high = np.nanpercentile(np.nanmean(difference[drawn], (1, 2)), [2.5, 97.5])
        won, lost = int((middle - half > 0).sum()), int((middle + half < 0).sum())
        if difference.size == 1:
            low = high = np.nan
        return Duel(float(np.nanmean(difference)), float(low), float(high), won, tasks - won - lost, lost)

    def critical_difference(self) -> float:
        """Of mean ranks over tasks: Nemenyi's test at 5 % (Demšar, JMLR 2006, eq. 6)."""
        count = len(self.systems)
        quantile = stats.studentized_range.ppf(0.95, count, np.inf) / np.sqrt(2)
        return float(quantile * np.sqrt(count * (count + 1) / (6 * len(self.tasks))))

    def not_told_apart(self, ranks: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        """First and last of each longest row of systems within the critical difference; ``ranks`` in ascending order."""
        last = [int(np.searchsorted(ranks, each + self.critical_difference(), "right")) - 1 for each in ranks]
        spans = [(first, end) for first, end in enumerate(last) if end > first]
        return [span for number, span in enumerate(spans) if number == 0 or span[1] > spans[number - 1][1]]

    def teachers_mean(self) -> np.ndarray[Any, Any]:
        """Mean over the teachers per task, (tasks,)."""
        rows = [row for row, system in enumerate(self.systems) if self.kinds[system] == "teachers"]
        means = mean_of_known(self.values[rows].transpose(1, 0, 2).reshape(len(self.tasks), -1))
        return means


def mean_of_known(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over the last axis of what was measured; NaN where nothing was."""
    known = np.isfinite(values)
    means: np.ndarray[Any, Any] = np.where(known, values, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)
    return means


def half_width(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Half of the 95 % t-interval of the mean over the last axis."""
    seeds = values.shape[-1]
    if seeds < 2:
        return np.full(values.shape[:-1], np.nan)
    widths: np.ndarray[Any, Any] = stats.t.ppf(0.975, seeds - 1) * values.std(-1, ddof=1) / np.sqrt(seeds)
    return widths
