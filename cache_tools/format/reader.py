"""Read rows of columns through memory maps, in any order, from any process; several columns row by row together."""

import math
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_tools.errors import CacheError
from cache_tools.format.files import system_errors_in_words
from cache_tools.format.layout import column_header
from cache_tools.format.mirror import mirror_of
from cache_tools.format.packing import Array, Ragged, dequantise
from cache_tools.format.shard import Arrays, Header, file_name, map_shard
from cache_tools.format.stack import Selection, Stack
from cache_tools.format.statistics import Statistics
from cache_tools.format.store import (
    MANIFEST,
    check_hash,
    check_manifest_hash,
    list_columns,
    read_corpus,
    read_manifest,
    state,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Column:
    """The output of a teacher (dense) or a featuriser (ragged) for one corpus, read through memory maps.

    Opening a column reads only its manifest. A shard's header is checked and its data mapped when its first row is asked
    for, in each process separately.

    Args:
        path: the column's folder.
        check_hashes: also compare the SHA-256 of the manifest and of every shard, which reads everything once.

    Attributes:
        complete: whether every row is valid.
        kind: ``dense``, ``bits`` (dense, packed eight to a byte on disk) or ``ragged``.
        dim: width of a dense row.
        statistics: over the valid rows of a dense column.
        mirror: fetches the shards where the corpus is in an object store; else None.

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
        self.complete = all(shard["valid"] == shard["rows"] for shard in self.shards)
        self._largest = max((shard["bytes"] for shard in self.shards), default=0)
        self._headers: dict[int, Header] = {}
        self._mapped: dict[int, Arrays] = {}
        self._stacks: dict[str, Stack] = {}
        self._process, self.mirror = os.getpid(), mirror_of(self.path.parent.parent)
        self._make_locks()
        if self.kind != "ragged":
            self.dim: int = self.manifest["dim"]
            stored = self.manifest["dtype"]
            self._read_as = "uint8" if self.kind == "bits" else "float16" if stored == "float16" else "float32"
            self._uniform = all(shard["dtype"] == self._read_as for shard in self.shards)
            self._width = -(-self.dim // 8) if self.kind == "bits" else self.dim  # of a stored row
            self.statistics = Statistics.from_json(self.manifest["statistics"])
        if check_hashes:
            check_manifest_hash(self.path / MANIFEST)
        for number, shard in enumerate(self.shards if check_hashes else []):
            self._header(number)
            check_hash(self.path / file_name(number), shard)

    @property
    def dtype(self) -> "torch.dtype":
        """Type of the rows that :meth:`rows` gives."""
        import torch

        return getattr(torch, self._read_as)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        width = ", ".join(self.manifest["fields"]) if self.kind == "ragged" else f"{self.dim} wide, {self._read_as}"
        by = self.manifest["producer"]["class_path"].rpartition(".")[2]
        return f"<Column {self.path}: {self._rows:,} rows, {width}, by {by}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_headers": {}, "_stacks": {}, "_lock": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        # a mirror's shards are unmapped, and no other thread may be reading them then
        self._reading: AbstractContextManager[Any] = threading.RLock() if self.mirror else nullcontext()

    def select(self, indices: "Tensor | Array | Selection") -> Selection:
        """Rows and the shards that hold them; columns with shards of equal size can share the selection."""
        return indices if isinstance(indices, Selection) else Selection(indices, self.shard_rows, self._rows)

    def rows(self, indices: "Tensor | Array | Selection") -> Any:
        """Rows at ``indices`` (batch,), in that order.

        Args:
            indices: rows, or what :meth:`select` made of them.

        Returns:
            A tensor (batch, dim) for a dense column; field -> :class:`Ragged` for a ragged one.

        Raises:
            IndexError: for a row beyond the end.
            CacheError: for a shard that is missing, damaged or swapped.
        """
        selection = self.select(indices)
        with self._reading:
            if self.kind == "ragged":
                return {field: self._ragged(field, selection) for field in self.manifest["fields"]}
            rows = self._gather(selection) if self._uniform else self._convert(selection)
        if self.kind == "bits":
            return as_tensor(np.unpackbits(rows.numpy(), axis=1, count=self.dim))
        return rows

    def valid(self, indices: "Tensor | Array | Selection") -> "Tensor":
        """Whether each row at ``indices`` (batch,) could be made; bool (batch,)."""
        selection = self.select(indices)
        out = np.ones(selection.count, np.bool_)
        for number, positions, rows in () if self.complete else selection.pieces():
            if self.shards[number]["valid"] < self.shards[number]["rows"]:
                with self._reading:
                    out[positions] = self._shard(number)["valid"][rows]
        return as_tensor(out)

    def read_ahead(self, first: int, count: int, keep: bool = False) -> None:
        """Ask the operating system to fetch ``count`` rows from ``first`` on into memory, without waiting for them.

        From an object store their shards are fetched into the local folder, and with ``keep`` never removed from there.
        """
        count = min(count, self._rows - first)
        for number in range(first // self.shard_rows, -(-(first + count) // self.shard_rows)):
            if self.mirror:
                self.mirror.ahead(self.path / file_name(number), self.shards[number], keep)
                continue
            start, stop = first - number * self.shard_rows, first + count - number * self.shard_rows
            self._advise(number, max(0, start), min(self.shards[number]["rows"], stop))

    def release(self) -> None:
        """Give back the pages that were read, so that they no longer count as this process's memory."""
        with self._reading:
            self._mapped.clear()
            for stack in list(self._stacks.values()):  # another thread may add one
                stack.release(unmap=self.mirror is not None)

    def _held(self, number: int) -> AbstractContextManager[Any]:
        """A shard of an object store is here as long as this context lasts."""
        if self.mirror is None:
            return nullcontext()
        return self.mirror.held(self.path / file_name(number), self.shards[number])

    def _advise(self, number: int, start: int, stop: int) -> None:
        names = [f"{field}/values" for field in self.manifest.get("fields", ())] or ["embedding"]
        path = self.path / file_name(number)
        with system_errors_in_words(path), open(path, "rb") as file:
            for name in names:
                offset, dtype, shape = self._header(number).fields[name]
                size, low, high = dtype.itemsize * math.prod(shape[1:]), start, stop
                if self.kind == "ragged":
                    low, high = self._shard(number)[name.replace("/values", "/offsets")][[start, stop]].tolist()
                if high > low and hasattr(os, "posix_fadvise"):  # macOS lacks it and reads ahead by itself
                    os.posix_fadvise(file.fileno(), offset + low * size, (high - low) * size, os.POSIX_FADV_WILLNEED)

    def _stack(self, selection: Selection, name: str, dtype: str, tail: Sequence[int], length: int) -> Stack:
        """The data set ``name`` of all shards; those that ``selection`` touches are mapped."""
        stack = self._stacks.get(name)
        if stack and not stack.missing:
            return stack
        with self._lock:
            if name not in self._stacks:
                for number in selection.touched[:1]:
                    self._header(number)  # a size that the manifest claims, and no shard has, would ask for any memory
                self._stacks[name] = Stack(name, dtype, tail, length, len(self.shards))
            stack = self._stacks[name]
            for number in stack.missing.intersection(selection.touched):
                self._place(stack, number)
        return stack

    def _place(self, stack: Stack, number: int) -> None:
        path = self.path / file_name(number)
        header = self._header(number)
        with system_errors_in_words(path), self._held(number):
            stack.place(number, path, header)

    def _gather(self, selection: Selection) -> "Tensor":
        """Rows (batch, width) of shards of one type."""
        stack = self._stack(selection, "embedding", self._read_as, (self._width,), min(self.shard_rows, self._rows))
        places = selection.places(stack.stride)
        if os.getpid() != self._process:  # torch's threads do not survive a fork, and workers have one each
            return as_tensor(stack.array.take(places.numpy(), 0))
        return stack.tensor.index_select(0, places)

    def _convert(self, selection: Selection) -> "Tensor":
        """Rows (batch, width) of int8 shards, or of shards of which some are wider."""
        out = np.empty((selection.count, self._width), self._read_as)
        for number, positions, rows in selection.pieces():
            arrays = self._shard(number)
            out[positions] = arrays["embedding"][rows]
            if "scale" in arrays:
                part = dequantise(arrays["embedding"][rows], arrays["scale"], arrays["offset"])
                part[arrays["valid"][rows] == 0] = 0
                out[positions] = part
        return as_tensor(out)

    def counts(self, field: str, indices: "Tensor | Array | Selection") -> Array:
        """How many elements a ragged ``field`` has in each row, (batch,)."""
        with self._reading:
            return self._places(field, self.select(indices))[1]

    def _places(self, field: str, selection: Selection) -> tuple[Array, Array]:
        """Where each row's elements begin in its shard, and how many there are."""
        longest = min(self.shard_rows, self._rows) + 1
        offsets = self._stack(selection, f"{field}/offsets", "int64", (), longest)
        places = selection.places(offsets.stride).numpy()
        starts = offsets.array[places]
        return starts, offsets.array[places + 1] - starts

    def _ragged(self, field: str, selection: Selection) -> Ragged:
        dtype, *tail = self.manifest["fields"][field]
        most = self._largest // max(1, np.dtype(dtype).itemsize * math.prod(tail))
        values = self._stack(selection, f"{field}/values", dtype, tail, most)
        starts, counts = self._places(field, selection)
        indices = spans(starts + selection.shards * values.stride, counts)
        longest = int(counts.max(initial=0))
        return Ragged(as_tensor(values.array.take(indices, 0)), as_tensor(counts), longest)

    def _shard(self, number: int) -> Arrays:
        arrays = self._mapped.get(number)
        if arrays is None:
            header = self._header(number)
            with self._held(number):
                arrays = self._mapped[number] = map_shard(self.path / file_name(number), header)[0]
        return arrays

    def _header(self, number: int) -> Header:
        if number not in self._headers:
            with self._held(number):
                self._headers[number] = column_header(self.path, self.manifest, number, self.shards[number])
        return self._headers[number]


def as_tensor(array: Array) -> "Tensor":
    """``array`` as a tensor on the same memory; torch is imported here, so that listing a cache needs none of it."""
    import torch

    return torch.from_numpy(array)


def spans(starts: Array, counts: Array) -> Array:
    """Indices of many runs, one after the other: ``starts[i], starts[i] + 1, ... (counts[i] of them)``; (total,)."""
    earlier = counts.cumsum() - counts  # elements of the runs before each run
    indices: Array = (starts - earlier).repeat(counts)
    indices += np.arange(len(indices))
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

    def __repr__(self) -> str:
        return f"<Aligned {self.corpus}: {len(self):,} rows of {', '.join(self.columns)}>"

    def select(self, indices: "Tensor | Array | Selection") -> Selection:
        """Rows and the shards that hold them, as :meth:`Column.select`."""
        return self._one.select(indices)

    def rows(self, indices: "Tensor | Array | Selection") -> dict[str, Any]:
        """Column -> its rows at ``indices`` (batch,), as :meth:`Column.rows`."""
        selection = self.select(indices)
        return {name: column.rows(selection) for name, column in self.columns.items()}

    def valid(self, indices: "Tensor | Array | Selection") -> "dict[str, Tensor]":
        """Column -> whether it has each row, as :meth:`Column.valid`; complete columns share one tensor."""
        selection = self.select(indices)
        complete = as_tensor(np.ones(selection.count, np.bool_))
        return {name: complete if each.complete else each.valid(selection) for name, each in self.columns.items()}

    def read_ahead(self, first: int, count: int, keep: bool = False) -> None:
        """As :meth:`Column.read_ahead`, of every column."""
        for column in self.columns.values():
            column.read_ahead(first, count, keep)

    def release(self) -> None:
        """As :meth:`Column.release`, of every column."""
        for column in self.columns.values():
            column.release()


def aligned(corpus: str | Path, columns: Iterable[str | Path | Column]) -> Aligned:
    """Open columns of one corpus side by side, to read them row by row together.

    Args:
        corpus: the corpus's folder.
        columns: paths, relative to the corpus (``teachers/gin``) or not, or open columns.

    Raises:
        CacheError: when one was made from another corpus, is unfinished, or shares its name with another.
    """
    corpus = Path(corpus)
    manifest = read_corpus(corpus)
    opened = [column if isinstance(column, Column) else Column(_under(corpus, Path(column))) for column in columns]
    if not opened:
        raise CacheError(f"no column of {corpus} is named; it has: {', '.join(path.name for path in list_columns(corpus))}")
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
