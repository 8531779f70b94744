"""The on-disk format, version 1: write a shard, open a column, verify it. The only file that imports h5py.

A column is a folder of numbered HDF5 shards and a ``manifest.json``. Data sets are contiguous and uncompressed, so that
a reader needs h5py for the header alone and takes the rows through a memory map.
"""

import hashlib
import itertools
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from cache_tools.errors import CacheError
from cache_tools.statistics import Statistics

FORMAT_VERSION = 1
SHARD_ROWS = 65_536
MANIFEST = "manifest.json"
CORPUS = "corpus.json"

Arrays = dict[str, np.ndarray[Any, Any]]


# ---------------------------------------------------------------------------------------------------- writing


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` so that ``path`` holds either the old text or the whole new one."""
    temporary = _temporary(path)
    with open(temporary, "w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _publish(temporary, path)


def write_shard(folder: Path, number: int, arrays: Arrays, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard under a temporary name, sync it, rename it: a shard that exists is whole.

    Args:
        folder: the column's folder.
        number: the shard's number; it becomes the file's name.
        arrays: data set path inside the file -> array.
        attributes: what the shard's header must say of its origin (fingerprints, first row, rows).

    Returns:
        ``file``, ``bytes`` and ``sha256`` for the manifest.
    """
    path = folder / f"{number:05d}.h5"
    temporary = _temporary(path)
    try:
        with h5py.File(temporary, "w", libver="latest") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=np.ascontiguousarray(array))
            for key, value in attributes.items():
                file.attrs[key] = value
            file.attrs["format_version"] = FORMAT_VERSION
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        facts = {"file": path.name, "bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return facts


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def sweep(folder: Path) -> None:
    """Remove what writers of this machine left in ``folder`` when they were killed."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(path.suffixes[-2][1:]), 0)  # signal 0 only asks whether the process is there
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:  # it is, and is somebody else's
            continue


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ragged(name: str, pieces: list[np.ndarray[Any, Any]], dtype: str, shape: tuple[int, ...] = ()) -> Arrays:
    """Lay rows of different lengths out flat: ``NAME/values`` (total, *shape) and ``NAME/offsets`` (rows + 1,)."""
    empty = np.empty((0, *shape), dtype)
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int64)
    return {f"{name}/values": np.concatenate([empty, *pieces]).astype(dtype), f"{name}/offsets": offsets}


def ragged_bytes(name: str, pieces: list[bytes]) -> Arrays:
    """Lay byte strings out flat, as :func:`ragged` does."""
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int64)
    return {f"{name}/values": np.frombuffer(b"".join(pieces), np.uint8), f"{name}/offsets": offsets}


# ---------------------------------------------------------------------------------------------------- reading


class Ragged(NamedTuple):
    """Rows of different lengths, flat: ``values`` (total, ...) and ``counts`` (batch,)."""

    values: Tensor
    counts: Tensor


def read_manifest(path: Path) -> dict[str, Any]:
    """The JSON at ``path``, refused when missing, damaged or of a newer format.

    Raises:
        CacheError: with the path and what to run.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(f"nothing at {path}: build it first, for instance `make cache TEACHERS=mol`") from None
    except ValueError as error:
        raise CacheError(f"{path} is not JSON ({error}): restore it, or delete its folder and build again") from None
    if content.get("format_version") != FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {content.get('format_version')}, this version reads {FORMAT_VERSION}: "
            "upgrade quorum-distill"
        )
    return content


def map_shard(path: Path, size: int | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Memory-map every data set of a shard; only plain, local, contiguous data sets of simple types are accepted.

    Args:
        path: the shard.
        size: bytes that the manifest promises.

    Returns:
        Data set path -> memory-mapped array, and the header's attributes.

    Raises:
        CacheError: when the file is missing, of another size, or not plain.
    """
    if not path.is_file():
        raise CacheError(f"shard {path} is missing: run the build again, it makes what is missing")
    if size is not None and path.stat().st_size != size:
        raise CacheError(
            f"shard {path} has {path.stat().st_size} bytes, its manifest says {size}: delete it and build again"
        )
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: _map(path, dataset) for name, dataset in _datasets(path, file)}
            return arrays, {key: _plain(value) for key, value in file.attrs.items()}
    except OSError as error:
        raise CacheError(f"shard {path} is not readable HDF5 ({error}): delete it and build again") from None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _datasets(path: Path, group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CacheError(f"shard {path}: {prefix}{name} is a link to elsewhere; only plain data sets are read")
        member = group[name]
        if isinstance(member, h5py.Group):
            yield from _datasets(path, member, f"{prefix}{name}/")
        else:
            yield prefix + name, member


def _map(path: Path, dataset: h5py.Dataset) -> np.ndarray[Any, Any]:
    properties = dataset.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
        raise CacheError(f"shard {path}: {dataset.name} is not contiguous data inside the file")
    if dataset.dtype.kind not in "fiu":
        raise CacheError(f"shard {path}: {dataset.name} has type {dataset.dtype}, expected numbers")
    offset = dataset.id.get_offset()
    if dataset.size == 0:
        return np.empty(dataset.shape, dataset.dtype)
    if offset is None or offset + dataset.nbytes > path.stat().st_size:
        raise CacheError(f"shard {path}: {dataset.name} claims bytes beyond the end of the file")
    # copy-on-write, so that torch can wrap the pages without a copy and nothing can change the file
    return np.memmap(path, dataset.dtype, mode="c", offset=offset, shape=dataset.shape)


def whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    """Whether the shard that a manifest lists is there with its size."""
    path = folder / shard["file"]
    return path.is_file() and bool(path.stat().st_size == shard["bytes"])


class Column:
    """What a teacher (dense) or a featuriser (ragged) made of one corpus, read through memory maps.

    Opening reads the manifest alone; shards are mapped when their first row is asked for, in each process anew.

    Args:
        path: the column's folder.

    Attributes:
        kind: ``dense``, ``bits`` (dense, packed eight to a byte on disk) or ``ragged``.
        dim: width of a dense row.
        statistics: over the valid rows of a dense column.

    Raises:
        CacheError: when there is no finished column at ``path``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST)
        if not self.manifest["finished"]:
            raise CacheError(f"{self.path} is unfinished ({state(self.manifest)}): run the same build again")
        self.name = self.path.name
        self.kind: str = self.manifest["kind"]
        self.shard_rows: int = self.manifest["shard_rows"]
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.corpus_fingerprint: str = self.manifest["corpus_fingerprint"]
        self._rows: int = self.manifest["rows"]
        self._mapped: dict[int, dict[str, Tensor]] = {}
        if self.kind != "ragged":
            self.dim: int = self.manifest["dim"]
            self.dtype = torch.uint8 if self.kind == "bits" else getattr(torch, self.manifest["dtype"])
            self.statistics = Statistics.from_json(self.manifest["statistics"])

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}

    def rows(self, indices: Tensor) -> Any:
        """Rows at ``indices`` (batch,), in that order.

        Returns:
            A tensor (batch, dim) for a dense column; field -> :class:`Ragged` for a ragged one.
        """
        if self.kind == "ragged":
            return {field: self._ragged(field, indices) for field in self.manifest["fields"]}
        rows = self._dense("embedding", indices)
        return _unpack(rows, self.dim) if self.kind == "bits" else rows

    def valid(self, indices: Tensor) -> Tensor:
        """Whether each row at ``indices`` (batch,) could be made; bool (batch,)."""
        return self._dense("valid", indices).bool()

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._mapped:
            shard = self.shards[number]
            arrays, _ = map_shard(self.path / shard["file"], shard["bytes"])
            self._mapped[number] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return self._mapped[number]

    def _by_shard(self, indices: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Per shard touched: its arrays, positions in the batch, rows inside the shard."""
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self._rows):
            raise IndexError(f"{self.path} has rows 0 to {self._rows - 1}; asked for {indices.tolist()[:5]}...")
        numbers = indices // self.shard_rows
        for number in torch.unique(numbers).tolist():
            positions = (numbers == number).nonzero().squeeze(1)
            yield self._shard(number), positions, indices[positions] - number * self.shard_rows

    def _dense(self, name: str, indices: Tensor) -> Tensor:
        if len(self.shards) == 1:
            return self._shard(0)[name].index_select(0, indices)
        parts = [(positions, arrays[name].index_select(0, rows)) for arrays, positions, rows in self._by_shard(indices)]
        if not parts:
            return self._shard(0)[name][:0]
        dtype = max((part.dtype for _, part in parts), key=lambda each: each.itemsize)  # a shard may be wider
        out = torch.empty(len(indices), *parts[0][1].shape[1:], dtype=dtype)
        for positions, part in parts:
            out[positions] = part.to(dtype)
        return out

    def _ragged(self, field: str, indices: Tensor) -> Ragged:
        counts = torch.zeros(len(indices), dtype=torch.int64)
        parts = []
        for arrays, positions, rows in self._by_shard(indices):
            offsets = arrays[f"{field}/offsets"]
            counts[positions] = offsets[rows + 1] - offsets[rows]
            parts.append((positions, arrays[f"{field}/values"].index_select(0, spans(offsets[rows], counts[positions]))))
        if not parts:
            return Ragged(self._shard(0)[f"{field}/values"][:0], counts)
        if len(parts) == 1:
            return Ragged(parts[0][1], counts)
        starts = counts.cumsum(0) - counts
        values = parts[0][1].new_empty(int(counts.sum()), *parts[0][1].shape[1:])
        for positions, part in parts:
            values[spans(starts[positions], counts[positions])] = part
        return Ragged(values, counts)


def spans(starts: Tensor, counts: Tensor) -> Tensor:
    """Indices of many runs, one after the other: ``starts[i], starts[i] + 1, ... (counts[i] of them)``; (total,)."""
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(starts - before, counts) + torch.arange(int(counts.sum()))


def _unpack(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8)  # numpy.packbits puts the first bit highest
    return (packed.unsqueeze(-1) >> shifts & 1).flatten(1)[:, :bits]  # (batch, bits)


def open_column(path: str | Path) -> Column:
    """Open a finished column for reading; see :class:`Column`."""
    return Column(path)


# ------------------------------------------------------------------------------------------------ stored corpus


@dataclass(frozen=True)
class CorpusManifest:
    """``corpus.json``: what a corpus folder holds."""

    modality: str
    rows: int
    shard_rows: int
    fingerprint: str
    source: str
    shards: list[dict[str, Any]]
    format_version: int = FORMAT_VERSION

    def shard_span(self, number: int) -> tuple[int, int]:
        """First row and rows of shard ``number``."""
        first = number * self.shard_rows
        return first, min(self.shard_rows, self.rows - first)

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_rows)


def write_corpus(
    folder: Path, modality: str, fingerprint: str, source: str, ids: list[str], items: list[bytes], shard_rows: int
) -> CorpusManifest:
    """Write ids and raw items as ragged bytes under ``folder/items``, then ``corpus.json``."""
    (folder / "items").mkdir(parents=True, exist_ok=True)
    shards = []
    for number, first in enumerate(range(0, len(ids), shard_rows)):
        chunk = slice(first, first + shard_rows)
        encoded = [identity.encode() for identity in ids[chunk]]
        arrays = ragged_bytes("ids", encoded) | ragged_bytes("items", items[chunk])
        header = {"corpus_fingerprint": fingerprint, "shard": number, "first_row": first, "rows": len(encoded)}
        shards.append(write_shard(folder / "items", number, arrays, header) | {"rows": len(encoded)})
    manifest = CorpusManifest(modality, len(ids), shard_rows, fingerprint, source, shards)
    write_json(folder / CORPUS, asdict(manifest))
    return manifest


def read_corpus(folder: Path) -> CorpusManifest:
    """The manifest of the corpus at ``folder``.

    Raises:
        CacheError: when there is none.
    """
    return CorpusManifest(**read_manifest(folder / CORPUS))


def read_items(folder: Path, number: int) -> tuple[list[str], list[bytes]]:
    """Ids and raw items of shard ``number`` of the corpus at ``folder``."""
    shard = read_corpus(folder).shards[number]
    arrays, _ = map_shard(folder / "items" / shard["file"], shard["bytes"])
    return [identity.decode() for identity in _cut(arrays, "ids")], list(_cut(arrays, "items"))


def _cut(arrays: Arrays, name: str) -> Iterator[bytes]:
    values, offsets = arrays[f"{name}/values"].tobytes(), arrays[f"{name}/offsets"].tolist()
    return (values[start:end] for start, end in itertools.pairwise(offsets))


# --------------------------------------------------------------------------------------------------- listings


def corpora(cache: Path) -> list[Path]:
    """Folders under ``cache`` that hold a corpus, also nested ones (tasks)."""
    return sorted(path.parent for path in cache.rglob(CORPUS))


def columns(corpus: Path) -> list[Path]:
    """Folders of a corpus that hold a column, teachers first."""
    return [path.parent for kind in ("teachers", "inputs") for path in sorted((corpus / kind).glob(f"*/{MANIFEST}"))]


def state(manifest: Mapping[str, Any]) -> str:
    """How far a column is, for people."""
    done = sum(shard["rows"] for shard in manifest["shards"])
    return "finished" if manifest["finished"] else f"{done} of {manifest['rows']} rows"


def producer_key(producer: Mapping[str, Any]) -> str:
    """A short hash of what made a column; every shard carries it in its header."""
    return hashlib.sha256(json.dumps(producer["fingerprint"], sort_keys=True).encode()).hexdigest()[:16]
