"""Aligned batches from one cache or several: the student's input and every teacher's embedding of the same rows."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from cache_tools import ConfigError, Statistics
from distill.data.augment import crop_and_mirror, is_image
from distill.data.batch import Batch
from distill.data.columns import CorpusColumns, Sampled, merge_statistics, open_corpus
from distill.data.loader import AheadLoader, AlignedRows, as_is
from distill.data.order import BatchOrder, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusSource:
    """One of several corpora of a run.

    Args:
        path: the corpus's folder in a cache.
        teachers: its columns to distil; all of them when not given.
        weight: its share of every batch, relative to the others'; by default its number of rows.
        input: the column that the student reads; the only one when not given.
    """

    path: Path
    teachers: list[str] | None = None
    weight: float | None = None
    input: str | None = None


class DistillData(LightningDataModule):
    """Streams aligned teacher embeddings from a cache.

    Args:
        corpus: the corpus's folder in the cache.
        corpora: several corpora instead of one, each with its own teachers and weight.
        teachers: columns to distil; all of them when not given.
        input: the column that the student reads; the only one when not given.
        augmentation: what the student sees of an image in training. ``clean``: what the teachers saw. ``views``: one of the
            crops of :class:`cache_tools.corpora.image.Views`, the very one that the teachers saw, another in each epoch.
            ``student-only``: a random crop, perhaps mirrored, while the teachers saw the whole image; their targets then
            fit only as far as they do not change under it.
        batch_size: rows of a step, over all ranks together.
        held_out: rows of each corpus that are never trained on, for validation; a tenth of them, at most 1000, when not
            given.
        seed: of the split, of the order of rows, and of what is random in a step (dropout, augmentation).
        num_workers: processes that gather batches; 0 gathers in a thread of the training process.
        block_rows: for a cache larger than memory: shuffle whole blocks of so many rows, and the rows of
            ``window_blocks`` blocks together; 0 shuffles all rows at once.
        window_blocks: blocks that are shuffled together.

    Raises:
        CacheError: when a column is missing or belongs to another corpus.
    """

    def __init__(
        self,
        corpus: Path = Path("cache/mol"),
        corpora: list[CorpusSource] | None = None,
        teachers: list[str] | None = None,
        input: str | None = None,
        augmentation: Literal["clean", "views", "student-only"] = "clean",
        batch_size: int = 256,
        held_out: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        block_rows: int = 0,
        window_blocks: int = 16,
    ):
        super().__init__()
        limits = {
            "held_out": (1 if held_out is None else held_out, 1),
            "batch_size": (batch_size, 1),
            "block_rows": (block_rows, 0),
        }
        for key, (value, least) in {**limits, "window_blocks": (window_blocks, 1)}.items():
            if value < least:
                raise ConfigError(f"data.{key} is {value}, expected at least {least}")
        if corpora and teachers:
            raise ConfigError("data.teachers belongs to data.corpus: name teachers inside each of data.corpora")
        if corpora and input:
            raise ConfigError("data.input belongs to data.corpus: name the input inside each of data.corpora")
        chosen = corpora or [CorpusSource(Path(corpus), teachers, input=input)]
        if bad := [each for each in chosen if each.weight is not None and not 0 < each.weight < math.inf]:
            raise ConfigError(f"the weight of {bad[0].path} is {bad[0].weight}, expected a finite number above 0")
        self.batch_size, self.seed, self.num_workers, self.augmentation = batch_size, seed, num_workers, augmentation
        self.corpora = [open_corpus(Path(each.path), each.teachers, each.input) for each in chosen]
        self._check_augmentation()
        self.sources = [
            self._source(part, each, held_out, block_rows, window_blocks)
            for part, each in zip(self.corpora, chosen, strict=True)
        ]
        self.statistics = {name: self._sampled(name, known) for name, known in merge_statistics(self.corpora).items()}

    def _sampled(self, name: str, known: Statistics) -> Sampled:
        """Statistics of the rows to train on: the cache's, without those that are held out."""
        both = zip(self.corpora, self.sources, strict=True)
        columns = [(part.teachers[name], source) for part, source in both if name in part.teachers]
        for column, source in columns:
            held = (source.held_out[:, None] * source.views + np.arange(source.views)).ravel()
            known = known.without(Statistics.of(column.rows(held)[column.valid(held)].float().numpy()))
        return Sampled(known.count, known.mean, known.var, columns)

    def _check_augmentation(self) -> None:
        images = [part for part in self.corpora if part.corpus.modality == "image"]
        if self.augmentation != "clean" and not images:
            raise ConfigError(f"data.augmentation {self.augmentation} is for images; there is no corpus of images here")
        for part in images:
            if self.augmentation == "views" and part.corpus.views == 1:
                raise ConfigError(
                    f"{part.columns.corpus} has one view of each image: for data.augmentation views, build it "
                    "with the corpus cache_tools.corpora.image.Views"
                )

    def _source(self, part: CorpusColumns, chosen: CorpusSource, held: int | None, block: int, window: int) -> Source:
        views = part.corpus.views
        rows, block = len(part.inputs) // views, -(-block // views)  # items from here on
        count = max(1, min(1000, rows // 10)) if held is None else held
        if rows - count < self.batch_size:
            raise ConfigError(
                f"{chosen.path} has {rows} rows; without {count} held out, "
                f"no batch of {self.batch_size} is left: lower data.held_out or data.batch_size"
            )
        if 2 * count > rows:
            raise ConfigError(f"{chosen.path} has {rows} rows; data.held_out {count} is more than half of them: lower it")
        return Source(rows, count, self.seed, chosen.weight, block, window, views, self.augmentation == "views")

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(shuffle=False)

    def _order(self, shuffle: bool) -> BatchOrder:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % ranks:
            raise ConfigError(f"data.batch_size is {self.batch_size}, expected a multiple of the {ranks} processes")
        if (least := min(source.held for source in self.sources)) < ranks:
            raise ConfigError(f"data.held_out is {least}, expected one row for each of the {ranks} processes")
        lengths = [part.lengths if part.featuriser.padded else None for part in self.corpora]
        return BatchOrder(self.sources, self.batch_size, self.seed, rank, ranks, shuffle, lengths)

    def _loader(self, shuffle: bool) -> DataLoader[Batch]:
        trainer, order = self.trainer, self._order(shuffle)
        if shuffle and order.dropped and not order.rank:
            log.info("each epoch leaves out %d rows, always others: they fill no batch of %d", order.dropped, order.batch)
        loader = AheadLoader(
            AlignedRows(self.corpora, {name: len(each.mean) for name, each in self.statistics.items()}),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=as_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        if shuffle and trainer:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            loader.progress = lambda: (trainer.current_epoch, progress.current.ready) if trainer.training else (0, 0)
        return loader

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order(shuffle=True).identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare a checkpoint's batches with those of this run.

        Raises:
            ConfigError: when they are others, so that a run cannot go on with them.
        """
        mine = self._order(shuffle=True).identity
        if self.trainer and self.trainer.state.fn == "fit" and state_dict["order"] != mine:
            raise ConfigError(
                f"the checkpoint's batches come from {state_dict['order']}, now they come from {mine}: "
                "a run goes on with the same corpora, data.batch_size, data.held_out and data.seed"
            )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Begin each training batch with random numbers of its own, so that a resumed run draws the same."""
        if self.trainer and self.trainer.training:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            key = self.seed, self.trainer.current_epoch, done, self.trainer.global_rank
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Crop and mirror the student's images on the device, where that is asked for."""
        if self.augmentation != "student-only" or not (self.trainer and self.trainer.training):
            return batch
        batch.inputs = {name: crop_and_mirror(rows) if is_image(rows) else rows for name, rows in batch.inputs.items()}
        return batch
