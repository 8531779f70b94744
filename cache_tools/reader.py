"""Read rows of columns: through memory maps, in any order, from any process, several columns aligned."""

import itertools
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_tools.addresses import PAGE, AddressRange
from cache_tools.errors import CacheError
from cache_tools.shard import Arrays, Header, file_name, map_shard
from cache_tools.statistics import Statistics
from cache_tools.store import (
    MANIFEST,
    Array,
    Ragged,
    check_hash,
    checked_header,
    dequantise,
    identity_of,
    list_columns,
    read_corpus,
    read_manifest,
    state,
)


class Selection:
    """Rows of a corpus, sorted into the shards that hold them; columns with equal shards share one.

    Args:
        indices: rows, (batch,).
        shard_rows: rows of a shard.
        rows: of the corpus.

    Raises:
        IndexError: for a row beyond the end.
    """

    def __init__(self, indices: Tensor | Array, shard_rows: int, rows: int):
        wanted = np.asarray(indices, np.int64)
        self.wanted = torch.from_numpy(wanted)
        self.count = len(wanted)
        lowest, highest = (int(wanted.min()), int(wanted.max())) if self.count else (0, -1)
        if lowest < 0 or highest >= rows:
            raise IndexError(f"rows 0 to {rows - 1} are there; asked for {lowest if lowest < 0 else highest}")
        self.order: Array | None = None  # how to put sorted rows back into the order asked for
        self.pieces: list[tuple[int, slice, Array]] = []  # shard, positions in the sorted batch, rows inside the shard
        if not self.count:
            return
        first = lowest // shard_rows
        if highest // shard_rows == first:
            self.pieces = [(first, slice(0, self.count), wanted - first * shard_rows)]
            return
        if (wanted[1:] < wanted[:-1]).any():
            self.order = np.argsort(wanted, kind="stable")
            wanted = wanted[self.order]
        shards = wanted // shard_rows
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), self.count]
        for start, stop in itertools.pairwise(cuts):
            number = int(shards[start])
            self.pieces.append((number, slice(start, stop), wanted[start:stop] - number * shard_rows))

    def restore(self, rows: Tensor) -> Tensor:
        """Sorted rows in the order asked for."""
        if self.order is None:
            return rows
        return torch.empty_like(rows).index_copy_(0, torch.from_numpy(self.order), rows)


class Consecutive:
    """The embeddings of a column's shards at consecutive addresses: one gather reads them all, as if of one tensor.

    Args:
        path: the column's folder.
        shards: rows of its manifest.
        width: of a stored row.
        dtype: of the column.
        shard_rows: rows of a shard.
    """

    def __init__(self, path: Path, shards: list[dict[str, Any]], width: int, dtype: torch.dtype, shard_rows: int):
        self.path, self.missing = path, set(range(len(shards)))
        self.table: Tensor | None = None
        stored = np.dtype(str(dtype).removeprefix("torch."))
        self.bytes = shard_rows * width * stored.itemsize  # of a full shard
        rows = sum(shard["rows"] for shard in shards)
        alike = all(shard["dtype"] == stored.name for shard in shards)
        if alike and rows * width and (self.bytes % PAGE == 0 or len(shards) == 1):
            self.range = AddressRange(-(-rows * width * stored.itemsize // PAGE) * PAGE)
            self.table = torch.from_numpy(self.range.array(stored, (rows, width)))

    def place(self, number: int, header: Callable[[int], Header]) -> None:
        """Map a shard to its place; where its data does not begin at a page, the column has no table."""
        if self.table is None or number not in self.missing:
            return
        offset, dtype, shape = header(number).fields["embedding"]
        if offset % PAGE:
            self.table = None
            return
        size = dtype.itemsize * int(np.prod(shape))
        self.range.place(self.path / file_name(number), offset, size, number * self.bytes)
        self.missing.discard(number)

    def release(self) -> None:
        """Let go of the pages; the next gather maps them again by itself."""
        if self.table is not None:
            self.range.advise(0, self.range.size, mmap.MADV_DONTNEED)


class Column:
    """What a teacher (dense) or a featuriser (ragged) made of one corpus, read through memory maps.

    Opening reads the manifest alone; a shard's header is checked and its data mapped when its first row is asked for,
    in each process anew.

    Args:
        path: the column's folder.
        check_hashes: also compare every shard's SHA-256 with the manifest's, which reads everything once.

    Attributes:
        kind: ``dense``, ``bits`` (dense, packed eight to a byte on disk) or ``ragged``.
        dim: width of a dense row.
        dtype: of the rows that :meth:`rows` gives.
        statistics: over the valid rows of a dense column.

    Raises:
        CacheError: when there is no finished column at ``path``, or it is damaged.
    """

    def __init__(self, path: str | Path, check_hashes: bool = False):
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST)
        if not self.manifest["finished"]:
            raise CacheError(f"{self.path} is {state(self.path)}: run the same build again")
        self.name = self.path.name
        self.kind: str = self.manifest["kind"]
        self.shard_rows: int = self.manifest["shard_rows"]
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.corpus_fingerprint: str = self.manifest["corpus_fingerprint"]
        self._rows: int = self.manifest["rows"]
        self._complete = all(shard["valid"] == shard["rows"] for shard in self.shards)
        self._headers: dict[int, Header] = {}
        self._mapped: dict[int, Arrays] = {}
        self._consecutive: Consecutive | None = None
        if self.kind != "ragged":
            self.dim: int = self.manifest["dim"]
            stored = self.manifest["dtype"]
            self.dtype = torch.uint8 if self.kind == "bits" else torch.float16 if stored == "float16" else torch.float32
            self._width = -(-self.dim // 8) if self.kind == "bits" else self.dim  # of a stored row
            self.statistics = Statistics.from_json(self.manifest["statistics"])
        for number, shard in enumerate(self.shards if check_hashes else []):
            self._header(number)
            check_hash(self.path / file_name(number), shard)

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_headers": {}, "_consecutive": None}

    def select(self, indices: Tensor | Array) -> Selection:
        """Rows sorted into this column's shards, for :meth:`rows` and :meth:`valid` of columns with equal shards."""
        return Selection(indices, self.shard_rows, self._rows)

    def rows(self, indices: Tensor | Array | Selection) -> Any:
        """Rows at ``indices`` (batch,), in that order.

        Returns:
            A tensor (batch, dim) for a dense column; field -> :class:`Ragged` for a ragged one.

        Raises:
            IndexError: for a row beyond the end.
            CacheError: for a shard that is missing, damaged or swapped.
        """
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        if self.kind == "ragged":
            return {field: self._ragged(field, selection) for field in self.manifest["fields"]}
        table = self._table(selection)
        rows = self._gather(selection) if table is None else table.index_select(0, selection.wanted)
        if self.kind == "bits":
            return torch.from_numpy(np.unpackbits(rows.numpy(), axis=1, count=self.dim))
        return rows

    def valid(self, indices: Tensor | Array | Selection) -> Tensor:
        """Whether each row at ``indices`` (batch,) could be made; bool (batch,)."""
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        out = torch.ones(selection.count, dtype=torch.bool)
        if self._complete:
            return out
        for number, span, rows in selection.pieces:
            if self.shards[number]["valid"] < self.shards[number]["rows"]:
                out[span] = torch.from_numpy(self._shard(number)["valid"][rows].astype(np.bool_))
        return selection.restore(out)

    def read_ahead(self, first: int, count: int) -> None:
        """Ask the operating system to fetch ``count`` rows from ``first`` on into memory, without waiting for them."""
        for number in range(first // self.shard_rows, -(-(first + count) // self.shard_rows)):
            start, stop = first - number * self.shard_rows, first + count - number * self.shard_rows
            self._advise(number, max(0, start), min(self.shards[number]["rows"], stop))

    def release(self) -> None:
        """Let go of the pages that were read, so that they no longer count as this process's memory."""
        self._mapped.clear()
        if self._consecutive is not None:
            self._consecutive.release()

    def _advise(self, number: int, start: int, stop: int) -> None:
        fields = self._header(number).fields
        ragged = self.manifest.get("fields", ())
        runs = {f"{name}/values": self._shard(number)[f"{name}/offsets"][[start, stop]].tolist() for name in ragged}
        with open(self.path / file_name(number), "rb") as file:
            for name, (low, high) in (runs or {"embedding": [start, stop]}).items():
                offset, dtype, shape = fields[name]
                size = dtype.itemsize * int(np.prod(shape[1:]))
                if hasattr(os, "posix_fadvise"):  # madvise(MADV_WILLNEED) without a map; macOS reads ahead by itself
                    os.posix_fadvise(file.fileno(), offset + low * size, (high - low) * size, os.POSIX_FADV_WILLNEED)

    def _table(self, selection: Selection) -> Tensor | None:
        """The whole column as one tensor whose shards of ``selection`` are mapped; None when shards do not fit together."""
        if self._consecutive is None:
            self._consecutive = Consecutive(self.path, self.shards, self._width, self.dtype, self.shard_rows)
        for number, _, _ in selection.pieces if self._consecutive.missing else ():
            self._consecutive.place(number, self._header)
        return self._consecutive.table

    def _gather(self, selection: Selection) -> Tensor:
        """Rows (batch, width) shard by shard."""
        out = torch.empty(selection.count, self._width, dtype=self.dtype)
        for number, span, rows in selection.pieces:
            arrays = self._shard(number)
            if "scale" in arrays:
                part = dequantise(arrays["embedding"][rows], arrays["scale"], arrays["offset"])
                part[arrays["valid"][rows] == 0] = 0
            else:
                part = arrays["embedding"][rows]  # may be narrower than a widened column
            out[span] = torch.from_numpy(part)
        return selection.restore(out)

    def _shard(self, number: int) -> Arrays:
        arrays = self._mapped.get(number)
        if arrays is None:
            arrays = self._mapped[number] = map_shard(self.path / file_name(number), self._header(number))[0]
        return arrays

    def _header(self, number: int) -> Header:
        if number not in self._headers:
            path, shard = self.path / file_name(number), self.shards[number]
            header = checked_header(path, shard["bytes"], number, identity_of(self.manifest))
            _check_layout(path, header, self.manifest, shard["rows"])
            self._headers[number] = header
        return self._headers[number]

    def _ragged(self, field: str, selection: Selection) -> Ragged:
        counts = np.zeros(selection.count, np.int64)
        parts = []
        for number, span, rows in selection.pieces:
            arrays = self._shard(number)
            offsets, values = arrays[f"{field}/offsets"], arrays[f"{field}/values"]
            starts = offsets[rows]
            counts[span] = offsets[rows + 1] - starts
            parts.append(values.take(spans(starts, counts[span]), 0))
        if not parts:
            dtype, *shape = self.manifest["fields"][field]
            parts = [np.empty((0, *shape), dtype)]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if selection.order is not None:
            begins = np.cumsum(counts) - counts
            back = np.empty_like(selection.order)
            back[selection.order] = np.arange(selection.count)
            flat, counts = flat.take(spans(begins[back], counts[back]), 0), counts[back]
        return Ragged(torch.from_numpy(flat), torch.from_numpy(counts))


def spans(starts: Array, counts: Array) -> Array:
    """Indices of many runs, one after the other: ``starts[i], starts[i] + 1, ... (counts[i] of them)``; (total,)."""
    before = np.cumsum(counts) - counts
    indices: Array = np.repeat(starts - before, counts) + np.arange(counts.sum())
    return indices


def open_column(path: str | Path, check_hashes: bool = False) -> Column:
    """Open a finished column for reading; see :class:`Column`."""
    return Column(path, check_hashes)


class Aligned:
    """Columns of one corpus, read row by row together; see :func:`aligned`."""

    def __init__(self, corpus: Path, columns: Sequence[Column]):
        self.corpus, self.columns = corpus, {column.name: column for column in columns}
        self._one = columns[0]

    def __len__(self) -> int:
        return len(self._one)

    def select(self, indices: Tensor | Array) -> Selection:
        """Rows sorted into the shards that hold them."""
        return self._one.select(indices)

    def rows(self, indices: Tensor | Array | Selection) -> dict[str, Any]:
        """Column -> its rows at ``indices`` (batch,), as :meth:`Column.rows`."""
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        return {name: column.rows(selection) for name, column in self.columns.items()}

    def valid(self, indices: Tensor | Array | Selection) -> dict[str, Tensor]:
        """Column -> whether it has each row, as :meth:`Column.valid`."""
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        return {name: column.valid(selection) for name, column in self.columns.items()}

    def read_ahead(self, first: int, count: int) -> None:
        """As :meth:`Column.read_ahead`, of every column."""
        for column in self.columns.values():
            column.read_ahead(first, count)

    def release(self) -> None:
        """As :meth:`Column.release`, of every column."""
        for column in self.columns.values():
            column.release()


def aligned(corpus: str | Path, columns: Iterable[str | Path | Column]) -> Aligned:
    """Columns that belong together, opened side by side.

    Args:
        corpus: the corpus's folder.
        columns: paths, relative to the corpus (``teachers/gin``) or not, or open columns.

    Raises:
        CacheError: when one was made from another corpus, is unfinished, or shares its name with another.
    """
    corpus = Path(corpus)
    manifest = read_corpus(corpus)
    opened = [each if isinstance(each, Column) else Column(_under(corpus, Path(each))) for each in columns]
    if not opened:
        raise CacheError(f"no columns named of {corpus}; it has: {', '.join(path.name for path in list_columns(corpus))}")
    for column in opened:
        if (column.corpus_fingerprint, len(column)) != (manifest.fingerprint, manifest.rows):
            raise CacheError(f"{column.path} was made from another corpus than {corpus}: delete it and build again")
        if column.shard_rows != manifest.shard_rows:
            raise CacheError(f"{column.path} has shards of {column.shard_rows} rows, {corpus} of {manifest.shard_rows}")
    names = [column.name for column in opened]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CacheError(f"two columns are called {twice[0]}: name each column once")
    return Aligned(corpus, opened)


def _under(corpus: Path, path: Path) -> Path:
    return corpus / path if (corpus / path).is_dir() else path


def _check_layout(path: Path, header: Header, manifest: Mapping[str, Any], rows: int) -> None:
    """Whether the shard holds what its column's manifest promises; a reader trusts shapes from here on."""
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {"valid": ("uint8", (rows,))}
    if manifest["kind"] == "ragged":
        for name, (dtype, *shape) in manifest["fields"].items():
            expected[f"{name}/values"] = dtype, (None, *shape)
            expected[f"{name}/offsets"] = "int64", (rows + 1,)
    elif manifest["kind"] == "bits":
        expected["embedding"] = "uint8", (rows, -(-manifest["dim"] // 8))
    else:
        narrower = "float16 " if manifest["dtype"] == "float32" else ""  # shards of a widened column
        expected["embedding"] = narrower + manifest["dtype"], (rows, manifest["dim"])
        if manifest["dtype"] == "int8":
            expected |= dict.fromkeys(("scale", "offset"), ("float32", (manifest["dim"],)))
    for name, (dtypes, wanted) in expected.items():
        if name not in header.fields:
            raise CacheError(f"shard {path} has no data set {name}: delete it and build again")
        _, dtype, found = header.fields[name]
        fits = len(found) == len(wanted) and all(w in (None, f) for w, f in zip(wanted, found, strict=True))
        if str(dtype) not in dtypes.split() or not fits:
            raise CacheError(
                f"shard {path}: {name} is {dtype} {found}, expected {dtypes.replace(' ', ' or ')} {wanted}: "
                "delete it and build again"
            )
