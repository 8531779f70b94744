"""Aligned batches from one cache or several: the student's input and every teacher's embedding of the same rows."""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from cache_tools import ConfigError, open_mirror
from distill.data.augment import alternately_mirrored, crop_and_mirror, is_image
from distill.data.batch import Batch
from distill.data.columns import CorpusColumns, open_corpus, teacher_statistics
from distill.data.loader import AheadLoader, AlignedRows, as_is, end_with_parent
from distill.data.order import SLAB, BatchOrder
from distill.data.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusSource:
    """One of several corpora of a run.

    Args:
        path: the corpus's folder in a cache, or its URL in an object store.
        teachers: its columns to distil; all that builds made when not given.
        weight: its share of every batch, relative to the others'; by default its number of rows.
        input: the column that the student reads; the only one when not given.
    """

    path: str | Path
    teachers: list[str] | None = None
    weight: float | None = None
    input: str | None = None


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of ``device``, as ``torch.manual_seed`` seeds those of every device.

    That function takes up to a millisecond on a build for GPUs without a GPU, and keeps each call in a list.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class DistillData(LightningDataModule):
    """Streams aligned teacher embeddings from a cache.

    Args:
        corpus: the corpus's folder in the cache, or its URL in an object store, such as ``s3://bucket/cache/mol``.
        corpora: several corpora instead of one, each with its own teachers and weight.
        teachers: columns to distil; all that builds made when not given, thus none that was imported or is a student's.
        input: the column that the student reads; the only one when not given.
        augmentation: what the student sees of an image in training. ``clean``: what the teachers saw. ``views``: one of the
            crops of :class:`cache_tools.corpora.image.Views`, the same one that the teachers saw, another in each epoch.
            ``student-only``: a random crop, mirrored in every other epoch, while the teachers saw the whole image; their
            targets are right only as far as cropping and mirroring do not change them.
        batch_size: rows of a step, over all ranks together.
        held_out: rows of each corpus that are never trained on, for validation; a tenth of them, at most 1000, when not
            given.
        seed: of the split, of the order of rows, and of what is random in a step (dropout, augmentation).
        num_workers: processes that gather batches; 0 gathers in a thread of the training process.
        block_rows: for a cache larger than memory: shuffle whole blocks of so many rows, and the rows of
            ``window_blocks`` blocks together; 0 shuffles all rows at once.
        window_blocks: blocks that are shuffled together.
        held_out_blocks: draw the rows held out from so many blocks, 0: from the whole corpus; when not given, 0 for a local
            corpus, and ``window_blocks`` for one in an object store, whose shards would all be needed otherwise.
        groups: nodes, each of which reads a part of every corpus, and needs its shards only.
        local: for an object store: a folder of each node's own disk, which gets shards shortly before they are read.
        local_limit: bytes that shards may take there, such as ``200GB``; as many as the disk has when not given.
        storage_options: of the object store, as fsspec takes them, such as ``endpoint_url``; credentials stay in the
            environment.

    Raises:
        CacheError: when a column is missing or belongs to another corpus.
    """

    def __init__(
        self,
        corpus: str | Path = "cache/mol",
        corpora: list[CorpusSource] | None = None,
        teachers: list[str] | str | None = None,
        input: str | None = None,
        augmentation: Literal["clean", "views", "student-only"] = "clean",
        batch_size: int = 256,
        held_out: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        block_rows: int = 0,
        window_blocks: int = 16,
        held_out_blocks: int | None = None,
        groups: int = 1,
        local: Path | None = None,
        local_limit: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self._check_at_least(1, held_out=held_out, batch_size=batch_size, window_blocks=window_blocks, groups=groups)
        self._check_at_least(0, block_rows=block_rows, held_out_blocks=held_out_blocks)
        for key, value in (("teachers", teachers), ("input", input)):
            if corpora and value:
                raise ConfigError(f"data.{key} belongs to data.corpus: name {key} inside each of data.corpora")
        names = [teachers] if isinstance(teachers, str) else teachers
        chosen = corpora or [CorpusSource(corpus, names, input=input)]
        for source in chosen:
            if source.weight is not None and not 0 < source.weight < math.inf:
                raise ConfigError(f"the weight of {source.path} is {source.weight}, expected a finite number above 0")
        self.batch_size, self.seed, self.num_workers, self.augmentation = batch_size, seed, num_workers, augmentation
        limit, self.groups = parse_bytes(local_limit) if local_limit else None, groups
        folders = [_here(str(source.path), local, limit, storage_options) for source in chosen]
        self.corpora = [
            open_corpus(folder, source.teachers, source.input) for folder, source in zip(folders, chosen, strict=True)
        ]
        self._check_augmentation()
        self.sources = [
            self._source(columns, source, held_out, (block_rows, window_blocks, held_out_blocks))
            for columns, source in zip(self.corpora, chosen, strict=True)
        ]
        self._make_room(limit)
        self.statistics = teacher_statistics(self.corpora, self.sources)

    @staticmethod
    def _check_at_least(least: int, **options: int | None) -> None:
        for key, value in options.items():
            if value is not None and value < least:
                raise ConfigError(f"data.{key} is {value}, expected at least {least}")

    def _check_augmentation(self) -> None:
        images = [columns for columns in self.corpora if columns.corpus.modality == "image"]
        if self.augmentation != "clean" and not images:
            raise ConfigError(f"data.augmentation {self.augmentation} is for images; there is no corpus of images here")
        for columns in images:
            if self.augmentation == "views" and columns.corpus.views == 1:
                raise ConfigError(
                    f"{columns.columns.corpus} has one view of each image: for data.augmentation views, build it "
                    "with the corpus cache_tools.corpora.image.Views"
                )

    def _source(
        self, columns: CorpusColumns, source: CorpusSource, held: int | None, blocks: tuple[int, int, int | None]
    ) -> Source:
        views, (block, window, near) = columns.corpus.views, blocks
        if columns.remote and (not block or block % columns.corpus.shard_rows or block % views):
            raise ConfigError(
                f"{source.path} is in an object store, from which whole shards are fetched: data.block_rows is {block}, "
                f"expected a multiple of the {columns.corpus.shard_rows} rows of a shard"
            )
        near = (window if columns.remote else 0) if near is None else near
        if near and not block:
            raise ConfigError(f"data.held_out_blocks is {near}, but data.block_rows is 0: there are no blocks")
        rows, block = len(columns.inputs) // views, -(-block // views)  # items from here on
        count = max(1, min(1000, rows // 10)) if held is None else held
        if rows - count < self.batch_size:
            raise ConfigError(
                f"{source.path} has {rows} rows; without {count} held out, "
                f"no batch of {self.batch_size} is left: lower data.held_out or data.batch_size"
            )
        if 2 * count > rows:
            raise ConfigError(f"{source.path} has {rows} rows; data.held_out {count} is more than half of them: lower it")
        made = Source(rows, count, self.seed, source.weight, block, window, views, self.augmentation == "views", near)
        if near and 2 * count > (most := sum(rows for _, rows in made.held_blocks)):
            raise ConfigError(f"data.held_out {count} is more than half of {most} rows: raise data.held_out_blocks")
        return made

    def _make_room(self, limit: int | None) -> None:
        """Fetch the rows held out from object stores, after a check that two windows have room beside them."""
        needed, blocks = 0, []
        for columns, source in zip(self.corpora, self.sources, strict=True):
            window = source.block * source.window
            # batches that are sorted by length need the windows of all that they are sorted with
            windows = 2 + (-(-SLAB * self.batch_size // window) if columns.featuriser.padded and window else 0)
            if columns.remote:
                held = sum(count for _, count in source.held_blocks)
                needed += columns.bytes_of((windows * window + held) * source.views)
                blocks += [(columns, first * source.views, count * source.views) for first, count in source.held_blocks]
        if limit is not None and limit < needed:
            raise ConfigError(
                f"data.local_limit is {limit:,} bytes, expected at least {needed:,}: two windows of data.window_blocks "
                "blocks, and the blocks of rows held out; raise it, or lower data.window_blocks"
            )
        for columns, first, count in blocks:
            columns.columns.read_ahead(first, count, keep=True)

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
        lengths = [columns.lengths if columns.featuriser.padded else None for columns in self.corpora]
        return BatchOrder(self.sources, self.batch_size, self.seed, rank, ranks, shuffle, lengths, self.groups)

    def _loader(self, shuffle: bool) -> DataLoader[Batch]:
        trainer, order = self.trainer, self._order(shuffle)
        if shuffle and order.ranks % self.groups:
            raise ConfigError(f"data.groups is {self.groups}, expected a divisor of the {order.ranks} processes")
        if shuffle and order.dropped and not order.rank:
            log.info(
                "each epoch leaves out %d rows, different ones each time: they fill no batch of %d",
                order.dropped,
                order.batch,
            )
        loader = AheadLoader(
            AlignedRows(self.corpora, {name: len(known.mean) for name, known in self.statistics.items()}),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=as_is,
            num_workers=self.num_workers,
            worker_init_fn=end_with_parent,
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
        """Check that a run which goes on has the batches of its checkpoint.

        Raises:
            ConfigError: when it would have others.
        """
        mine = self._order(shuffle=True).identity
        if self.trainer and self.trainer.state.fn == "fit" and state_dict["order"] != mine:
            raise ConfigError(
                f"the checkpoint's batches come from {state_dict['order']}, now they come from {mine}: "
                "a run goes on with the same corpora, data.batch_size, data.held_out and data.seed"
            )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Seed torch for each training batch, so that a resumed run draws the same numbers."""
        if self.trainer and self.trainer.training:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            key = (self.seed, self.trainer.current_epoch, done, self.trainer.global_rank)
            seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
            seed_generators(seed, self.trainer.strategy.root_device)
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Crop and mirror the student's images on the device when ``augmentation`` is ``student-only``."""
        if self.augmentation != "student-only" or not (self.trainer and self.trainer.training):
            return batch
        mirrored = alternately_mirrored(batch.rows, batch.corpora, self.seed, self.trainer.current_epoch)
        for name, pixels in batch.inputs.items():
            if is_image(pixels):
                batch.inputs[name] = crop_and_mirror(pixels, mirrored[self._reading(name, batch.corpora)])
        return batch

    def _reading(self, name: str, corpora: Tensor) -> Tensor:
        """Which rows of a batch are read from the input column ``name``, (batch,), bool."""
        numbers = [number for number, columns in enumerate(self.corpora) if columns.inputs.name == name]
        return torch.isin(corpora, torch.tensor(numbers, device=corpora.device))


def _here(path: str, local: Path | None, limit: int | None, options: dict[str, Any] | None) -> Path:
    """The folder of a corpus on this machine; one in an object store gets a mirror."""
    if "://" not in path:
        return Path(path)
    if local is None:
        raise ConfigError(f"{path} is in an object store: name a folder of this machine's disk in data.local")
    return open_mirror(path, local, limit, options)


def parse_bytes(size: str) -> int:
    """Bytes of a size in powers of 1000.

    Example:
        >>> parse_bytes("1.5GB")
        1500000000
    """
    if not (found := re.fullmatch(r"([0-9.]+) ?([kMGT]?)B", size)):
        raise ConfigError(f"data.local_limit is {size}, expected a size such as 200GB")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))
