"""Aligned batches from a cache: the student's input and every teacher's embedding of the same rows."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cache_tools import store
from cache_tools.errors import CacheError, ConfigError
from cache_tools.reader import Column
from distill.order import BatchOrder, split

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Aligned rows."""

    inputs: Any  # the student's input of each row
    targets: dict[str, Tensor]  # teacher -> (batch, teacher_dim)
    valid: dict[str, Tensor]  # teacher -> (batch,), bool
    rows: Tensor  # (batch,): rows of the corpus


class AlignedRows(Dataset[Batch]):
    """Rows of several columns of one corpus; rows that the student cannot read are left out of a batch.

    Args:
        inputs: the column that the student reads.
        teachers: name -> column.
    """

    def __init__(self, inputs: Column, teachers: dict[str, Column]):
        self.inputs, self.teachers = inputs, teachers

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.tensor(indices)
        rows = rows[self.inputs.valid(rows)]
        return Batch(
            self.inputs.rows(rows),
            {name: column.rows(rows) for name, column in self.teachers.items()},
            {name: column.valid(rows) for name, column in self.teachers.items()},
            rows,
        )


def as_is(batch: Any) -> Any:
    """The collate function of :class:`AlignedRows`, which makes whole batches itself."""
    return batch


def open_columns(corpus: Path, names: list[str] | None, input: str) -> tuple[Column, dict[str, Column]]:
    """Open the student's input and the teachers of the corpus folder ``corpus``; all of its teachers without ``names``.

    Raises:
        CacheError: when the corpus or a column is missing or unfinished, or belongs to another corpus.
    """
    fingerprint = store.read_corpus(corpus).fingerprint
    there = [path.name for path in store.list_columns(corpus) if path.parent.name == "teachers"]
    if missing := [name for name in names or [] if name not in there]:
        raise CacheError(
            f"{corpus} has no teacher column {', '.join(missing)}; it has: {', '.join(there) or 'none'}. "
            "Name one of these in data.teachers, or add the missing one with `distill-cache build`"
        )
    teachers = {name: Column(corpus / "teachers" / name) for name in (there if names is None else names)}
    if not teachers:
        raise CacheError(f"{corpus} has no teacher column: add some with `make cache TEACHERS=mol`")
    inputs = Column(corpus / "inputs" / input)
    for column in (inputs, *teachers.values()):
        if column.corpus_fingerprint != fingerprint:
            raise CacheError(f"{column.path} was made from another corpus than {corpus}: delete it and build again")
    return inputs, teachers


class DistillData(LightningDataModule):
    """Streams aligned teacher embeddings from a cache.

    Args:
        corpus: the corpus's folder in the cache.
        teachers: columns to distil; all of them when not given.
        input: the column that the student reads.
        batch_size: rows of a step, over all ranks together.
        held_out: rows that are never trained on, for validation.
        seed: of the split and of the order of rows.
        num_workers: processes that gather batches; 0 gathers in the training process.

    Raises:
        CacheError: when a column is missing or belongs to another corpus.
    """

    def __init__(
        self,
        corpus: Path = Path("cache/mol"),
        teachers: list[str] | None = None,
        input: str = "graph",
        batch_size: int = 256,
        held_out: int = 1000,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        self.corpus, self.batch_size, self.seed, self.num_workers = Path(corpus), batch_size, seed, num_workers
        for key, value in (("held_out", held_out), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"data.{key} is {value}, expected at least 1")
        self.inputs, self.columns = open_columns(self.corpus, teachers, input)
        self.train_rows, self.held_out_rows = split(len(self.inputs), held_out, seed)
        if len(self.train_rows) < batch_size:
            raise ConfigError(
                f"{self.corpus} has {len(self.inputs)} rows; without {held_out} held out, "
                f"no batch of {batch_size} is left: lower data.held_out or data.batch_size"
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.train_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.held_out_rows, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.held_out_rows, shuffle=False)

    def _loader(self, rows: Tensor, shuffle: bool) -> DataLoader[Batch]:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DataLoader(
            AlignedRows(self.inputs, self.columns),
            batch_sampler=BatchOrder(rows, self.batch_size, self.seed, rank, ranks, shuffle),
            collate_fn=as_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
