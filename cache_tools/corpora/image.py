"""Read images: from files in a folder, a zip or a tar, and from data sets of the hub."""

import itertools
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from cache_tools.corpora.base import Corpus
from cache_tools.corpora.dataset import HubDataset
from cache_tools.errors import BadItem, CorpusError
from cache_tools.items.image import Crop, cut_out, decode_image, random_crop

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MAX_BYTES = 1 << 28  # a longer image file is cut here, so every column lists it as damaged

DAMAGED = (  # what the readers of archives raise
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(OSError, EOFError, ValueError, struct.error),
)

Reader = Callable[[], bytes]


class ImageFolder(Corpus):
    """The image files in a folder and its subfolders, or in a zip or tar; the id of an image is its path there.

    A file that cannot be decoded stays in the corpus; every column masks it and lists it in ``skipped.csv``.

    Args:
        path: the folder, ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz``, with jpg, png and webp files.
        include: read only paths that fit this pattern, for instance ``train/*``.
        per_folder: read so many images of each folder at most: with a folder per class, of each class.
        limit: read so many images at most.

    Raises:
        CorpusError: when the folder or archive is not there, is damaged, or holds no image.
    """

    modality = "image"

    def __init__(
        self,
        path: str | os.PathLike[str],
        include: str = "*",
        per_folder: int | None = None,
        limit: int | None = None,
    ):
        self.path, self.include, self.per_folder, self.limit = Path(path), include, per_folder, limit
        self.source = str(self.path)

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        return ((name, read()) for name, read in self.files())

    def names(self) -> list[str]:
        """The ids of all images, in order, without reading the images."""
        return [name for name, _ in self.files()]

    def files(self) -> Iterator[tuple[str, Reader]]:
        """The id of every image and a function that reads it; call the function before you ask for the next image."""
        return itertools.islice(self._included(), self.limit)

    def _included(self) -> Iterator[tuple[str, Reader]]:
        taken: Counter[str] = Counter()
        for name, read in self._all_files():
            folder = name.rpartition("/")[0]
            if fnmatch(name, self.include) and (self.per_folder is None or taken[folder] < self.per_folder):
                taken[folder] += 1
                yield name, read

    def _all_files(self) -> Iterator[tuple[str, Reader]]:
        if self.path.is_dir():
            return _in_folder(self.path)
        if not self.path.is_file():
            raise CorpusError(f"no folder or file {self.path.absolute()}: expected a folder, zip or tar of images")
        try:
            if tarfile.is_tarfile(self.path):  # tested before zip: a tar whose last member is a zip ends like a zip
                return _in_tar(self.path)
        except DAMAGED as error:
            raise _broken(self.path, error) from None
        if zipfile.is_zipfile(self.path):
            return _in_zip(self.path)
        raise CorpusError(f"{self.path}: expected a folder, a zip or a tar of images; it is none, or it is damaged")


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not os.path.basename(name).startswith("._")  # macOS's shadow files


def _text(name: str) -> str:
    """A path as an id; bytes that are not UTF-8 become escapes such as ``\\xff``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _in_folder(folder: Path) -> Iterator[tuple[str, Reader]]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if _is_image(path.name)}
    for name in sorted(paths):  # sorted as text, as in a zip: Path objects sort otherwise
        if not paths[name].is_dir():
            yield _text(name), partial(_read_file, paths[name])


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): mend or remove it") from None


def _broken(path: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{path} is damaged or cut short ({error}): fetch it again")


def _in_zip(path: Path) -> Iterator[tuple[str, Reader]]:
    try:
        opened = zipfile.ZipFile(path)
    except (*DAMAGED, NotImplementedError) as error:
        raise _broken(path, error) from None
    with opened as archive:
        for name in sorted(name for name in archive.namelist() if _is_image(name)):
            yield _text(name), partial(_read_member, path, archive, name)


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as file:
            return file.read(MAX_BYTES)
    except RuntimeError as error:
        raise CorpusError(f"{path}: {name} cannot be read ({error}): unpack the archive and give its folder") from None
    except DAMAGED:
        return b""  # damaged: no decoder accepts this, so every column lists it


def _in_tar(path: Path) -> Iterator[tuple[str, Reader]]:
    """The images in the order of the archive: a compressed tar cannot be read in another order."""
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            for member in archive:
                if member.isfile() and _is_image(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield _text(member.name.removeprefix("./")), partial(_read_rest, path, file)
            while archive.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except DAMAGED as error:
        raise _broken(path, error) from None


def _read_rest(path: Path, file: IO[bytes]) -> bytes:
    try:
        return file.read(MAX_BYTES)
    except DAMAGED as error:
        raise _broken(path, error) from None


class _Member(tarfile.TarInfo):
    """A damaged or missing header is an error here; tarfile alone takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros of a real end
            raise
        except tarfile.HeaderError as error:
            if tarfile_.offset:
                raise tarfile.ReadError(f"no member at byte {tarfile_.offset}: {error}") from None
            raise


class ImageDataset(HubDataset):
    """Images of a Hugging Face data set; see :class:`cache_tools.corpora.dataset.HubDataset`."""

    modality = "image"

    def encoded(self, cell: Any, where: str) -> bytes:
        if cell is None:
            return b""  # no decoder accepts this, so every column lists it
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, dict) or not {"bytes", "path"} <= cell.keys():
            raise CorpusError(f"{where}: expected an image, found {type(cell).__name__}")
        content = cell["bytes"]  # some data sets hold the encoded file, others its path
        return content if isinstance(content, bytes) else _read_file(Path(str(cell["path"])))


class Views(Corpus):
    """Several random crops of every image, each a row of its own: teachers and student see exactly the same pixels.

    View 0 is the image's middle square; every other view is a crop of random place, size and shape, mirrored half of the
    time. A view's id says which crop it is. An epoch shows one view of each image (``data.augmentation: views``).

    Args:
        corpus: the images.
        views: the number of views of each image.
        size: pixels along each side of a view.
        seed: decides the crops.
        least: the smallest share of the image's area that a crop covers.
    """

    modality = "image"

    def __init__(self, corpus: Corpus, views: int = 4, size: int = 256, seed: int = 0, least: float = 0.35):
        if views < 1 or size < 1 or not 0 < least <= 1:
            raise CorpusError(f"views {views}, size {size}, least {least}: expected 1 or more, 1 or more, above 0 to 1")
        self.corpus, self.views, self.size, self.seed, self.least = corpus, views, size, seed, least
        self.source = f"{views} views of {corpus.source}"

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        for identity, item in self.corpus.rows():
            yield from self._views(identity, item)

    def _views(self, identity: str, item: bytes) -> Iterable[tuple[str, bytes]]:
        try:
            image = decode_image(item)
        except BadItem:
            return [(f"{identity}#{view}", item) for view in range(self.views)]  # every column masks and lists these rows
        crops = [Crop.middle(image.size)]
        crops += [random_crop(image.size, self.least, (self.seed, view, identity)) for view in range(1, self.views)]
        return [(f"{identity}#{view} {crop}", cut_out(image, crop, self.size)) for view, crop in enumerate(crops)]
