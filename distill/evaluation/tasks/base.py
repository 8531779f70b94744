"""Downstream tasks: items, labels, and how they are split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from cache_tools import Corpus, Items
from distill.evaluation.probes import Probe

Array = np.ndarray[Any, Any]

Kind = Literal["classification", "regression", "multiclass", "similarity", "pairs", "clustering"]

Key = str | tuple[str, str]

Provenance = Literal["measured", "computed"]

SHARES = (0.8, 0.1, 0.1)  # train, validation, test


class Task(ABC):
    """A labelled data set. Subclass it in any importable module and name the class in YAML.

    Class attributes:
        modality: of the items.

    Attributes:
        kind: what the labels are: ``classification`` (0 and 1, several columns), ``regression``, ``multiclass`` (class
            numbers), ``similarity`` (a score per pair), ``pairs`` (0 and 1 per pair) or ``clustering`` (class numbers).
        provenance: whether the labels were measured in the world or computed from the items.
        probes: probes of an embedding; by default the one of ``kind``.
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
        """Row numbers for training, validation and test."""

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
    first = {item: row for row, item in enumerate(dict.fromkeys(items))}
    number = np.array([first[item] for item in items])
    train, valid, test = (np.flatnonzero(np.isin(number, part)) for part in random_split(len(first), seed))
    return train, valid, test
