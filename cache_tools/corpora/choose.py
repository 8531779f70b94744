"""Find the corpus that a user means: by a path, a table in memory, or a list of items."""

import os
from collections.abc import Iterable
from typing import Any

from cache_tools.corpora.base import Corpus, Items
from cache_tools.corpora.image import ImageFolder
from cache_tools.corpora.molecule import SmilesFile
from cache_tools.corpora.text import TextFile
from cache_tools.errors import CorpusError

COLUMNS = {"molecule": "smiles", "text": "text", "image": "path"}  # of a table, when no other is named


def as_corpus(items: Any, modality: str, column: str | None = None, id: str | None = None) -> Corpus:
    """The corpus that a user's items are.

    Args:
        items: a corpus; the path of a table, of a file of lines, of a folder or archive of images; a data frame; or an
            iterable of items, as :class:`Items` takes them.
        modality: ``molecule``, ``text`` or ``image``.
        column: of a table: the one of the items; ``smiles``, ``text`` or ``path`` when not given.
        id: of a table: the one of ids; without one an id is a hash of the item.

    Raises:
        CorpusError: when the data frame lacks a column.
    """
    if isinstance(items, Corpus):
        return items
    if isinstance(items, str | os.PathLike):
        column = column or COLUMNS[modality]
        if modality == "image":
            return ImageFolder(items)
        return SmilesFile(items, column, id) if modality == "molecule" else TextFile(items, column, id)
    if is_table(items):
        name, ids = column_of(items, modality, column), list(items[column_of(items, modality, id)]) if id else None
        return Items(list(items[name]), modality, f"column {name} of a table", ids)
    if not isinstance(items, Iterable) or isinstance(items, bytes):
        raise CorpusError(f"expected a path, a table or a list of items, found one {type(items).__name__}")
    return Items(list(items), modality)


def is_table(items: Any) -> bool:
    """Whether ``items`` is a data frame of pandas or polars."""
    return len(getattr(items, "shape", ())) == 2 and hasattr(items, "columns")


def column_of(table: Any, modality: str, column: str | None = None) -> str:
    """The name of the column that holds the items of a data frame.

    Args:
        table: the data frame.
        modality: of the items.
        column: that was asked for; ``smiles``, ``text`` or ``path`` when not given.

    Raises:
        CorpusError: when there is no such column.
    """
    name, present = column or COLUMNS[modality], [str(name) for name in table.columns]
    if name not in present:
        raise CorpusError(f"the table has no column {name}; its columns are: {', '.join(present)}")
    return name
