"""Tasks whose rows name their split, as those of texts and images do."""

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cache_tools import ConfigError
from distill.evaluation.probes import PROBES, Probe
from distill.evaluation.tasks.base import Array, Key, Kind, Task, copies, grouped_split
from distill.evaluation.tasks.tables import PARTS

VALIDATION = 0.1  # of the training rows, when a data set names no validation rows


class Labelled(Task):
    """A task whose rows name the data set's own split: ``train``, ``validation`` (or dev), ``test``.

    When no row does, the seed draws 80 % training, 10 % validation and 10 % test rows; when no row is for validation, it
    draws a tenth of the training rows. Split ``5-shot`` (or any number) keeps five training rows of each class, one of them
    for validation.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("multiclass",)

    def __init__(self, kind: Kind, probes: list[Probe] | None):
        if kind not in self.kinds:
            raise ConfigError(f"{type(self).__name__} cannot be of kind {kind}; it can be: {', '.join(self.kinds)}")
        self.kind, self.probes = kind, probes or []
        self._rows: dict[Key, list[tuple[str, float]]] = {}  # split name and class of each row of a key

    def offers(self, split: str) -> bool:
        return split == "own" or (self.kind == "multiclass" and _shots(split) is not None)

    def _keep(self, keys: Sequence[Key], parts: Sequence[str], labels: Array) -> tuple[Sequence[Key], Array]:
        """Remember what :meth:`split` needs of each row; a part is a key of ``PARTS``, or "" in all rows."""
        self._rows = {}
        for key, part, label in zip(keys, parts, labels[:, 0].tolist(), strict=True):
            self._rows.setdefault(key, []).append((part, label))
        return keys, labels

    def groups(self, split: str, items: Sequence[Key]) -> Array | None:
        """Copies of an item, when no row names its split."""
        named = any(part for facts in self._rows.values() for part, _ in facts)
        return None if named or split != "own" or not self._fits else copies(items)

    @property
    def _fits(self) -> bool:
        return any(probe.fits for probe in self.probes) if self.probes else PROBES[self.kind].fits

    def split(self, name: str, seed: int, items: Sequence[Key]) -> tuple[Array, Array, Array]:
        if not self.offers(name):
            raise ConfigError(
                f"no split {name!r} of a {self.kind} task; there are: own, and of classes 5-shot, 10-shot ..."
            )
        rows = {key: iter(facts) for key, facts in self._rows.items()}
        named, classes = zip(*(next(rows[item]) for item in items), strict=True)  # a key's rows come in order
        train, valid, test = self._own(seed, items, named)
        if shots := _shots(name):
            train, valid = _few(np.concatenate([train, valid]), shots, seed, np.array(classes))
        return train, valid, test

    def _own(self, seed: int, items: Sequence[Key], named: Sequence[str]) -> tuple[Array, Array, Array]:
        if not any(named):
            none = np.zeros(0, np.int64)
            return grouped_split(items, seed) if self._fits else (none, none, np.arange(len(items)))
        train, valid, test = numbered(named, items)
        if not len(valid):
            train = np.random.default_rng(seed).permutation(train)
            cut = round(VALIDATION * len(train))
            train, valid = train[cut:], train[:cut]
        return train, valid, test


def numbered(named: Sequence[str], items: Sequence[Key]) -> tuple[Array, Array, Array]:
    """Row numbers for training, validation and test by the rows' keys of ``PARTS``; copies of test items are left out."""
    number = np.array([PARTS[name] for name in named])
    if PARTS["test"] not in number:  # only train and val, as in ImageNet
        number[number == PARTS["validation"]] = PARTS["test"]
    tested = {item for part, item in zip(number, items, strict=True) if part == PARTS["test"]}
    number[[part != PARTS["test"] and item in tested for part, item in zip(number, items, strict=True)]] = -1
    train, valid, test = (np.flatnonzero(number == part) for part in range(3))
    return train, valid, test


def _few(rows: Array, shots: int, seed: int, classes: Array) -> tuple[Array, Array]:
    """``shots`` rows of each class: one in five for validation, the others for training."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    chosen = [shuffled[classes[shuffled] == label][:shots] for label in np.unique(classes[shuffled])]
    held = max(1, shots // 5)
    return np.concatenate([few[held:] for few in chosen]), np.concatenate([few[:held] for few in chosen])


def _shots(split: str) -> int | None:
    match = re.fullmatch(r"(\d+)-shot", split)
    return int(match[1]) if match and int(match[1]) > 1 else None


def class_numbers(names: Sequence[str]) -> Array:
    """The number of each row's class, (rows, 1); classes are numbered in the order of their names."""
    return np.unique(np.array(names, object), return_inverse=True)[1].reshape(-1, 1).astype(np.float64)
