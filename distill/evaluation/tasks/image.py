"""Tasks of labelled images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools import ConfigError, Corpus, CorpusError, IdxImages, ImageFolder, read_idx
from distill.evaluation.probes import Probe
from distill.evaluation.tasks.base import Array, Key
from distill.evaluation.tasks.labelled import Labelled, class_numbers
from distill.evaluation.tasks.tables import PARTS


class ImageTask(Labelled):
    """Images in a folder per class, inside a folder per split: ``train/CLASS/...``, ``test/CLASS/...``; or ``CLASS/...``.

    Args:
        path: the folder, zip or tar.
        train: the maximum of training images of each class; the first ones are used.
        test: the maximum of test images of each class.
        include: only paths that match this pattern, for instance ``n01*``.
        probes: by default a linear one; :class:`distill.evaluation.probes.KnnProbe` is the other that suits.

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
        folders = [_part_and_class(name) for name in names]
        split = any(part for part, _ in folders)
        lone = [name for name, (part, label) in zip(names, folders, strict=True) if not label or (split and not part)]
        if lone or not names:
            where = lone[0] if lone else "no image at all"
            raise CorpusError(f"{self.path}: expected images in a folder per class, found {where}")
        labels = class_numbers([label for _, label in folders])
        return self._keep(names, [part for part, _ in folders], labels)

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
    """The split and the class of an image, named by its folders: the class lies inside the split, or is the last folder."""
    folders = name.split("/")[:-1]
    at = next((place for place, folder in enumerate(folders) if folder.lower() in PARTS), None)
    if at is None:
        return "", folders[-1] if folders else ""
    return folders[at].lower(), folders[at + 1] if at + 1 < len(folders) else ""


class _Named(Corpus):
    """Some images of a folder, in its order."""

    modality = "image"

    def __init__(self, images: ImageFolder, names: frozenset[str], task: str):
        self.images, self.names, self.source = images, names, f"task {task}"

    def pairs(self) -> Iterator[Any]:
        return ((name, read()) for name, read in self.images.files() if name in self.names)


def in_class_folders(path: Path) -> bool:
    """Whether the first image of a folder, zip or tar lies in a folder that may name its class.

    Raises:
        CorpusError: when the archive is damaged.
    """
    return any(_part_and_class(name)[1] for name, _ in islice(ImageFolder(path).files(), 1))


class IdxTask(Labelled):
    """Images and their classes in pairs of IDX files, MNIST's format: ``...images-idx3-ubyte``, ``...labels-idx1-ubyte``.

    Args:
        images: a split's name (train, test) -> its file of images, gzipped or not; the file of labels lies in the same
            folder. A single file has the name ``""``, and the seed splits its rows.
        probes: as for :class:`ImageTask`.

    Raises:
        ConfigError: when a split has another name.
        CorpusError: when a file is missing, cut short or no IDX file, or the two of a pair differ in length.
    """

    modality = "image"

    def __init__(self, images: dict[str, Path], probes: list[Probe] | None = None):
        super().__init__("multiclass", probes)
        self.images = {part.strip().lower(): Path(path) for part, path in images.items()}
        if (unknown := sorted(self.images.keys() - PARTS.keys())) and self.images.keys() != {""}:
            raise ConfigError(f"images names the split {unknown[0]!r}, expected train, validation or test, or one file: ''")

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
