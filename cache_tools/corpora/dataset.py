"""What corpora of texts and of images out of Hugging Face data sets share."""

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from cache_tools.corpora.base import Corpus
from cache_tools.hub import as_id, read_dataset


class HubDataset(Corpus):
    """One column of a Hugging Face data set.

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

    @property
    def source(self) -> str:
        return f"{self.dataset} {self.split}"

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        columns = [self.column, *([self.ids] if self.ids else [])]
        rows = itertools.islice(read_dataset(self.dataset, self.config, self.split, columns), self.count)
        return ((as_id(row, self.ids), self.encoded(row[self.column])) for row in rows)

    @abstractmethod
    def encoded(self, cell: Any) -> bytes:
        """The item that a cell of the column holds."""
