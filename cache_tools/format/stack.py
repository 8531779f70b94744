"""The parts of a column's reader: which rows of which shards, and the shards' data at consecutive addresses."""

import math
import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache_tools.format.addresses import PAGE, AddressRange
from cache_tools.format.packing import Array
from cache_tools.format.shard import Header

if TYPE_CHECKING:
    from torch import Tensor


class Selection:
    """Rows of a corpus and the shards that hold them; columns with shards of equal size share one selection.

    Args:
        indices: rows, (batch,).
        shard_rows: rows of a shard.
        rows: of the corpus.

    Raises:
        IndexError: for a row beyond the end.
        TypeError: for anything but a list of whole numbers.
    """

    def __init__(self, indices: "Tensor | Array", shard_rows: int, rows: int):
        given: Array = np.asarray(indices)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise TypeError(
                f"expected row numbers of shape (batch,), found {given.dtype} of shape {given.shape}; "
                "a mask's rows are mask.nonzero().squeeze(1)"
            )
        self.wanted: Array = given.astype(np.int64, copy=False)
        self.count, self.shard_rows = len(self.wanted), shard_rows
        self._places: dict[int, Tensor] = {}
        lowest, highest = (self.wanted.min(), self.wanted.max()) if self.count else (0, 0)
        if lowest < 0 or highest >= max(1, rows):
            raise IndexError(f"rows 0 to {rows - 1} exist; asked for {lowest if lowest < 0 else highest}")

    @cached_property
    def shards(self) -> Array:
        """The shard of each row, (batch,)."""
        return self.wanted // self.shard_rows

    def places(self, stride: int) -> "Tensor":
        """Where each row stands in a :class:`Stack` of this stride, (batch,); columns of one stride share the tensor."""
        if stride not in self._places:
            import torch

            apart = stride - self.shard_rows
            self._places[stride] = torch.from_numpy(self.wanted + self.shards * apart if apart else self.wanted)
        return self._places[stride]

    @cached_property
    def touched(self) -> list[int]:
        """Every shard that holds a row."""
        return [int(number) for number in np.unique(self.shards)]

    def pieces(self) -> Iterator[tuple[int, Array, Array]]:
        """Per shard touched: its number, positions in the batch, rows inside the shard."""
        for number in self.touched:
            positions = np.flatnonzero(self.shards == number)
            yield number, positions, self.wanted[positions] - number * self.shard_rows


class Stack:
    """One data set of all shards of a column at consecutive addresses: one gather reads it as if it were one array.

    Args:
        name: of the data set.
        dtype: of its elements.
        tail: shape of an element.
        length: the most elements that a shard has; each shard gets room for this many, rounded up to whole pages.
        shards: of the column.
    """

    def __init__(self, name: str, dtype: str, tail: Sequence[int], length: int, shards: int):
        self.name, self.missing = name, set(range(shards))
        self._mapped: list[int] = []
        self._element = np.dtype(dtype).itemsize * math.prod(tail)
        unit = math.lcm(PAGE, max(1, self._element))  # whole pages and whole elements
        self._room = -(-max(1, length * self._element) // unit) * unit
        self.stride = self._room // max(1, self._element)  # elements from a shard's first to the next one's
        self.range = AddressRange(self._room * shards)
        self.array = self.range.array(np.dtype(dtype), (self.stride * shards, *tail))

    @cached_property
    def tensor(self) -> "Tensor":
        """:attr:`array` as a tensor."""
        import torch

        return torch.from_numpy(self.array)

    def place(self, number: int, path: Path, header: Header) -> None:
        """Put a shard's data in its place: mapped when it begins at a page of the file, otherwise copied."""
        offset, dtype, shape = header.fields[self.name]
        size, at = dtype.itemsize * math.prod(shape), number * self._room
        if size and offset % PAGE:
            with open(path, "rb") as file:
                file.seek(offset)
                self.range.fill(file.read(size), at)
        elif size:
            self.range.place(path, offset, size, at)
            self._mapped.append(number)
        self.missing.discard(number)

    def release(self, unmap: bool = False) -> None:
        """Give the files' pages back; a gather that is running reads them again from the file. Copies stay.

        Args:
            unmap: let go of the files too, when no gather can be running; shards are placed again when they are read.
        """
        for number in list(self._mapped):
            span = number * self._room, (number + 1) * self._room
            if unmap:
                self._mapped.remove(number)
                self.missing.add(number)
                self.range.clear(*span)
            else:
                self.range.advise(*span, mmap.MADV_DONTNEED)
