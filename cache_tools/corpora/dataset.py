"""Read data sets of the Hugging Face hub, or in its format, as corpora."""

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_tools.corpora.base import Corpus
from cache_tools.corpora.tables import cell_text
from cache_tools.errors import CorpusError
from cache_tools.hub import first_line, stay_local


class HubDataset(Corpus):
    """One column of a Hugging Face data set. A subclass says what its cells hold.

    Args:
        dataset: a folder that ``save_to_disk`` made, or a name on the hub.
        column: of the items; the one called like the modality when not given.
        ids: column of ids; without one an id is a hash of the item.
        split: which part.
        config: which configuration, where the data set has several.
        rows: read so many at most.

    Raises:
        CorpusError: when the data set, split or column is not there, naming those that are.
    """

    def __init__(
        self,
        dataset: str,
        column: str | None = None,
        ids: str | None = None,
        split: str = "train",
        config: str | None = None,
        rows: int | None = None,
    ):
        self.dataset, self.column, self.ids = dataset, column or self.modality, ids
        self.split, self.config, self.count = split, config, rows
        self.source = f"{dataset} {split}"

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        columns = [self.column, *([self.ids] if self.ids else [])]
        rows = itertools.islice(read_dataset(self.dataset, self.config, self.split, columns), self.count)
        for number, row in enumerate(rows, 1):
            column = self.ids or self.column
            try:
                identity = cell_text(row[self.ids]) if self.ids else ""
                column = self.column
                item = self.encoded(row[column])
            except CorpusError as error:
                raise CorpusError(f"{self.source} row {number}, column {column}: {error}") from None
            yield identity, item

    @abstractmethod
    def encoded(self, cell: Any) -> bytes:
        """The item that a cell of the column holds.

        Raises:
            CorpusError: when it holds none; the caller adds the place.
        """


def read_dataset(name: str, config: str | None, split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a data set; an image comes as its file, ``{"bytes": ..., "path": ...}``.

    Args:
        name: a folder that ``save_to_disk`` made, or a name on the hub.
        config: which configuration, where the data set has several.
        split: which part.
        columns: those that are read.

    Raises:
        CorpusError: when the data set is not there, or lacks the split or a column.
    """
    stay_local()
    try:
        from datasets import Dataset, DatasetDict, Image, load_dataset, load_from_disk
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise CorpusError("data sets of the hub need datasets: pip install 'quorum-distill[hub]'") from None
    try:
        dataset = load_from_disk(name) if Path(name).is_dir() else load_dataset(name, config, split=split)
    except (DatasetNotFoundError, OSError, ValueError, LookupError) as error:  # ConnectionError is an OSError
        raise _missing(name, config, split, error) from None
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise CorpusError(f"{name} has no split {split!r}; it has: {', '.join(dataset)}")
        dataset = dataset[split]
    assert isinstance(dataset, Dataset)
    if lacking := [column for column in columns if column not in dataset.column_names]:
        raise CorpusError(f"{name}: no column {', '.join(lacking)}; its columns are: {', '.join(dataset.column_names)}")
    dataset = dataset.select_columns(columns)
    for column in columns:
        if isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    yield from dataset


def _missing(name: str, config: str | None, split: str, error: Exception) -> CorpusError:
    if Path(name).is_dir():
        return CorpusError(
            f"{name} is no folder that save_to_disk made, or it is damaged ({first_line(error)}): make it again, or "
            "give a folder of files to the corpus that reads files"
        )
    arguments = [name, *([config] if config else [])]
    return CorpusError(
        f"cannot read data set {name!r}, split {split!r}: it is neither on this machine nor available from the hub. Two "
        "ways: give a corpus of your own (CORPUS=folder or file), or load it once on a machine with the hub (`python -c "
        f"'from datasets import load_dataset; load_dataset(*{arguments})'`) and copy the folder ~/.cache/huggingface. "
        f"({first_line(error)})"
    )
