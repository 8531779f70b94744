"""The Corpus contract: a fixed, ordered list of items, each with a stable string id."""

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, ClassVar

from cache_tools.errors import BadItem, CorpusError
from cache_tools.format.store import feed
from cache_tools.items.raw import item_bytes

log = logging.getLogger(__name__)


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time only: a corpus is read twice, once for its fingerprint and once for its items."""
    log.warning("%s", message)


class Corpus(ABC):
    """A fixed, ordered list of ``(id, item)``.

    Class attributes:
        modality: ``molecule``, ``text`` or ``image``.
        views: so many consecutive rows show the same item.

    Attributes:
        source: where the items come from, for people.
    """

    modality: ClassVar[str]
    views: int = 1
    source: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.modality}s of {self.source}>"

    @abstractmethod
    def pairs(self) -> Iterator[tuple[str, bytes]]:
        """Every item as ``(id, raw item)``; in the place of an empty id, a hash of the item is used."""

    def rows(self) -> Iterator[tuple[str, bytes]]:
        """Every item as ``(id, item)``; an item that comes again under the same id is left out.

        Raises:
            CorpusError: when two different items have the same id.
        """
        return self._distinct([])

    def _distinct(self, repeated: list[str]) -> Iterator[tuple[str, bytes]]:
        seen: dict[str, bytes] = {}
        for given, item in self.pairs():
            digest = hashlib.sha256(item)
            identity = given or digest.hexdigest()[:16]
            if identity not in seen:
                seen[identity] = digest.digest()
                yield identity, item
            elif seen[identity] != digest.digest():
                raise CorpusError(
                    f"{self.source}: id {identity!r} stands for {item!r:.60} and for another item before it: "
                    "give every row its own id, or name no id column: then an id is a hash of the item"
                )
            else:
                repeated.append(identity)

    def scan(self) -> tuple[int, str]:
        """The number of rows, and the fingerprint, which changes when any item, any id or the order changes.

        Raises:
            CorpusError: when the corpus is empty, or when two different items have the same id.
        """
        digest, count = hashlib.sha256(), 0
        repeated: list[str] = []
        for identity, item in self._distinct(repeated):
            feed(digest, identity, item)
            count += 1
        if not count:
            raise CorpusError(f"{self.source} holds no rows: expected at least one {self.modality}")
        if repeated:
            log.warning("%s: %d duplicates dropped, for instance id %s", self.source, len(repeated), repeated[0])
        return count, digest.hexdigest()

    def read(self) -> tuple[list[str], list[bytes], str]:
        """The ids, the items and the fingerprint of a corpus that fits into memory."""
        rows = list(self.rows())
        return [identity for identity, _ in rows], [item for _, item in rows], self.scan()[1]


class Items(Corpus):
    """Items in memory. An item that is None or NaN is an empty one, which every column masks.

    Args:
        items: SMILES; texts; or images: paths, bytes of an image file, PIL images, uint8 arrays (height, width, 3).
        modality: ``molecule``, ``text`` or ``image``.
        source: where they come from.
        ids: one for each item; without them an id is a hash of the item.

    Raises:
        CorpusError: when an item is nothing of this modality, or there is not one id for each item.
    """

    def __init__(self, items: Sequence[Any], modality: str, source: str = "memory", ids: Sequence[Any] | None = None):
        if ids is not None and len(ids) != len(items):
            raise CorpusError(f"expected an id for each of the {len(items)} items, found {len(ids)} ids")
        self.items, self.source, self.ids = items, source, ids
        self.modality = modality  # type: ignore[misc]  # a fact of the instance here

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        for row, item in enumerate(self.items):
            try:
                yield str(self.ids[row]) if self.ids is not None else "", self._bytes(item)
            except BadItem as error:
                raise CorpusError(f"{self.source} row {row}: {error}: mend or remove this row") from None

    def _bytes(self, item: Any) -> bytes:
        missing = item is None or (isinstance(item, float) and math.isnan(item))
        return b"" if missing else item_bytes(item, self.modality)
