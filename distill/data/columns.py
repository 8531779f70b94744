"""The columns of a corpus that a run reads, and the statistics of its teachers."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_tools import (
    MANIFEST,
    Aligned,
    CacheError,
    Column,
    Featuriser,
    Statistics,
    aligned,
    current_class_path,
    list_columns,
    read_corpus,
    read_manifest,
    rebuild,
)
from distill.data.batch import Batch
from distill.data.source import Source
from distill.targets import TeacherStatistics

log = logging.getLogger(__name__)

KINDS = ("teachers", "inputs")

# who makes columns that no build made: they teach only when they are named, and manifests of version 0.1 name no maker
ADDED = ("cache_tools.teachers.imported.Imported", "distill.export.student.StudentTeacher")


class CorpusColumns:
    """The columns of one corpus that a run reads.

    Args:
        columns: the student's input and the teachers.
        input: name of the input.

    Attributes:
        corpus: the corpus's manifest.
        inputs: the student's input column.
        featuriser: what made it.
        teachers: name -> column.
    """

    def __init__(self, columns: Aligned, input: str):
        self.columns, self.inputs = columns, columns.columns[input]
        self.corpus = read_corpus(columns.corpus)
        self.featuriser = featuriser_of(self.inputs)
        self.teachers = {name: column for name, column in columns.columns.items() if name != input}

    def read(self, rows: Any, number: int = 0) -> Batch:
        """The batch of ``rows`` (batch,), as those of corpus ``number``; rows that the student cannot read are left out."""
        selection = self.columns.select(rows)
        if not self.inputs.complete:
            rows = rows[self.inputs.valid(selection).numpy()]
            selection = self.columns.select(rows)
        targets = self.columns.rows(selection)
        name = self.inputs.name
        inputs = {name: self.featuriser.unpack(targets.pop(name))}
        valid = self.columns.valid(selection)
        del valid[name]  # only rows that the student can read are left
        return Batch(inputs, targets, valid, torch.from_numpy(selection.wanted), torch.full((len(rows),), number))

    @property
    def remote(self) -> bool:
        """Whether the corpus is in an object store."""
        return self.inputs.mirror is not None

    def bytes_of(self, rows: int) -> int:
        """The most bytes that whole shards with so many rows can have."""
        shards = min(-(-rows // self.corpus.shard_rows), self.corpus.shard_count)
        largest: int = sum(max(shard["bytes"] for shard in column.shards) for column in self.columns.columns.values())
        return shards * largest

    def sample(self, count: int) -> Any:
        """What a student reads of at most ``count`` rows, spread evenly over the corpus."""
        numbers = torch.arange(0, len(self.inputs), max(1, -(-len(self.inputs) // count)))
        return self.featuriser.unpack(self.inputs.rows(numbers[self.inputs.valid(numbers)]))

    def lengths(self, rows: Any) -> Any:
        """Elements of each row that a student would pad, (rows,)."""
        assert self.featuriser.padded is not None
        return self.inputs.counts(self.featuriser.padded, rows)


def featuriser_of(column: Column) -> Featuriser:
    """What made an input column, to unpack its rows."""
    return rebuild(column.manifest["producer"], Featuriser, column.path)


def open_corpus(folder: Path, teachers: list[str] | None, input: str | None = None) -> CorpusColumns:
    """Open the columns of a corpus that a run reads.

    Args:
        folder: of the corpus, in a cache.
        teachers: columns to distil; all that builds made when not given, thus none that was imported or is a student's.
        input: the column that the student reads; the only one when not given.

    Raises:
        CacheError: when the corpus or a column is missing or unfinished, or belongs to another corpus.
    """
    read_corpus(folder)  # raises when there is none
    present = {kind: [path.name for path in list_columns(folder) if path.parent.name == kind] for kind in KINDS}
    if missing := [name for name in teachers or [] if name not in present["teachers"]]:
        raise CacheError(
            f"{folder} has no teacher column {', '.join(missing)}; it has: {', '.join(present['teachers']) or 'none'}. "
            "Name one of these in data.teachers, or add the missing one with `distill-cache build`"
        )
    chosen = _built(folder, present["teachers"]) if teachers is None else teachers
    if not chosen:
        raise CacheError(
            f"{folder} has no teacher column that a build made: add some with `make cache`, or name one in data.teachers; "
            f"it has: {', '.join(present['teachers']) or 'none'}"
        )
    if input is None and len(present["inputs"]) != 1:
        names = ", ".join(present["inputs"]) or "none: add one with `distill-cache build`"
        raise CacheError(f"{folder}: which input column shall the student read? Name it in data.input; there are: {names}")
    input = input or present["inputs"][0]
    paths = [Path("inputs") / input, *(Path("teachers") / name for name in chosen)]
    return CorpusColumns(aligned(folder, paths), input)


def _built(folder: Path, teachers: Sequence[str]) -> list[str]:
    """The columns that builds made by their configurations; the others are logged."""
    chosen = []
    for name in teachers:
        manifest = read_manifest(folder / "teachers" / name / MANIFEST)
        added = current_class_path(manifest["producer"]["class_path"]) in ADDED
        if manifest.get("made_by", "add_column" if added else "build") == "build":
            chosen.append(name)
    if others := [name for name in teachers if name not in chosen]:
        names = ", ".join(others)
        log.warning("%s: not made by a build, so a teacher only when data.teachers names it: %s", folder, names)
    return chosen


def drawn(columns: Sequence[Column], rows: int) -> torch.Tensor:
    """Row numbers drawn at random, always the same, at most ``rows``, of those that all of the columns hold."""
    count = len(columns[0])
    chosen = torch.from_numpy(np.random.default_rng(0).choice(count, min(count, 4 * rows), replace=False))
    return chosen[torch.stack([column.valid(chosen) for column in columns]).all(0)][:rows]


def teacher_statistics(corpora: Sequence[CorpusColumns], sources: Sequence[Source]) -> dict[str, TeacherStatistics]:
    """Each teacher's statistics over the rows to train on, of all corpora that it has seen.

    Args:
        corpora: those of the run.
        sources: of each corpus, which rows are trained on.

    Raises:
        CacheError: when a name stands for different teachers in two corpora.
    """
    seen: dict[str, list[tuple[Column, Source]]] = {}
    for columns, source in zip(corpora, sources, strict=True):
        for name, column in columns.teachers.items():
            seen.setdefault(name, []).append((column, source))
    return {name: _statistics(columns) for name, columns in seen.items()}


def _statistics(columns: Sequence[tuple[Column, Source]]) -> TeacherStatistics:
    """Those of one teacher's columns: the cache's, without the rows that are held out."""
    (first, _), *others = columns
    total = first.statistics
    for column, _ in others:
        if first.manifest["producer"]["fingerprint"] != column.manifest["producer"]["fingerprint"]:
            raise CacheError(f"{first.path} and {column.path} were made by different teachers: give one another name")
        total = total.merge(column.statistics)
    for column, source in columns:
        held = (source.held_out[:, None] * source.views + np.arange(source.views)).ravel()
        total = total.without(Statistics.of(column.rows(held)[column.valid(held)].float().numpy()))
    return TeacherStatistics(total.count, total.mean, total.var, partial(_sample, columns))


def _sample(columns: Sequence[tuple[Column, Source]], count: int) -> Tensor:
    """At most ``count`` embeddings, (rows, teacher_dim), float32, spread evenly over the rows to train on."""
    total, samples = sum(len(source) for _, source in columns), []
    for column, source in columns:
        share = min(len(source), -(-count * len(source) // total))
        rows = source.view(source.sample(share))
        samples.append(column.rows(rows)[column.valid(rows)].float())
    return torch.cat(samples)[:count]
