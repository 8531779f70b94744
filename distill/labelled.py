"""Tasks of labelled texts, pairs of texts, and images."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cache_tools.corpora.idx import IdxImages, read_idx
from cache_tools.corpora.image import ImageFolder
from cache_tools.corpus import Corpus
from cache_tools.errors import ConfigError, CorpusError
from cache_tools.tables import read_table
from distill.probes import PROBES, Probe
from distill.tasks import Array, Key, Kind, Task, grouped_split

PARTS = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}
VALIDATION = 0.1  # of the training rows, where a data set names no validation rows


class Labelled(Task):
    """A task whose rows carry the data set's own split, by name: ``train``, ``validation`` (or dev), ``test``.

    Without any, the seed cuts 80 % training, 10 % validation and 10 % test rows; without validation rows it takes a tenth
    of the training rows. Split ``5-shot`` (or any number) keeps five training rows of each class, one of them to choose on.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("multiclass",)

    def __init__(self, kind: Kind, probes: list[Probe] | None):
        if kind not in self.kinds:
            raise ConfigError(f"{type(self).__name__} cannot be of kind {kind}; it can be: {', '.join(self.kinds)}")
        self.kind, self.probes = kind, probes or [PROBES[kind]()]
        self._known: dict[Key, list[tuple[str, float]]] = {}  # split name and class of each row of a key

    def offers(self, split: str) -> bool:
        return split == "own" or (self.kind == "multiclass" and _shots(split) is not None)

    def _keep(self, keys: Sequence[Key], parts: Sequence[str], labels: Array) -> tuple[Sequence[Key], Array]:
        """Remember what :meth:`split` needs of each row."""
        self._known = {}
        for key, part, label in zip(keys, parts, labels[:, 0].tolist(), strict=True):
            self._known.setdefault(key, []).append((part.strip().lower(), label))
        return keys, labels

    def split(self, name: str, seed: int, items: Sequence[Key]) -> tuple[Array, Array, Array]:
        if not self.offers(name):
            raise ConfigError(
                f"no split {name!r} of a {self.kind} task; there are: own, and of classes 5-shot, 10-shot ..."
            )
        rows = {key: iter(known) for key, known in self._known.items()}
        named, classes = zip(*(next(rows[item]) for item in items), strict=True)  # a key's rows come in order
        train, valid, test = self._own(seed, items, named)
        if shots := _shots(name):
            train, valid = _few(np.concatenate([train, valid]), shots, seed, np.array(classes))
        return train, valid, test

    def _own(self, seed: int, items: Sequence[Key], named: Sequence[str]) -> tuple[Array, Array, Array]:
        if not any(named):
            none = np.zeros(0, np.int64)
            fits = any(probe.fits for probe in self.probes)
            return grouped_split(items, seed) if fits else (none, none, np.arange(len(items)))
        if unknown := sorted(set(named) - PARTS.keys()):
            raise CorpusError(f"a row's split is {unknown[0]!r}, expected train, validation or test in all rows or in none")
        number = np.array([PARTS[each] for each in named])
        if PARTS["test"] not in number:  # train and val alone, as ImageNet has them
            number[number == PARTS["validation"]] = PARTS["test"]
        tested = {item for part, item in zip(number, items, strict=True) if part == PARTS["test"]}
        number[[part != PARTS["test"] and item in tested for part, item in zip(number, items, strict=True)]] = -1
        train, valid, test = (np.flatnonzero(number == part) for part in range(3))
        if not len(valid):
            train = np.random.default_rng(seed).permutation(train)
            cut = round(VALIDATION * len(train))
            train, valid = train[cut:], train[:cut]
        return train, valid, test


def _few(rows: Array, shots: int, seed: int, classes: Array) -> tuple[Array, Array]:
    """So many rows of each class: all but one in five for training, the others to choose on."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    chosen = [shuffled[classes[shuffled] == each][:shots] for each in np.unique(classes[shuffled])]
    held = max(1, shots // 5)
    return np.concatenate([each[held:] for each in chosen]), np.concatenate([each[:held] for each in chosen])


def _shots(split: str) -> int | None:
    found = re.fullmatch(r"(\d+)-shot", split)
    return int(found[1]) if found and int(found[1]) > 1 else None


class TextTask(Labelled):
    """Texts with a class each.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        text: its column of texts.
        label: its column of classes, numbers or names.
        split: its column of split names; the seed cuts the rows where it is missing or empty.
        kind: ``multiclass``, or ``clustering`` of the test rows (of all, where there is no split).
        probes: instead of the kind's own.

    Raises:
        CorpusError: missing file or column, a row without a label.
    """

    modality = "text"
    kinds = ("multiclass", "clustering")

    def __init__(
        self,
        path: Path,
        text: str = "text",
        label: str = "label",
        split: str = "split",
        kind: Kind = "multiclass",
        probes: list[Probe] | None = None,
    ):
        super().__init__(kind, probes)
        self.path, self.text, self.label, self.part = Path(path), text, label, split

    def load(self) -> tuple[Sequence[Key], Array]:
        rows = list(_rows(self.path, [self.text, self.label]))
        labels = class_numbers([row[self.label] for row in rows], self.path)
        return self._keep([row[self.text] for row in rows], [row.get(self.part, "") for row in rows], labels)


class TextPairTask(Labelled):
    """Pairs of texts with a score, or with a label of 0 or 1.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        label: its column of scores or labels.
        kind: ``similarity`` (scores) or ``pairs`` (labels).
        first: its column of first texts ...
        second: ... and of second ones.
        split: its column of split names; the seed cuts the rows where it is missing or empty.

    Raises:
        CorpusError: missing file or column, a label that is no number.
    """

    modality = "text"
    kinds = ("similarity", "pairs")

    def __init__(
        self,
        path: Path,
        label: str = "score",
        kind: Kind = "similarity",
        first: str = "text1",
        second: str = "text2",
        split: str = "split",
    ):
        super().__init__(kind, None)
        self.path, self.label, self.first, self.second, self.part = Path(path), label, first, second, split

    def load(self) -> tuple[Sequence[Key], Array]:
        rows = list(_rows(self.path, [self.first, self.second, self.label]))
        labels = np.array([[self._number(row[self.label], line)] for line, row in enumerate(rows, 2)])
        keys = [(row[self.first], row[self.second]) for row in rows]
        return self._keep(keys, [row.get(self.part, "") for row in rows], labels)

    def _number(self, text: str, line: int) -> float:
        try:
            value = float(text)
        except ValueError:
            raise CorpusError(f"{self.path} row {line}: {self.label} is {text!r}, expected a number") from None
        if not np.isfinite(value):
            raise CorpusError(f"{self.path} row {line}: {self.label} is {text!r}, expected a finite number")
        if self.kind == "pairs" and value not in (0.0, 1.0):
            raise CorpusError(f"{self.path} row {line}: {self.label} is {text!r}, expected 0 or 1")
        return value


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, str]]:
    empty = True
    for row in read_table(path, columns):
        empty = False
        yield row
    if empty:
        raise CorpusError(f"{path} holds no rows")


def class_numbers(names: Sequence[str], path: Path) -> Array:
    """Class names as numbers in the order of the names, (rows, 1).

    Raises:
        CorpusError: on an empty name.
    """
    if "" in names:
        raise CorpusError(f"{path} row {list(names).index('') + 2}: no label, expected the name or number of a class")
    known = {name: float(number) for number, name in enumerate(sorted(set(names)))}
    return np.array([[known[name]] for name in names])


class ImageTask(Labelled):
    """Images in a folder per class, inside a folder per split: ``train/CLASS/...``, ``test/CLASS/...``; or ``CLASS/...``.

    Args:
        path: the folder, zip or tar.
        train: images of each class to train on at most, those that come first.
        test: images of each class to test on at most.
        include: only paths that fit this pattern, for instance ``n01*``.
        probes: by default a linear one; :class:`distill.probes.KnnProbe` is the other that fits.

    Raises:
        CorpusError: when there is no image, or images lie in no folder.
    """

    modality = "image"

    def __init__(
        self,
        path: Path,
        train: int | None = None,
        test: int | None = None,
        include: str = "*",
        probes: list[Probe] | None = None,
    ):
        super().__init__("multiclass", probes)
        self.path, self.limits = Path(path), {"train": train, "test": test}
        self.images = ImageFolder(self.path, include)

    def load(self) -> tuple[Sequence[Key], Array]:
        names = self._names()
        found = [_part_and_class(name) for name in names]
        split = any(part for part, _ in found)
        lone = [name for name, (part, label) in zip(names, found, strict=True) if not label or (split and not part)]
        if lone or not names:
            where = lone[0] if lone else "no image at all"
            raise CorpusError(f"{self.path}: expected images in a folder per class, found {where}")
        labels = class_numbers([label for _, label in found], self.path)
        return self._keep(names, [part for part, _ in found], labels)

    def _names(self) -> list[str]:
        taken: Counter[tuple[str, str]] = Counter()
        chosen = []
        for name in self.images.names():
            part, label = _part_and_class(name)
            taken[part, label] += 1
            limit = self.limits.get(part)
            if limit is None or taken[part, label] <= limit:
                chosen.append(name)
        return chosen

    def corpus(self, name: str) -> Corpus:
        return _Named(self.images, frozenset(self._names()), name)


def _part_and_class(name: str) -> tuple[str, str]:
    """The split and the class that an image's folders name: the class is inside the split, or else the last folder."""
    folders = name.split("/")[:-1]
    at = next((place for place, folder in enumerate(folders) if folder.lower() in PARTS), None)
    if at is None:
        return "", folders[-1] if folders else ""
    return folders[at].lower(), folders[at + 1] if at + 1 < len(folders) else ""


class _Named(Corpus):
    """Some images of a folder, in its order."""

    modality = "image"

    def __init__(self, images: ImageFolder, names: frozenset[str], task: str):
        self.images, self.names, self.task = images, names, task

    @property
    def source(self) -> str:
        return f"task {self.task}"

    def pairs(self) -> Iterator[Any]:
        return ((name, read()) for name, read in self.images.files() if name in self.names)


def in_class_folders(path: Path) -> bool:
    """Whether the first image of a folder, zip or tar lies in a folder that may name its class.

    Raises:
        CorpusError: when the archive is damaged.
    """
    return any(_part_and_class(name)[1] for name, _ in islice(ImageFolder(path).files(), 1))


class IdxTask(Labelled):
    """Images with a class each in pairs of IDX files, MNIST's format: ``...images-idx3-ubyte``, ``...labels-idx1-ubyte``.

    Args:
        images: a split's name (train, test) -> its file of images, gzipped or not, beside the file of labels; one file
            alone has the name ``""``, and the seed cuts its rows.
        probes: as for :class:`ImageTask`.

    Raises:
        CorpusError: when a file is missing, cut short or no IDX file, or the two of a pair differ in length.
    """

    modality = "image"

    def __init__(self, images: dict[str, Path], probes: list[Probe] | None = None):
        super().__init__("multiclass", probes)
        self.images = {part: Path(path) for part, path in images.items()}

    def load(self) -> tuple[Sequence[Key], Array]:
        parts: list[str] = []
        classes: list[Array] = []
        for part, path in self.images.items():
            beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
            images, labels = read_idx(path, 3), read_idx(beside, 1)
            if len(images) != len(labels):
                raise CorpusError(f"{path} holds {len(images)} images and {beside.name} {len(labels)} labels: not a pair")
            parts += [part] * len(labels)
            classes.append(labels)
        names = IdxImages(list(self.images.values())).names()
        return self._keep(names, parts, np.concatenate(classes)[:, None].astype(np.float64))

    def corpus(self, name: str) -> Corpus:
        return IdxImages(list(self.images.values()))
