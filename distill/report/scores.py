"""Statistics of scores: means, ranks and their intervals."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distill.records import Record

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

NAMED = 3  # of what is left out, in a message; the rest is counted

EVERY = "every"  # kind of split: the mean over the splits that a task has, and over seeds


class Scores:
    """Records arranged as systems x tasks x seeds for one split.

    Args:
        records: from an evaluation; all splits may be mixed.
        split: the kind of split to look at.
        group: which tasks or which probe the records are of, in words; empty if they are all.

    Attributes:
        tasks: in the order of the records; metrics, provenance and test_rows are by task.
        systems: best mean first.
        values: (systems, tasks, seeds); NaN where nothing was measured.
        folds: that a score is the mean of.
        marked: name of a score of marked rows, as ``r2 cliff`` -> its tasks, and its mean over them, (systems,).
    """

    def __init__(self, records: Iterable[Record], split: str, group: str = ""):
        chosen = [record for record in records if record.split == split]
        self.split, self.group = split, group
        self.kinds = {record.system: record.kind for record in chosen}
        self.tasks = list(dict.fromkeys(record.task for record in chosen))
        self.metrics = {record.task: record.metric for record in chosen}
        self.test_rows = {record.task: (record.seen_rows, record.test_rows) for record in chosen}
        self.provenance = {record.task: record.provenance for record in chosen}
        self.seeds = sorted({record.seed for record in chosen})
        self.folds = max(record.folds for record in chosen)
        self.systems = list(self.kinds)
        values = self._arranged({_cell_of(record): record.score for record in chosen})
        order = np.argsort(-np.nanmean(mean_of_known(values), 1), kind="stable")
        self.systems, self.values = [self.systems[row] for row in order], values[order]
        names = dict.fromkeys(name for record in chosen for name in record.beside if name.startswith(f"{record.metric} "))
        self.marked: dict[str, tuple[int, Array]] = {}
        for name in names:
            marked = {_cell_of(record): record.beside[name] for record in chosen if name in record.beside}
            self.marked[name] = len({task for _, task, _ in marked}), mean_of_known(mean_of_known(self._arranged(marked)))

    def _arranged(self, cells: Mapping[tuple[str, str, int], float]) -> NDArray[Any]:
        """Values of systems, tasks and seeds as (systems, tasks, seeds); NaN where there is none."""
        rows = [[[cells.get((s, t, e), np.nan) for e in self.seeds] for t in self.tasks] for s in self.systems]
        return np.array(rows)

    @property
    def title(self) -> str:
        """Kind of split, and the group."""
        return f"{self.split.capitalize()} split" + (f", {self.group}" if self.group else "")

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
        """Mean over tasks of the mean over seeds, (systems,)."""
        return np.asarray(np.nanmean(mean_of_known(self.values), 1))

    def half_width(self) -> Array:
        """Half of the 95 % t-interval of :meth:`mean` over seeds, (systems,); NaN with one seed."""
        deviation = self.values - mean_of_known(self.values)[..., None]  # a seed that a task lacks moves no mean
        return half_width(np.nan_to_num(deviation).mean(1))

    def mean_rank(self) -> Array:
        """Mean over tasks of the system's mean rank over seeds, 1 is best, (systems,)."""
        return np.asarray(np.nanmean(mean_of_known(self.ranks()), 1))

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

    def teachers_mean(self) -> Array:
        """Mean over the teachers per task, (tasks,)."""
        values = self.values[self.of_kind("teachers")]  # (teachers, tasks, seeds)
        return mean_of_known(values.transpose(1, 0, 2).reshape(len(self.tasks), -1))


def comparable_scores(records: Sequence[Record]) -> dict[str, Scores]:
    """Scores by kind of split, by probe if some tasks have several, and by the systems measured.

    So means and ranks are over tasks that all systems have. Seeds of a task that not all of its systems have are left out,
    with a warning.
    """
    several = any(record.probe and record.task.endswith(f" {record.probe}") for record in records)

    def probe_of(record: Record) -> str:
        return f", {record.probe} probe" if several and record.probe else ""

    measured: dict[tuple[str, str, str], set[str]] = {}
    for record in records:
        measured.setdefault((record.split, probe_of(record), record.task), set()).add(record.system)
    groups: dict[str, dict[frozenset[str], list[str]]] = {}  # split and probe -> systems -> tasks
    for (split, probe, task), systems in measured.items():
        groups.setdefault(f"{split}{probe}", {}).setdefault(frozenset(systems), []).append(task)
    kept = _paired(records, lambda record: (record.task, record.split))
    if len(kept) < len(records):
        where = sorted(set(map(_cell, records)) - set(map(_cell, kept)))
        more = f" and {len(where) - NAMED} more" if len(where) > NAMED else ""
        log.warning("left out of means, as not all systems have them (task, split, seed): %s%s", where[:NAMED], more)
    comparable = {}
    for group, by_systems in groups.items():
        for tasks in by_systems.values():
            more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
            name = group if len(by_systems) == 1 else f"{group}, {tasks[0]}{more}"
            chosen = [record for record in kept if record.task in tasks and f"{record.split}{probe_of(record)}" == group]
            if chosen:
                split = chosen[0].split
                comparable[name] = Scores(chosen, split, name.removeprefix(split).removeprefix(", "))
    return comparable


def scores_per_task(records: Sequence[Record]) -> dict[str, Scores]:
    """The same with every task once: the mean over those of its splits and seeds that all of its systems have."""
    return comparable_scores(mean_per_task(_paired(records, lambda record: record.task)))


def _paired(records: Sequence[Record], place: Callable[[Record], object]) -> list[Record]:
    """Those records whose task, split and seed all systems of the same ``place`` have."""
    systems: dict[object, set[str]] = {}
    cells: dict[object, set[str]] = {}
    for record in records:
        systems.setdefault(place(record), set()).add(record.system)
        cells.setdefault(_cell(record), set()).add(record.system)
    return [record for record in records if cells[_cell(record)] == systems[place(record)]]


def _cell_of(record: Record) -> tuple[str, str, int]:
    return record.system, record.task, record.seed


def _cell(record: Record) -> tuple[str, str, int]:
    return record.task, record.split, record.seed


def mean_per_task(records: Iterable[Record]) -> list[Record]:
    """A record for each system and task: the mean over kinds of split of the mean over seeds. So a task counts once."""
    cells: dict[tuple[str, str], dict[str, list[Record]]] = {}  # system and task -> split -> records
    for record in records:
        cells.setdefault((record.system, record.task), {}).setdefault(record.split, []).append(record)
    return [replace(_mean([_mean(of) for of in cell.values()]), split=EVERY, seed=0) for cell in cells.values()]


def _mean(records: Sequence[Record]) -> Record:
    return replace(records[0], score=float(np.mean([record.score for record in records])))


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
