"""One HDF5 shard: written whole or not at all, read through a memory map. The only file that imports h5py."""

import errno
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from cache_tools.errors import CacheError
from cache_tools.format.addresses import AddressRange
from cache_tools.format.files import (
    H5_ERRORS,
    file_size,
    publish,
    removed_afterwards,
    require_space,
    sha256,
    system_errors_in_words,
    temporary_name,
)

FORMAT_VERSION = 1
ALIGNMENT = 65_536  # bytes: larger data sets begin at a page, whatever the machine's page is, and can be mapped anywhere

Arrays = dict[str, np.ndarray[Any, Any]]


class ForeignShard(CacheError):
    """A file that was read, and that is proven not to be the shard that was expected: a build may remove it."""


# ---------------------------------------------------------------------------------------------------- writing


def write_shard(folder: Path, number: int, arrays: Arrays, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard under a temporary name, sync it, then rename it: a shard that exists is whole.

    Of two writers of one shard the first wins, and the work of the other is dropped.

    Args:
        folder: the column's folder.
        number: the shard's number; it becomes the file's name.
        arrays: data set path inside the file -> array.
        attributes: what the shard's header says of its origin (fingerprints, first row, rows).

    Returns:
        ``file``, ``bytes`` and ``sha256`` for the manifest.

    Raises:
        CacheError: when the disk is full; nothing is left behind.
    """
    path = folder / file_name(number)
    require_space(folder, sum(array.nbytes for array in arrays.values()))
    temporary = temporary_name(path)
    with removed_afterwards(temporary):
        places = _lay_out(temporary, arrays, attributes)
        with ThreadPoolExecutor(1) as pool, open(temporary, "rb+") as file:
            digest = pool.submit(_digest, file.fileno(), places)  # hashed while it is written, and while the disk syncs
            for offset, content in places:
                file.seek(offset)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            written = {"file": path.name, "bytes": os.fstat(file.fileno()).st_size, "sha256": digest.result()}
        published = publish(temporary, path, keep=True)
    return written if published else facts(path)


def facts(path: Path) -> dict[str, Any]:
    """``file`` (its name), ``bytes`` and ``sha256`` of a shard, for the manifest."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _lay_out(path: Path, arrays: Arrays, attributes: Mapping[str, Any]) -> list[tuple[int, memoryview]]:
    """Make a shard's file with everything but the content of its arrays.

    Returns:
        The offset of each array in the file and its bytes, in the file's order.
    """
    places = []
    aligned = {"alignment_threshold": ALIGNMENT, "alignment_interval": ALIGNMENT}
    with h5py.File(path, "w", libver="latest", locking=False, **aligned) as file:
        try:
            _reserve(path, sum(array.nbytes for array in arrays.values()))
            for name, array in arrays.items():
                dataset = file.create_dataset(name, array.shape, array.dtype)
                if array.size:
                    dataset[:1] = array[:1]  # with the first row HDF5 places all; its own writing would end the overlap
                    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    places.append((dataset.id.get_offset(), content.data))
            for key, value in {**attributes, "format_version": FORMAT_VERSION}.items():
                # text of a fixed length lies in the header, which has a checksum; HDF5 can hang on a damaged text of any
                # length
                file.attrs[key] = np.bytes_(value.encode()) if isinstance(value, str) else value
            file.flush()
        except (OSError, RuntimeError):
            os.truncate(path, 0)  # gives the space back, else HDF5 cannot close the file
            raise
    return sorted(places, key=itemgetter(0))


def _reserve(path: Path, size: int) -> None:
    """Reserve the space of a shard at once: HDF5 prints its own tracebacks, or crashes, when the disk fills up halfway."""
    if size and hasattr(os, "posix_fallocate"):  # macOS has none
        with open(path, "rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise


def _digest(descriptor: int, places: Sequence[tuple[int, memoryview]]) -> str:
    """The SHA-256 of a file whose arrays are at ``places``; only what lies between them is read."""
    digest, end = hashlib.sha256(), 0
    for offset, content in [*places, (os.fstat(descriptor).st_size, memoryview(b""))]:
        digest.update(os.pread(descriptor, offset - end, end))
        digest.update(content)
        end = offset + len(content)
    return digest.hexdigest()


def file_name(number: int) -> str:
    """The file name of a shard: its number alone, so that an id never becomes a path."""
    return f"{number:05d}.h5"


# ---------------------------------------------------------------------------------------------------- reading


class Header(NamedTuple):
    """The place of each data set in a shard's file, and the shard's attributes."""

    fields: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]]  # name -> offset in bytes, type, shape
    attributes: dict[str, Any]


def read_header(path: Path, size: int | None = None) -> Header:
    """Read a shard's header; only plain, local, contiguous data sets of numbers are accepted.

    HDF5 could otherwise point at any file of the reader's machine, or claim 16 GB in a file of 1.4 kB.

    Args:
        path: the shard.
        size: bytes that the manifest promises.

    Raises:
        ForeignShard: when the file is of another size, not HDF5, or not plain.
        CacheError: when it is missing, or the system refuses to read it.
    """
    actual = file_size(path)
    if actual is None:
        raise CacheError(f"shard {path} is missing: run the build again, it makes what is missing")
    if size is not None and actual != size:
        raise ForeignShard(f"shard {path} has {actual} bytes, its manifest says {size}: delete it and build again")
    try:
        # without locks: shards never change, some file systems have no locks, and another program may hold one
        with system_errors_in_words(path), h5py.File(path, "r", locking=False) as file:
            fields = {name: _plain(path, dataset, actual) for name, dataset in _datasets(path, file)}
            return Header(fields, {key: _python(value) for key, value in file.attrs.items()})
    except H5_ERRORS as error:  # a TypeError: a type without one in numpy
        raise ForeignShard(f"shard {path} is not readable HDF5 ({error}): delete it and build again") from None


def map_shard(path: Path, header: Header | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Memory-map every data set of a shard.

    Returns:
        Data set path -> array, and the header's attributes. The arrays are copy-on-write: nothing can change the file.

    Raises:
        CacheError: as :func:`read_header`.
    """
    header = header or read_header(path)
    with system_errors_in_words(path):
        size = path.stat().st_size
        span = AddressRange(size)
        span.place(path, 0, size, 0)
    whole = span.array(np.dtype(np.uint8), (size,))
    arrays = {
        name: whole[offset : offset + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)
        for name, (offset, dtype, shape) in header.fields.items()
    }
    return arrays, header.attributes


def read_foreign(path: Path, name: str) -> np.ndarray[Any, Any]:
    """One data set of an HDF5 file from elsewhere; it may be chunked or compressed, but must lie inside that file.

    Raises:
        CacheError: when it is missing, lies outside the file, or claims far more bytes than the file has.
    """
    try:
        with system_errors_in_words(path), h5py.File(path, "r", locking=False) as file:
            datasets = dict(_datasets(path, file))
            if name not in datasets:
                raise CacheError(f"{path} has no data set {name}; it has: {', '.join(datasets) or 'none'}")
            dataset = datasets[name]
            properties = dataset.id.get_create_plist()
            if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
                raise CacheError(f"{path}: {name} points outside the file; only data inside it is read")
            if dataset.nbytes > 100 * path.stat().st_size:
                raise CacheError(f"{path}: {name} claims {dataset.nbytes:,} bytes in a file of {path.stat().st_size:,}")
            text = h5py.check_string_dtype(dataset.dtype)
            read: np.ndarray[Any, Any] = dataset.asstr()[()] if text else dataset[()]
            return read
    except OSError as error:
        raise CacheError(f"{path} is not readable HDF5 ({error})") from None


def _python(value: Any) -> Any:
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return plain.decode() if isinstance(plain, bytes) else plain


def _datasets(path: Path, group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    if prefix.count("/") > 1:  # also ends a group that contains itself
        raise ForeignShard(f"shard {path}: {prefix} is nested too deep; expected NAME or NAME/PART")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ForeignShard(f"shard {path}: {prefix}{name} is a link to elsewhere; only plain data sets are read")
        member = group[name]
        if isinstance(member, h5py.Group):
            yield from _datasets(path, member, f"{prefix}{name}/")
        elif isinstance(member, h5py.Dataset):
            yield prefix + name, member


def _plain(path: Path, dataset: h5py.Dataset, size: int) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    properties = dataset.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
        raise ForeignShard(f"shard {path}: {dataset.name} is not contiguous data inside the file")
    if dataset.dtype.kind not in "fiu" or not dataset.dtype.isnative:
        raise ForeignShard(f"shard {path}: {dataset.name} has type {dataset.dtype}, expected this machine's numbers")
    if dataset.shape is None:
        raise ForeignShard(f"shard {path}: {dataset.name} is null, expected numbers")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize  # Python's numbers do not wrap
    offset = dataset.id.get_offset() if claimed else 0
    if offset is None or offset + claimed > size:
        raise ForeignShard(f"shard {path}: {dataset.name} claims bytes beyond the end of the file")
    return offset, dataset.dtype, dataset.shape
