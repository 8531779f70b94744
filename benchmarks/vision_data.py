"""Lay out images for students of images: a corpus without labels, and five tasks whose test images are not in it.

``python benchmarks/vision_data.py DATA OUT`` reads ``DATA/vision`` and writes ``OUT/corpus`` and ``OUT/tasks``, and more
images without labels, for larger students, to ``OUT/more``. No corpus has an image of MNIST: that is the data set that the
students never saw.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cache_tools.corpora.idx import IdxImages, read_idx
from cache_tools.corpora.image import ImageFolder, Views

CROPS, SIDE = 3, 160  # of each photograph in the corpus, the first from its middle; pixels


class Share(NamedTuple):
    """How many images of each class go where. A probe's training image may also be in the corpus; a test image may not."""

    test: int
    train: int
    corpus: int
    more: int = 0


SHARES = {
    "cifar10": Share(50, 50, 300),
    "tiny_imagenet_train_75pc": Share(3, 5, 25, 47),
    "flowers12_160": Share(16, 64, 64),
    "hymenoptera_160": Share(100, 200, 200),
    "mnist": Share(50, 50, 0),
}

PHOTOGRAPHS = ("flowers12_160", "hymenoptera_160")

Item = tuple[str, str, bytes]  # part of the data set (train, val, test; "" for all), class, image file


def in_folders(path: Path) -> Iterator[Item]:
    """The images of a zip with CLASS/IMAGE or PART/CLASS/IMAGE."""
    for name, item in ImageFolder(path).pairs():
        *part, label, _ = name.split("/")
        yield "".join(part), label, item


def mnist(folder: Path) -> Iterator[Item]:
    """The images of MNIST's test files."""
    labels = read_idx(folder / "mnist_t10k-labels-idx1-ubyte.gz", 1)
    images = IdxImages([folder / "mnist_t10k-images-idx3-ubyte.gz"]).pairs()
    return (("", str(label), item) for label, (_, item) in zip(labels, images, strict=True))


def lay_out(name: str, items: Iterator[Item], share: Share, out: Path) -> None:
    """Write one data set's images. Of a data set without parts, the first images of each class are the test images."""
    counts: Counter[tuple[str, str]] = Counter()  # (part, class)
    for part, label, item in items:
        number = counts[part, label] - (0 if part else share.test)  # negative: a test image
        counts[part, label] += 1
        if part in ("test", "val"):
            number -= share.test
        place = f"{label}/{counts[part, label]:04}.png"
        if number < 0:
            _write(out / "tasks" / name / "test" / place, item)
        elif part in ("train", ""):
            if number < share.train:
                _write(out / "tasks" / name / "train" / place, item)
            if number < share.corpus:
                _write(out / ("photographs" if name in PHOTOGRAPHS else "corpus") / name / place, item)
            elif number < share.corpus + share.more:
                _write(out / "more" / name / place, item)


def _write(path: Path, item: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(item)


def main(data: Path, out: Path) -> None:
    """Write everything."""
    for name, share in SHARES.items():
        lay_out(name, mnist(data) if name == "mnist" else in_folders(data / f"{name}.zip"), share, out)
    for identity, item in Views(ImageFolder(out / "photographs"), CROPS, SIDE).pairs():
        _write(out / "corpus" / f"{identity}.png", item)


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "vision", Path(sys.argv[2]))
