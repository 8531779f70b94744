"""The columns of a corpus that a run reads, and the statistics of its teachers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
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
    Selection,
    Statistics,
    aligned,
    current_class_path,
    list_columns,
    read_corpus,
    read_manifest,
    rebuild,
)
from distill.data.batch import Batch
from distill.data.order import Source

log = logging.getLogger(__name__)

KINDS = ("teachers", "inputs")

STUDENT = "distill.export.student.StudentTeacher"  # its columns teach only when they are named


class CorpusColumns:
    """The columns of one corpus that a run reads.

    Args:
        columns: the student's input and the teachers.
        input: name of the input.
    """

    def __init__(self, columns: Aligned, input: str):
        self.columns, self.inputs = columns, columns.columns[input]
        self.corpus = read_corpus(columns.corpus)
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


def featuriser_of(column: Column) -> Featuriser:
    """What made an input column, to unpack its rows."""
    made_by = rebuild(column.manifest["producer"], Featuriser)
    assert isinstance(made_by, Featuriser)
    return made_by


def open_corpus(corpus: Path, names: list[str] | None, input: str | None = None) -> CorpusColumns:
    """Open the student's input and the teachers of the corpus folder ``corpus``; all of its teachers without ``names``.

    Raises:
        CacheError: when the corpus or a column is missing or unfinished, or belongs to another corpus.
    """
    read_corpus(corpus)  # says so when there is none
    there = {kind: [path.name for path in list_columns(corpus) if path.parent.name == kind] for kind in KINDS}
    if missing := [name for name in names or [] if name not in there["teachers"]]:
        raise CacheError(
            f"{corpus} has no teacher column {', '.join(missing)}; it has: {', '.join(there['teachers']) or 'none'}. "
            "Name one of these in data.teachers, or add the missing one with `distill-cache build`"
        )
    if names is None:
        made = {name: read_manifest(corpus / "teachers" / name / MANIFEST) for name in there["teachers"]}
        names = [name for name, each in made.items() if current_class_path(each["producer"]["class_path"]) != STUDENT]
        for name in sorted(made.keys() - names):
            log.warning("%s: %s was made by `distill predict`; it teaches only when data.teachers names it", corpus, name)
    if not names:
        raise CacheError(f"{corpus} has no teacher column: add some with `make cache`")
    if input is None and len(there["inputs"]) != 1:
        found = ", ".join(there["inputs"]) or "none: add one with `distill-cache build`"
        raise CacheError(f"{corpus}: which input column shall the student read? Name it in data.input; there are: {found}")
    chosen = input or there["inputs"][0]
    return CorpusColumns(aligned(corpus, [Path("inputs") / chosen, *(Path("teachers") / name for name in names)]), chosen)


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


def merge_statistics(parts: Sequence[CorpusColumns]) -> dict[str, Statistics]:
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
