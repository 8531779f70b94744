"""Corpora of texts."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from cache_tools.corpus import Corpus
from cache_tools.hub import as_id, read_dataset
from cache_tools.tables import kind_of, read_lines, read_table


class TextFile(Corpus):
    """Texts in a table, or in a txt file (one text a line; empty lines are left out).

    Args:
        path: ``.txt``, ``.csv``, ``.jsonl`` or ``.parquet``; all but parquet also as ``.gz``.
        text: the table's column of texts.
        id: the table's column of ids; without one an id is a hash of the text.
        every: keep one row of so many, from the first on: a sample of all parts of a sorted file.
        limit: keep so many rows at most.

    Raises:
        CorpusError: missing file, unknown ending, missing column, no rows.
    """

    modality = "text"

    def __init__(
        self,
        path: str | os.PathLike[str],
        text: str = "text",
        id: str | None = None,
        every: int = 1,
        limit: int | None = None,
    ):
        self.path = Path(path)
        self.text, self.id, self.every, self.limit = text, id, every, limit

    @property
    def source(self) -> str:
        return str(self.path)

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        kept = itertools.islice(itertools.islice(self._rows(), None, None, self.every), self.limit)
        return ((identity, text.encode()) for identity, text in kept)

    def _rows(self) -> Iterator[tuple[str, str]]:
        if kind_of(self.path) == ".txt":
            return (("", line.strip()) for line in read_lines(self.path) if line.strip())
        table = read_table(self.path, [self.text, *([self.id] if self.id else [])], ", .txt")
        return ((row[self.id] if self.id else "", row[self.text]) for row in table)


class TextDataset(Corpus):
    """Texts of a Hugging Face data set.

    Args:
        dataset: a folder that ``save_to_disk`` made, or a name on the hub.
        column: its column of texts.
        ids: its column of ids; without one an id is a hash of the text.
        split: which part.
        config: which configuration, where the data set has several.
        rows: read so many at most.

    Raises:
        CorpusError: when the data set, split or column is not there, naming those that are.
    """

    modality = "text"

    def __init__(
        self,
        dataset: str,
        column: str = "text",
        ids: str | None = None,
        split: str = "train",
        config: str | None = None,
        rows: int | None = None,
    ):
        self.dataset, self.column, self.ids, self.split, self.config, self.count = dataset, column, ids, split, config, rows

    @property
    def source(self) -> str:
        return f"{self.dataset} {self.split}"

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        columns = [self.column, *([self.ids] if self.ids else [])]
        rows = itertools.islice(read_dataset(self.dataset, self.config, self.split, columns), self.count)
        return ((as_id(row, self.ids), str(row[self.column] or "").encode()) for row in rows)
