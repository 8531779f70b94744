"""The Corpus contract: a fixed, ordered list of items, each with a stable string id."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

from cache_tools.errors import CorpusError
from cache_tools.format.store import feed

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
    """Items in memory.

    Args:
        items: the raw items as text.
        modality: ``molecule`` or ``text``.
        source: where they come from.
    """

    def __init__(self, items: list[str], modality: str, source: str = "memory"):
        self.items, self.source = items, source
        self.modality = modality  # type: ignore[misc]  # a fact of the instance here

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        return (("", item.encode()) for item in self.items)
