"""Aligned batches from one cache or several: the student's input and every teacher's embedding of the same rows."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning_utilities import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from cache_tools import Column, aligned, store
from cache_tools.columns import Featuriser
from cache_tools.errors import CacheError, ConfigError
from cache_tools.producer import rebuild
from cache_tools.reader import Aligned
from cache_tools.stack import Selection
from cache_tools.statistics import Statistics
from cache_tools.store import Ragged
from distill.augment import crop_and_mirror, is_image
from distill.order import BatchOrder, Source, Step

KINDS = ("teachers", "inputs")
STUDENT = "distill.exported.StudentTeacher"  # its columns teach only when they are named

log = logging.getLogger(__name__)


class Batch:
    """Aligned rows.

    No tuple, which Lightning would open: ``bf16-true`` rounds every tensor that it finds, and targets are no inputs.

    Attributes:
        inputs: input column -> what the student reads of its rows; with several, rows come in this order.
        targets: teacher -> (batch, teacher_dim).
        valid: teacher -> (batch,), bool: False where the teacher has not seen the row.
        rows: rows of the corpus, (batch,).
        corpora: number of each row's corpus, (batch,).
    """

    def __init__(
        self, inputs: dict[str, Any], targets: dict[str, Tensor], valid: dict[str, Tensor], rows: Tensor, corpora: Tensor
    ):
        self.inputs, self.targets, self.valid, self.rows, self.corpora = inputs, targets, valid, rows, corpora

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same rows on a device; from pinned memory the host does not wait."""
        return Batch(*(_moved(each, torch.device(device), non_blocking) for each in vars(self).values()))

    def pin_memory(self) -> "Batch":
        """The same rows in memory that a GPU reads by itself."""
        return Batch(*(pin_memory(each) for each in vars(self).values()))


def _moved(data: Any, device: torch.device, non_blocking: bool) -> Any:
    return apply_to_collection(data, Tensor, lambda each: each.to(device, non_blocking=non_blocking))


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


class Part:
    """The columns of one corpus that a run reads.

    Args:
        columns: the student's input and the teachers.
        input: name of the input.
    """

    def __init__(self, columns: Aligned, input: str):
        self.columns, self.inputs = columns, columns.columns[input]
        self.corpus = store.read_corpus(columns.corpus)
        self.featuriser = featuriser_of(self.inputs)
        self.teachers = {name: column for name, column in columns.columns.items() if name != input}

    def read(self, rows: Any, number: int = 0) -> Batch:
        """The batch of ``rows`` (batch,); rows that the student cannot read are left out."""
        chosen = self.columns.select(rows)
        if not self.inputs.complete:
            rows = rows[self.inputs.valid(chosen).numpy()]
            chosen = self.columns.select(rows)
        read = self.columns.rows(chosen)
        name = self.inputs.name
        inputs = {name: self.featuriser.unpack(read.pop(name))}
        return Batch(inputs, read, self._valid(chosen), torch.from_numpy(chosen.wanted), torch.full((len(rows),), number))

    def lengths(self, rows: Any) -> Any:
        """Elements that a student would pad in each row, (rows,)."""
        assert self.featuriser.padded is not None
        return self.inputs.counts(self.featuriser.padded, rows)

    def _valid(self, chosen: Selection) -> dict[str, Tensor]:
        everything = torch.ones(chosen.count, dtype=torch.bool)  # one for all columns that are complete
        return {name: everything if column.complete else column.valid(chosen) for name, column in self.teachers.items()}


class AlignedRows(Dataset[Batch]):
    """Batches of the rows of several corpora.

    Args:
        parts: a part per corpus.
        dims: teacher -> its width, over all corpora.
    """

    def __init__(self, parts: Sequence[Part], dims: Mapping[str, int]):
        self.parts, self.dims = list(parts), dict(dims)
        self._windows: tuple[int, ...] = ()

    def __getitems__(self, step: Step) -> Batch:
        for part, window, before in zip(self.parts, step.windows, self._windows, strict=False):
            if window != before:
                part.columns.release()
        self._windows = step.windows
        for part, runs in zip(self.parts, step.ahead, strict=False):
            for first, count in runs:
                part.columns.read_ahead(first, count)
        read = [part.read(rows, k) for k, (part, rows) in enumerate(zip(self.parts, step.rows, strict=True)) if len(rows)]
        return read[0] if len(read) == 1 and read[0].targets.keys() == self.dims.keys() else join(read, self.dims)


def join(batches: Sequence[Batch], dims: Mapping[str, int]) -> Batch:
    """Batches one after the other, those of one input column together; a teacher that a batch lacks has not seen its rows.

    Args:
        batches: of different corpora.
        dims: teacher -> its width.
    """
    columns = list(dict.fromkeys(name for each in batches for name in each.inputs))
    batches = sorted(batches, key=lambda each: columns.index(next(iter(each.inputs))))
    inputs = {name: _join_inputs([each.inputs[name] for each in batches if name in each.inputs]) for name in columns}
    targets, valid = {}, {}
    for name, dim in dims.items():
        dtype = next((each.targets[name].dtype for each in batches if name in each.targets), torch.float16)
        unseen = [torch.zeros(0 if name in each.targets else len(each.rows), dim, dtype=dtype) for each in batches]
        targets[name] = torch.cat([each.targets.get(name, none) for each, none in zip(batches, unseen, strict=True)])
        valid[name] = torch.cat([each.valid.get(name, torch.zeros(len(each.rows), dtype=torch.bool)) for each in batches])
    rows, corpora = torch.cat([each.rows for each in batches]), torch.cat([each.corpora for each in batches])
    return Batch(inputs, targets, valid, rows, corpora)


def _join_inputs(inputs: Sequence[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {name: _join_inputs([each[name] for each in inputs]) for name in inputs[0]}
    if isinstance(inputs[0], Ragged):
        values, counts = (torch.cat([getattr(each, key) for each in inputs]) for key in ("values", "counts"))
        return Ragged(values, counts, max(each.longest for each in inputs))
    return torch.cat(list(inputs))


def as_is(batch: Any) -> Any:
    """The collate function of :class:`AlignedRows`, which makes whole batches itself."""
    return batch


class AheadLoader(DataLoader[Batch]):
    """A DataLoader that gathers the next two batches in a thread while a GPU works on this one.

    Gathering is copying, which needs no Python lock; a worker process would add a pipe and one more copy. Without a GPU
    the model's own threads gather best: two teams of threads on the same cores wait for each other.

    A killed epoch goes on behind the last batch that was stepped on, which Lightning's progress tells.
    """

    progress: Callable[[], tuple[int, int]] | None = None  # the epoch to read, and its batches that were stepped on before

    @property
    def order(self) -> BatchOrder:
        """What decides the batches."""
        return cast(BatchOrder, self.batch_sampler)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: with it Lightning knows a loader that can go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing, see :meth:`state_dict`."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.progress:  # Lightning's own set_epoch is one too high after some restarts
            self.order.epoch, self.order.start = self.progress()
        yield from self._batches()

    def _batches(self) -> Iterator[Batch]:
        if self.num_workers:
            yield from super().__iter__()
            return
        dataset = cast(AlignedRows, self.dataset)
        batches = (dataset.__getitems__(step) for step in self.order)
        if not self.pin_memory:
            yield from batches
            return
        with ThreadPoolExecutor(1) as thread:
            pinned = map(pin_memory, batches)
            coming = deque(thread.submit(next, pinned, None) for _ in range(2))
            while (batch := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, pinned, None))
                yield batch


def featuriser_of(column: Column) -> Featuriser:
    """What made an input column, to unpack its rows."""
    made_by = rebuild(column.manifest["producer"], Featuriser)
    assert isinstance(made_by, Featuriser)
    return made_by


def open_part(corpus: Path, names: list[str] | None, input: str | None = None) -> Part:
    """Open the student's input and the teachers of the corpus folder ``corpus``; all of its teachers without ``names``.

    Raises:
        CacheError: when the corpus or a column is missing or unfinished, or belongs to another corpus.
    """
    store.read_corpus(corpus)  # says so when there is none
    there = {kind: [path.name for path in store.list_columns(corpus) if path.parent.name == kind] for kind in KINDS}
    if missing := [name for name in names or [] if name not in there["teachers"]]:
        raise CacheError(
            f"{corpus} has no teacher column {', '.join(missing)}; it has: {', '.join(there['teachers']) or 'none'}. "
            "Name one of these in data.teachers, or add the missing one with `distill-cache build`"
        )
    if names is None:
        made = {name: store.read_manifest(corpus / "teachers" / name / store.MANIFEST) for name in there["teachers"]}
        names = [name for name, each in made.items() if each["producer"]["class_path"] != STUDENT]
        for name in sorted(made.keys() - names):
            log.warning("%s: %s was made by `distill predict`; it teaches only when data.teachers names it", corpus, name)
    if not names:
        raise CacheError(f"{corpus} has no teacher column: add some with `make cache`")
    if input is None and len(there["inputs"]) != 1:
        found = ", ".join(there["inputs"]) or "none: add one with `distill-cache build`"
        raise CacheError(f"{corpus}: which input column shall the student read? Name it in data.input; there are: {found}")
    chosen = input or there["inputs"][0]
    return Part(aligned(corpus, [Path("inputs") / chosen, *(Path("teachers") / name for name in names)]), chosen)


@dataclass(frozen=True)
class Sampled(Statistics):
    """Statistics of a teacher, and where its rows are, to compute more of them.

    Args:
        columns: the teacher's column of each corpus that it has seen, and which of its rows are trained on.
    """

    columns: Sequence[tuple[Column, Source]]

    def rows(self, count: int) -> Tensor:
        """At most ``count`` embeddings, (rows, teacher_dim), float32, spread evenly over the rows to train on."""
        every, found = sum(len(source) for _, source in self.columns), []
        for column, source in self.columns:
            share = min(len(source), -(-count * len(source) // every))
            rows = source.view(source.training(np.arange(share) * len(source) // share))
            found.append(column.rows(rows)[column.valid(rows)].float())
        return torch.cat(found)[:count]


def merge_statistics(parts: Sequence[Part]) -> dict[str, Statistics]:
    """Each teacher's statistics over all corpora that it has seen.

    Raises:
        CacheError: when a name stands for different teachers in two corpora.
    """
    merged: dict[str, Statistics] = {}
    first: dict[str, Column] = {}
    for part in parts:
        for name, column in part.teachers.items():
            other = first.setdefault(name, column)
            if other.manifest["producer"]["fingerprint"] != column.manifest["producer"]["fingerprint"]:
                raise CacheError(f"{other.path} and {column.path} were made by different teachers: give one another name")
            merged[name] = merged[name].merge(column.statistics) if name in merged else column.statistics
    return merged


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
        self.parts = [open_part(Path(each.path), each.teachers, each.input) for each in chosen]
        self._check_augmentation()
        self.sources = [
            self._source(part, each, held_out, block_rows, window_blocks)
            for part, each in zip(self.parts, chosen, strict=True)
        ]
        self.statistics = {name: self._sampled(name, known) for name, known in merge_statistics(self.parts).items()}

    def _sampled(self, name: str, known: Statistics) -> Sampled:
        """Statistics of the rows to train on: the cache's, without those that are held out."""
        both = zip(self.parts, self.sources, strict=True)
        columns = [(part.teachers[name], source) for part, source in both if name in part.teachers]
        for column, source in columns:
            held = (source.held_out[:, None] * source.views + np.arange(source.views)).ravel()
            known = known.without(Statistics.of(column.rows(held)[column.valid(held)].float().numpy()))
        return Sampled(known.count, known.mean, known.var, columns)

    def _check_augmentation(self) -> None:
        images = [part for part in self.parts if part.corpus.modality == "image"]
        if self.augmentation != "clean" and not images:
            raise ConfigError(f"data.augmentation {self.augmentation} is for images; there is no corpus of images here")
        for part in images:
            if self.augmentation == "views" and part.corpus.views == 1:
                raise ConfigError(
                    f"{part.columns.corpus} has one view of each image: for data.augmentation views, build it "
                    "with the corpus cache_tools.corpora.image.Views"
                )

    def _source(self, part: Part, chosen: CorpusSource, held: int | None, block: int, window: int) -> Source:
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
        lengths = [part.lengths if part.featuriser.padded else None for part in self.parts]
        return BatchOrder(self.sources, self.batch_size, self.seed, rank, ranks, shuffle, lengths)

    def _loader(self, shuffle: bool) -> DataLoader[Batch]:
        trainer, order = self.trainer, self._order(shuffle)
        if shuffle and order.dropped and not order.rank:
            log.info("each epoch leaves out %d rows, always others: they fill no batch of %d", order.dropped, order.batch)
        loader = AheadLoader(
            AlignedRows(self.parts, {name: len(each.mean) for name, each in self.statistics.items()}),
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
