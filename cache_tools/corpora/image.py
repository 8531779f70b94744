"""Read images: from files in a folder, a zip or a tar, and from data sets of the hub."""

import lzma
import os
import posixpath
import stat
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

from cache_tools.corpora.base import Corpus, warn_once
from cache_tools.corpora.dataset import HubDataset
from cache_tools.corpora.tables import require_file
from cache_tools.errors import BadItem, CorpusError
from cache_tools.items.image import ENDINGS, Crop, cut_out, decode_image, random_crop

MAX_BYTES = 1 << 28  # of an image file: 90 million pixels of three bytes, the most that is decoded
START = 1 << 12  # bytes that are kept of a longer one, so that every column lists it as damaged
STEP = 1 << 16  # bytes that are read at once
MAX_HEADER = 1 << 20  # bytes of a name in a tar
LINKS = 40  # from link to link, as many as Linux follows

DAMAGED = (  # what the readers of archives raise
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(OSError, EOFError, ValueError, struct.error),
)

HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

Reader = Callable[[], bytes]
File = tuple[str, Reader | None]  # without a reader: a link that leads to no file, a pipe, a device


class ImageFolder(Corpus):
    """The image files in a folder and its subfolders, or in a zip or tar; the id of an image is its path there.

    Links are followed. A file that cannot be decoded stays in the corpus; every column masks it and lists it in
    ``skipped.csv``. A warning counts the files that are left out because they are no images by their names.

    Args:
        path: the folder, ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz``, with jpg, png, webp, gif, bmp and tif files.
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
        taken: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        example: dict[str, str] = {}  # ending -> name
        for name, read in self._all_files():
            folder = name.rpartition("/")[0]
            if taken.total() == self.limit:
                break
            if not fnmatch(name, self.include):
                continue
            if read is None or not _is_image(name):
                ending = _ending(name, read)
                left_out[ending] += 1
                example.setdefault(ending, name)
            elif self.per_folder is None or taken[folder] < self.per_folder:
                taken[folder] += 1
                yield name, read
        if left_out:
            listed = ", ".join(f"{count} {ending}" for ending, count in left_out.most_common(10))
            warn_once(
                f"{self.path}: {left_out.total()} files left out ({listed}), for instance "
                f"{example[left_out.most_common(1)[0][0]]!r}: images end in {', '.join(ENDINGS)}"
            )

    def _all_files(self) -> Iterator[File]:
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
    return name.lower().endswith(ENDINGS) and not _is_shadow(name)


def _is_shadow(name: str) -> bool:
    return os.path.basename(name).startswith("._")  # what macOS puts beside each file on foreign disks


def _ending(name: str, read: Reader | None) -> str:
    """The kind of a file that is left out."""
    if read is None:
        return "links and special files"
    return "._*" if _is_shadow(name) else Path(name).suffix.lower() or "without an ending"


def _text(name: str) -> str:
    """A path as an id; bytes that are not UTF-8 become escapes such as ``\\xff``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _in_folder(folder: Path) -> Iterator[File]:
    files = dict(_walk(folder))
    for name in sorted(files):  # sorted as text, as in a zip: Path objects sort otherwise
        yield _text(name), files[name]


def _walk(top: Path) -> Iterator[File]:
    """Every file below a folder; a link to a folder that it lies in itself has no reader."""
    unread: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(top), "", frozenset())]
    while unread:
        folder, name, above = unread.pop()
        try:
            status = os.stat(folder)
            if (here := (status.st_dev, status.st_ino)) in above:
                yield name, None
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    below = f"{name}/{entry.name}" if name else entry.name
                    is_folder, is_file = entry.is_dir, entry.is_file
                    if entry.is_symlink():
                        is_folder, is_file = partial(os.path.isdir, entry.path), partial(_can_be_tried, entry.path)
                    if is_folder():
                        unread.append((entry.path, below, above | {here}))
                    else:
                        yield below, partial(_read_file, Path(entry.path)) if is_file() else None
        except OSError as error:
            raise CorpusError(f"{folder} cannot be read ({error.strerror}): mend or remove it") from None


def _can_be_tried(link: str) -> bool:
    """Whether a link leads to a file; also one with an image's name that leads nowhere, so that reading it says so."""
    return os.path.isfile(link) or (_is_image(link) and not os.path.exists(link))


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return _content(file)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): mend or remove it") from None


def _content(file: IO[bytes]) -> bytes:
    """What a file holds; of more than ``MAX_BYTES``, which no decoder may see, only the start."""
    content = bytearray()
    while len(content) <= MAX_BYTES and (part := file.read(STEP)):
        content += part
    return bytes(content if len(content) <= MAX_BYTES else content[:START])


def _broken(path: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{path} is damaged or cut short ({error}): fetch it again")


def _in_zip(path: Path) -> Iterator[File]:
    try:
        opened = zipfile.ZipFile(path)
    except (*DAMAGED, NotImplementedError) as error:
        raise _broken(path, error) from None
    with opened as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir():
                name = info.filename
                plain = not _is_link(info) or _is_image(name)
                yield _text(name), partial(_read_member, path, archive, name) if plain else None


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    try:
        for _ in range(LINKS):
            if info.file_size > MAX_BYTES:
                return b""
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RuntimeError("bzip2 and LZMA unpack it whole, whatever size it states")  # gigabytes, for instance
            with archive.open(info) as file:
                content = _content(file)
            if not _is_link(info):
                return content
            target = posixpath.join(posixpath.dirname(info.filename), os.fsdecode(content))
            info = archive.getinfo(posixpath.normpath(target))
    except RuntimeError as error:
        raise CorpusError(f"{path}: {name} cannot be read ({error}): unpack the archive and give its folder") from None
    except (*DAMAGED, KeyError):
        pass
    return b""  # damaged, or a link that leads nowhere or in a circle: no decoder accepts this, so every column lists it


def _in_tar(path: Path) -> Iterator[File]:
    """The files in the order of the archive: a compressed tar cannot be read in another order."""
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                plain = member.isfile() or ((member.islnk() or member.issym()) and _is_image(name))
                if not member.isdir():
                    yield _text(name), partial(_read_from_tar, path, archive, member) if plain else None
            while archive.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except DAMAGED as error:
        raise _broken(path, error) from None


def _read_from_tar(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(member)
        return _content(file) if file else b""
    except (KeyError, RecursionError):  # a link that leads nowhere, or in a circle: every column lists it
        return b""
    except DAMAGED as error:
        raise _broken(path, error) from None


class _Member(tarfile.TarInfo):
    """A damaged, missing or endless header is an error here; tarfile alone takes it for the end of the archive."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> Any:
        if self.type in HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes at byte {tarfile_.offset}")
        return super()._proc_member(tarfile_)  # type: ignore[misc]

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

    def encoded(self, cell: Any) -> bytes:
        if cell is None:
            return b""  # no decoder accepts this, so every column lists it
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, dict) or not {"bytes", "path"} <= cell.keys():
            raise CorpusError(f"expected an image, found {type(cell).__name__}: name another column")
        content = cell["bytes"]  # some data sets hold the encoded file, others its path
        if isinstance(content, bytes):
            return content
        require_file(path := Path(str(cell["path"])))
        return _read_file(path)


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
