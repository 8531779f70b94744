"""Read texts from tables, files of lines and data sets of the hub."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_tools.corpora.base import Corpus
from cache_tools.corpora.dataset import HubDataset
from cache_tools.corpora.tables import cell_text, file_ending, read_lines, read_table
from cache_tools.errors import CorpusError

MAX_TEXT = 5_000_000  # characters: the Bible has 4.4 million; a tokenizer needs 200 bytes and 2 microseconds for each


class TextFile(Corpus):
    """Texts in a table, or in a txt file (one text a line; empty lines are left out).

    Args:
        path: ``.txt``, ``.csv``, ``.jsonl`` or ``.parquet``; all but parquet also as ``.gz``.
        text: the table's column of texts.
        id: the table's column of ids; without one an id is a hash of the text.
        every: keep one row of so many, beginning with the first: a sample of all parts of a sorted file.
        limit: keep so many rows at most.

    Raises:
        CorpusError: when the file, a column or every row is missing, or when the ending is unknown.
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
        self.source = str(self.path)
        self.text, self.id, self.every, self.limit = text, id, every, limit

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        numbered = enumerate(self._rows(), 1)
        for number, (identity, text) in itertools.islice(itertools.islice(numbered, None, None, self.every), self.limit):
            try:
                yield identity, _encoded(text)
            except CorpusError as error:
                raise CorpusError(f"{self.path} row {number}: {error}") from None

    def _rows(self) -> Iterator[tuple[str, str]]:
        if file_ending(self.path) == ".txt":
            return (("", line.strip()) for line in read_lines(self.path) if line.strip())
        table = read_table(self.path, [self.text, *([self.id] if self.id else [])], ", .txt")
        return ((row[self.id] if self.id else "", row[self.text]) for row in table)


class TextDataset(HubDataset):
    """Texts of a Hugging Face data set; see :class:`cache_tools.corpora.dataset.HubDataset`."""

    modality = "text"

    def encoded(self, cell: Any) -> bytes:
        return _encoded(cell_text(cell))


def _encoded(text: str) -> bytes:
    if len(text) > MAX_TEXT:
        raise CorpusError(f"a text of {len(text):,} characters, at most {MAX_TEXT:,} are read: split or remove it")
    return text.encode()
