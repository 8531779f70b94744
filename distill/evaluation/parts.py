"""Which rows a probe is fitted on, chosen by and scored on: one split, k folds, or a few rows of either."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distill.evaluation.probes import LATER, TRAINED
from distill.evaluation.tasks.base import Array, Key, Task, copies, folds

INNER = 3  # folds of the training rows, when there are no validation rows

CHOICE_ROWS = 1000  # at most, that inner folds choose options on; more change little, and kernels take their cube in time


class Parts(NamedTuple):
    """Row numbers of one split, or of one of k folds.

    Attributes:
        rows: to fit on, those to choose options by included.
        fold: of each of them, (rows,); see :meth:`distill.evaluation.probes.Probe.fit`.
        test: to score.
    """

    rows: Array
    fold: Array
    test: Array


def offers(task: Task, split: str) -> bool:
    """Whether a task has a split; ``100-rows``, or another number, is one of every task."""
    return few_rows(split) is not None or task.offers(split)


def few_rows(split: str) -> int | None:
    """How many training rows a split of such a name keeps.

    >>> few_rows("100-rows"), few_rows("scaffold")
    (100, None)
    """
    match = re.fullmatch(r"([1-9]\d*)-rows", split)
    return int(match[1]) if match else None


def parts_of(task: Task, split: str, seed: int, items: Sequence[Key], count: int, unseen: bool) -> list[Parts]:
    """The parts of a task's rows: one for each of ``count`` folds, where the rows can be folded; one otherwise.

    Without validation rows, options are chosen by three inner folds of the training rows.

    Args:
        task: whose rows they are.
        split: its name; ``100-rows`` keeps so many training rows of each random or own split, and leaves out splits that
            have not so many.
        seed: of all that is drawn.
        items: all rows.
        count: of folds; 0 for one split.
        unseen: score validation rows, so that the test rows stay unseen.
    """
    few = few_rows(split)
    base = split if few is None else "random" if task.offers("random") else "own"
    groups = task.groups(base, items) if count else None
    cuts: Sequence[tuple[Array, Array, Array]]
    if groups is not None:
        cuts = _folds(groups, count, seed)
    else:
        train, valid, test = task.split(base, seed, items)
        cuts = [_without_test(train, valid, seed) if unseen else (train, valid, test)]
    if few is not None:
        cuts = list(_few(cuts, few, seed))
    inside = copies(items) if groups is None else groups
    return [_parts(*cut, inside) for cut in cuts]


def _folds(groups: Array, count: int, seed: int) -> list[tuple[Array, Array, Array]]:
    """Rows for training and test of each fold; none for validation."""
    outer, none = folds(groups, count, seed), np.zeros(0, int)
    return [(np.flatnonzero(outer != number), none, np.flatnonzero(outer == number)) for number in range(outer.max() + 1)]


def _few(cuts: Sequence[tuple[Array, Array, Array]], few: int, seed: int) -> Iterator[tuple[Array, Array, Array]]:
    """A few rows of those for training and validation, where there are so many."""
    for number, (train, valid, test) in enumerate(cuts):
        rows = np.random.default_rng([seed, number]).permutation(np.concatenate([train, valid]))
        if len(rows) >= few:
            yield rows[:few], rows[:0], test


def _parts(train: Array, valid: Array, test: Array, groups: Array) -> Parts:
    if len(valid) or not len(train):
        fold = np.concatenate([np.full(len(train), TRAINED), np.zeros(len(valid), int)])
        return Parts(np.concatenate([train, valid]), fold, test)
    return Parts(train, _inner(groups[train]), test)


def _inner(groups: Array) -> Array:
    """Inner folds of rows, by groups where there are several, of at most 1,000 rows."""
    fold = folds(groups if np.ptp(groups) else np.arange(len(groups)), INNER, seed=0)
    fold[np.random.default_rng(0).permutation(len(fold))[CHOICE_ROWS:]] = LATER
    return fold


def _without_test(train: Array, valid: Array, seed: int) -> tuple[Array, Array, Array]:
    """A tenth of the training rows to choose on, and the validation rows, or another tenth, to score on."""
    if not len(valid):
        train, valid = _tenth(train, seed)
    return *_tenth(train, seed), valid


def _tenth(rows: Array, seed: int) -> tuple[Array, Array]:
    """Nine tenths of the rows, and the others."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    cut = len(shuffled) // 10
    return shuffled[cut:], shuffled[:cut]
