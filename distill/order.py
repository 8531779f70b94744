"""The order of samples as a pure function of numbers: (seed, epoch, rows, ranks, batch). No torch Dataset in it."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


def split(rows: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cut rows 0 to ``rows`` into training rows and ``held_out`` validation rows, at random but for good.

    Example:
        >>> train, held_out = split(rows=10, held_out=2, seed=0)
        >>> len(train), len(held_out), len(set(train.tolist()) & set(held_out.tolist()))
        (8, 2, 0)
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def global_batches(rows: Tensor, batch: int, seed: int, epoch: int) -> Tensor:
    """The epoch's batches over all ranks, (batches, batch); the tail that fills no batch is dropped.

    Args:
        rows: the rows to go through, (rows,).
        batch: rows of a step over all ranks together.
        seed: of the run.
        epoch: number of the epoch; each has its own order.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    count = len(rows) // batch
    return rows[torch.randperm(len(rows), generator=generator)[: count * batch]].view(count, batch)


class BatchOrder(Sampler[list[int]]):
    """Batch sampler of one rank: rank r of R takes every R-th row of each global batch.

    Args:
        rows: the rows to go through, (rows,).
        batch: rows of a step over all ranks together; a multiple of ``ranks``.
        seed: of the run.
        rank: this process.
        ranks: all of them.
        shuffle: off for validation; then the last batch may be smaller and rows keep their order.
    """

    def __init__(self, rows: Tensor, batch: int, seed: int, rank: int = 0, ranks: int = 1, shuffle: bool = True):
        self.rows, self.batch, self.seed, self.rank, self.ranks, self.shuffle = rows, batch, seed, rank, ranks, shuffle
        self.epoch = 0
        self.sampler = self  # Lightning calls set_epoch on `batch_sampler.sampler`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        mine = self.rows[self.rank :: self.ranks]
        return len(self.rows) // self.batch if self.shuffle else -(-len(mine) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            for whole in global_batches(self.rows, self.batch, self.seed, self.epoch):
                yield whole[self.rank :: self.ranks].tolist()
        else:
            for part in self.rows[self.rank :: self.ranks].split(self.batch):
                yield part.tolist()
