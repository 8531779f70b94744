"""Read rows of columns: through memory maps, in any order, from any process, several columns aligned."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

    def restore(self, rows: Array) -> Array:
        """Sorted rows in the order asked for."""
        if self.order is None:
            return rows
        out = np.empty_like(rows)
        out[self.order] = rows
        return out


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
        if self.kind != "ragged":
            self.dim: int = self.manifest["dim"]
            stored = self.manifest["dtype"]
            self.dtype = torch.uint8 if self.kind == "bits" else torch.float16 if stored == "float16" else torch.float32
            self._dtype = np.dtype(str(self.dtype).removeprefix("torch."))
            self.statistics = Statistics.from_json(self.manifest["statistics"])
        for number, shard in enumerate(self.shards if check_hashes else []):
            self._header(number)
            check_hash(self.path / file_name(number), shard)

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_headers": {}}

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
        width = -(-self.dim // 8) if self.kind == "bits" else self.dim
        out = np.empty((selection.count, width), self._dtype)
        for number, span, rows in selection.pieces:
            arrays = self._shard(number)
            stored = arrays["embedding"]
            if stored.dtype == self._dtype:
                stored.take(rows, 0, out=out[span], mode="clip")  # rows are checked; clip writes without a buffer
            elif "scale" in arrays:
                out[span] = dequantise(stored[rows], arrays["scale"], arrays["offset"])
            else:
                out[span] = stored[rows]  # a narrower shard of a widened column
        out = selection.restore(out)
        return torch.from_numpy(np.unpackbits(out, axis=1, count=self.dim) if self.kind == "bits" else out)

    def valid(self, indices: Tensor | Array | Selection) -> Tensor:
        """Whether each row at ``indices`` (batch,) could be made; bool (batch,)."""
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        out = np.ones(selection.count, np.bool_)
        if not self._complete:
            for number, span, rows in selection.pieces:
                out[span] = self._shard(number)["valid"][rows]
        return torch.from_numpy(selection.restore(out))

    def read_ahead(self, first: int, count: int) -> None:
        """Ask the operating system to fetch ``count`` rows from ``first`` on into memory, without waiting for them."""
        for number in range(first // self.shard_rows, -(-(first + count) // self.shard_rows)):
            start, stop = first - number * self.shard_rows, first + count - number * self.shard_rows
            self._advise(number, max(0, start), min(self.shards[number]["rows"], stop))

    def release(self) -> None:
        """Unmap every shard, so that pages which were read no longer count as this process's memory."""
        self._mapped.clear()

    def _advise(self, number: int, start: int, stop: int) -> None:
        if not hasattr(os, "posix_fadvise"):  # macOS reads ahead by itself
            return
        arrays, fields = self._shard(number), self._headers[number].fields
        ragged = self.manifest.get("fields", ())
        runs = {f"{name}/values": arrays[f"{name}/offsets"][[start, stop]].tolist() for name in ragged}
        with open(self.path / file_name(number), "rb") as file:
            for name, (low, high) in (runs or {"embedding": [start, stop]}).items():
                offset, dtype, shape = fields[name]
                size = dtype.itemsize * int(np.prod(shape[1:]))
                # madvise(MADV_WILLNEED) by another name, without an address
                os.posix_fadvise(file.fileno(), offset + low * size, (high - low) * size, os.POSIX_FADV_WILLNEED)

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
        self.corpus, self.columns = corpus, {column.path.name: column for column in columns}
        self._one = columns[0]

    def __len__(self) -> int:
        return len(self._one)

    def select(self, indices: Tensor | Array) -> Selection:
        return self._one.select(indices)

    def rows(self, indices: Tensor | Array | Selection) -> dict[str, Any]:
        """Column -> its rows at ``indices`` (batch,), as :meth:`Column.rows`."""
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        return {name: column.rows(selection) for name, column in self.columns.items()}

    def valid(self, indices: Tensor | Array | Selection) -> dict[str, Tensor]:
        """Column -> whether it has each row, as :meth:`Column.valid`."""
        selection = indices if isinstance(indices, Selection) else self.select(indices)
        return {name: column.valid(selection) for name, column in self.columns.items()}


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
