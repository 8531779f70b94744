"""Tables of a row per token: one of which a batch reads few rows, one in which rare tokens share a row."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from cache_tools import ConfigError, Ragged


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


class SharedEmbedding(nn.Embedding):
    """A network's table of token vectors with a row for each of few tokens, and one row for all others.

    Args:
        table: of a row per token; its first rows are copied, until :meth:`share` chooses others.
        kept: tokens that have a row of their own.

    Attributes:
        tokens: number of tokens of ``table``.
        row_of: token -> its row, int32 (tokens,).

    Raises:
        ConfigError: when the table computes more than a look-up.
    """

    row_of: Tensor

    def __init__(self, table: nn.Module, kept: int):
        if type(table) is not nn.Embedding:
            raise ConfigError(
                f"kept needs a network whose tokens are an Embedding, found {type(table).__name__}: leave it out"
            )
        super().__init__(kept + 1, table.embedding_dim, _weight=table.weight.detach()[: kept + 1].clone())
        self.register_buffer("row_of", first_rows(table.num_embeddings, kept))
        self.tokens = table.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors (..., width) of token ids (...)."""
        return super().forward(self.row_of[ids].long())

    def whole(self) -> nn.Embedding:
        """A table with a row per token that gives the same vectors."""
        return nn.Embedding(len(self.row_of), self.embedding_dim, _weight=self.weight.detach()[self.row_of.long()])


def first_rows(tokens: int, kept: int) -> Tensor:
    """Token -> row, int32 (tokens,): a row for each of the first ``kept``, and row ``kept`` for all others.

    >>> first_rows(5, 2).tolist()
    [0, 1, 2, 2, 2]
    """
    return torch.arange(tokens, dtype=torch.int32).clamp_max(kept)


def commonest_rows(texts: Ragged, tokens: int, kept: int) -> Tensor:
    """Token -> row, int32 (tokens,): a row for each of the ``kept`` commonest tokens, and row ``kept`` for all others.

    Tokens that stand in every text come first: these are the special ones that a tokenizer adds.

    Args:
        texts: token ids.
        tokens: number of tokens that there are.
        kept: of them.

    Example:
        >>> texts = Ragged(torch.tensor([4, 1, 1, 1, 4, 2]), torch.tensor([4, 2]), 4)
        >>> commonest_rows(texts, tokens=5, kept=2).tolist()
        [2, 0, 2, 2, 1]
    """
    ids, text = texts.values.long(), torch.repeat_interleave(texts.counts.long())  # (ids,): the text of each token
    holding = torch.bincount(torch.unique(text * tokens + ids) % tokens, minlength=tokens)  # texts with the token
    often = torch.bincount(ids, minlength=tokens)
    often[holding == len(texts.counts)] += len(ids)
    chosen = often.argsort(descending=True, stable=True)[:kept].sort().values
    rows = torch.full((tokens,), kept, dtype=torch.int32)
    rows[chosen] = torch.arange(kept, dtype=torch.int32)
    return rows


def shared_rows(table: Tensor, row_of: Tensor, counts: Tensor) -> Tensor:
    """A table (rows, width) of one vector per token (tokens, width): the mean of the tokens of each row.

    Args:
        table: a vector per token.
        row_of: token -> row, (tokens,).
        counts: how often each token is met, (tokens,), above 0: its weight in the mean.
    """
    rows, weights = row_of.long(), counts.double()
    sums = torch.zeros(int(rows.max()) + 1, table.shape[1], dtype=torch.double)
    totals = sums.new_zeros(len(sums)).index_add(0, rows, weights)
    return sums.index_add(0, rows, weights.unsqueeze(1) * table.double()) / totals.unsqueeze(1)
