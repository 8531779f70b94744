"""Read images and labels from IDX files, the format of MNIST and its successors."""

import gzip
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.corpora.base import Corpus
from cache_tools.corpora.tables import DAMAGED, require_file
from cache_tools.errors import CorpusError

MAX_BYTES = 1 << 31  # of a file, unpacked: three times the largest of the EMNIST files

Array = np.ndarray[Any, np.dtype[np.uint8]]


class IdxImages(Corpus):
    """The grey images of IDX files, as PNG; an image's id is the name of its file and its row there.

    Args:
        paths: files of images, gzipped or not.

    Raises:
        CorpusError: when a file is missing, cut short, or no IDX file of images.
    """

    modality = "image"

    def __init__(self, paths: Sequence[Path]):
        self.paths = [Path(path) for path in paths]
        self.source = ", ".join(map(str, self.paths))

    def names(self) -> list[str]:
        """The ids of all images, in order."""
        return [name for name, _ in self._images()]

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        from PIL import Image

        for name, pixels in self._images():
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=0)
            yield name, file.getvalue()

    def _images(self) -> Iterator[tuple[str, Array]]:
        for path in self.paths:
            name = path.name.removesuffix(".gz")
            yield from ((f"{name}/{row}", pixels) for row, pixels in enumerate(read_idx(path, 3)))


def read_idx(path: Path, axes: int) -> Array:
    """The values of an IDX file: (images, rows, columns) of a file of images, (labels,) of a file of labels.

    The format (http://yann.lecun.com/exdb/mnist): two zeros, the type (8: bytes), the number of axes, the length of each
    axis as a big-endian integer of four bytes, the values.

    Args:
        path: the file, gzipped or not.
        axes: the number of axes that it must have.

    Raises:
        CorpusError: when the file is missing, cut short, or no such file.
    """
    require_file(path)
    head = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(head)
            lengths = np.frombuffer(content[4:].ljust(head - 4, b"\0"), ">u4").tolist()
            size = head + math.prod(lengths)
            if content[:4] == bytes([0, 0, 8, axes]) and size <= MAX_BYTES:
                content += file.read(size - head + 1)  # one more than promised, if there are more
    except (OSError, *DAMAGED) as error:
        raise CorpusError(f"{path} cannot be read ({error}): fetch it again") from None
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) != size:
        raise CorpusError(
            f"{path} is no IDX file of {axes} axes of bytes, or it is cut short, or longer than {MAX_BYTES:,} bytes (first "
            f"bytes {content[:4].hex()}, axes {lengths}, {len(content)} bytes read): fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(lengths)
