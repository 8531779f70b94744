"""A table of which a batch reads few rows, as a vector per token."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class RowTable(nn.EmbeddingBag):
    """A table of vectors, one row per token, whose sums are read. Training moves only the rows that a batch reads.

    Each row has an AdamW of its own, :class:`distill.training.rows.RowAdamW`: it moves and decays in steps that read it.

    On a CPU the gradient holds these rows alone. A GPU adds to all rows faster than it sorts some, and its ranks cannot
    exchange some rows, so there the gradient is whole.

    Args:
        rows: of the table.
        width: of a row.
    """

    def __init__(self, rows: int, width: int):
        super().__init__(rows, width, mode="sum", sparse=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sparse = self.weight.device.type == "cpu"
        return self

    def each(self, rows: Tensor) -> Tensor:
        """The vectors of ``rows`` (count,), one by one: (count, width)."""
        out: Tensor = self(rows, torch.arange(len(rows), device=rows.device))
        return out
