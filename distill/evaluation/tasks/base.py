"""Downstream tasks: items, labels, and how they are split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from cache_tools import Corpus, Items
from distill.evaluation.probes import Probe

Array = np.ndarray[Any, Any]

Kind = Literal["classification", "regression", "multiclass", "similarity", "pairs", "clustering", "search"]

Key = str | tuple[str, str]

Provenance = Literal["measured", "computed"]

SHARES = (0.8, 0.1, 0.1)  # train, validation, test


class Task(ABC):
    """A labelled data set. Subclass it in any importable module and name the class in YAML.

    Class attributes:
        modality: of the items.

    Attributes:
        kind: what the labels are: ``classification`` (0 and 1, several columns), ``regression``, ``multiclass`` (class
            numbers), ``similarity`` (a score per pair), ``pairs`` (0 and 1 per pair), ``clustering`` (class numbers) or
            ``search`` (1 for actives, 0 for decoys, several columns, and last the number of a group; see
            :class:`distill.evaluation.probes.SearchProbe`).
        provenance: whether the labels were measured in the world or computed from the items.
        probes: probes of an embedding; by default those that the evaluation has for ``kind``.
    """

    modality: ClassVar[str]
    kind: Kind
    provenance: Provenance = "measured"
    probes: Sequence[Probe] = ()

    @abstractmethod
    def load(self) -> tuple[Sequence[Key], Array]:
        """Items (or pairs, or names of items), and labels (items, labels) in float64; a missing label is NaN."""

    @abstractmethod
    def split(self, name: str, seed: int, items: Sequence[Key]) -> tuple[Array, Array, Array]:
        """Row numbers for training, validation and test; without validation rows, inner folds of training rows serve."""

    def place(self) -> Path | None:
        """The file or folder of its items, in its attribute ``path``; None when they come with a package."""
        return getattr(self, "path", None)

    def groups(self, split: str, items: Sequence[Key]) -> Array | None:
        """Rows that a split keeps together have one number, (rows,); None of a split that cannot be drawn as folds."""
        return None

    def marks(self) -> dict[str, Array]:
        """Rows that also have scores of their own: a mark's name -> whether a row of :meth:`load` has it, (rows,)."""
        return {}

    def apart(self) -> list[str]:
        """The labels' names, when each label counts as a task of its own; none when a score is their mean."""
        return []

    def offers(self, split: str) -> bool:
        """Whether the task has that kind of split."""
        return True

    def corpus(self, name: str) -> Corpus:
        """The distinct items, in the order in which they first appear."""
        return Items(distinct(self.load()[0]), self.modality, f"task {name}")


def distinct(keys: Sequence[Key]) -> list[str]:
    """Every item once, in the order in which it first appears, also inside pairs."""
    return list(dict.fromkeys(item for key in keys for item in ((key,) if isinstance(key, str) else key)))


def random_split(rows: int, seed: int) -> tuple[Array, Array, Array]:
    """Row numbers in random order: 80 % training, 10 % validation and 10 % test."""
    order = np.random.default_rng(seed).permutation(rows)
    train, valid = round(SHARES[0] * rows), round((SHARES[0] + SHARES[1]) * rows)
    return order[:train], order[train:valid], order[valid:]


def grouped_split(items: Sequence[Key], seed: int) -> tuple[Array, Array, Array]:
    """Like :func:`random_split`, but rows of one item stay together."""
    number = copies(items)
    train, valid, test = (np.flatnonzero(np.isin(number, part)) for part in random_split(1 + int(number.max()), seed))
    return train, valid, test


def copies(items: Sequence[Key]) -> Array:
    """A number for each different item, (rows,), in the order in which they first appear."""
    first = {item: number for number, item in enumerate(dict.fromkeys(items))}
    return np.array([first[item] for item in items])


def folds(groups: Array, count: int, seed: int) -> Array:
    """The number of each row's fold, (rows,): groups stay together, and folds are about equally large.

    Groups come in random order, larger ones first, each into the fold with the fewest rows, as in scikit-learn's
    ``GroupKFold``. Too few groups fill fewer folds.

    Args:
        groups: the number of each row's group, (rows,).
        count: of folds.
        seed: of the order.

    >>> folds(np.array([0, 0, 1, 2]), 2, seed=0).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    rows, fold_of = np.zeros(min(count, len(sizes)), int), np.zeros(len(sizes), int)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of[group] = rows.argmin()
        rows[fold_of[group]] += sizes[group]
    found: Array = fold_of[number]
    return found
