"""A teacher that looks its embeddings up in a file, by id; ``distill-cache import`` makes columns with it."""

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache_tools.errors import BadItem, CacheError
from cache_tools.format.files import sha256
from cache_tools.format.packing import Array
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.foreign import Raw, holds_ids, read_embeddings, read_ids

log = logging.getLogger(__name__)

Key = Literal["id", "item", "sha256"]

BESIDE = (".ids.txt", ".ids.txt.gz", ".ids.npy")  # where the ids of NAME.npy are looked for


class Imported(Teacher):
    """A teacher whose embeddings were made elsewhere: it looks every row up in a file, and cannot embed new items.

    Args:
        embeddings: the file or folder, (rows, dim); see :func:`import_`.
        ids: the file of ids, in the order of the embeddings; see :func:`import_`.
        key: what the ids are: the corpus's ids (``id``), the items themselves (``item``) or their SHA-256 (``sha256``).
        modality: of the corpus.
        embedding_field: the embeddings' column, data set or tensor.
        id_field: the ids' column or data set.
        raw_dim: numbers in a row of a file that holds bare numbers.
        raw_dtype: their type.
    """

    live = False

    def __init__(
        self,
        embeddings: str,
        ids: str | None,
        key: Key,
        modality: str,
        embedding_field: str = "embedding",
        id_field: str = "id",
        raw_dim: int | None = None,
        raw_dtype: str = "float32",
    ):
        self.modality = modality  # type: ignore[misc]  # a fact of the instance here
        self.by_id = key == "id"  # type: ignore[misc]
        self.key, self.embedding_field, self.id_field = key, embedding_field, id_field
        self.embeddings, self.ids = Path(embeddings), Path(ids) if ids else None
        self.raw = Raw(raw_dim, raw_dtype) if raw_dim else None
        self.row: dict[bytes, int] = {}  # id -> row of the file

    def load(self, device: str) -> None:
        if self.row:
            return
        self._seen = [_stamp(self.embeddings)]
        self._table = read_embeddings(self.embeddings, self.embedding_field, self.raw)  # (rows, dim)
        rows, self.dim = self._table.shape
        self._seen.append(_stamp(self.source))
        ids = read_ids(self.source, self.id_field)
        if len(ids) != rows:
            raise CacheError(
                f"{self.embeddings} has {rows} rows, {self.source} has {len(ids)} ids: expected one id for each row"
            )
        self.row = self._join(ids)

    def key_of(self, identity: str, item: bytes) -> bytes:
        """What stands for a row of the corpus among the ids of the file."""
        return identity.encode() if self.by_id else self._hashed(item)

    def prepare(self, item: bytes) -> int:
        if (key := self._hashed(item)) not in self.row:
            raise BadItem(f"no embedding for this {self.key} in {self.embeddings}")
        return self.row[key]

    def _hashed(self, item: bytes) -> bytes:
        return hashlib.sha256(item).hexdigest().encode() if self.key == "sha256" else item

    def embed(self, items: Sequence[int]) -> Array:
        with np.errstate(over="ignore"):  # the build refuses an infinity by its id
            rows: Array = self._table[items].astype(np.float32)  # (batch, dim)
        return rows

    def fingerprint(self) -> dict[str, Any]:
        self.require_unchanged()
        hashes = {path: _sha256(path) for path in {self.embeddings, self.source}}
        return {**super().fingerprint(), "embeddings": hashes[self.embeddings], "ids": hashes[self.source]}

    def require_unchanged(self) -> None:
        """Raise an error when a file was replaced or written to since it was opened."""
        if [_stamp(self.embeddings), _stamp(self.source)] != self._seen:
            raise CacheError(f"{self.embeddings} or {self.source} changed while it was read: import it again")

    @cached_property
    def source(self) -> Path:
        """The file or folder that holds the ids."""
        if self.ids or holds_ids(self.embeddings):
            return self.ids or self.embeddings
        names = [self.embeddings.with_suffix(ending) for ending in BESIDE]
        files = [path for path in names if path.is_file()]
        if len(files) != 1:
            listed = " and ".join(path.name for path in files) or "none of " + ", ".join(path.name for path in names)
            raise CacheError(f"beside {self.embeddings} there is {listed}: name the file of ids with --ids")
        return files[0]

    def _join(self, ids: list[str]) -> dict[bytes, int]:
        rows: dict[bytes, int] = {}
        twice = {at: row for at, name in enumerate(ids) if (row := rows.setdefault(name.encode(), at)) != at}
        table = self._table
        other = [ids[at] for at, row in twice.items() if not np.array_equal(table[at], table[row], equal_nan=True)]
        if other := list(dict.fromkeys(other)):
            raise CacheError(
                f"{self.embeddings}: {len(other)} ids stand for different embeddings, for instance "
                f"{', '.join(map(repr, other[:5]))}: keep one row for each id"
            )
        if twice:
            example = ids[next(iter(twice))]
            log.warning("%s: %d rows repeat an id and are equal, for instance %r", self.embeddings, len(twice), example)
        return rows


def _sha256(path: Path) -> str:
    """The SHA-256 of a file; of a folder, that of the names and hashes of its files."""
    if not path.is_dir():
        return sha256(path)
    lines = [f"{file.relative_to(path)} {sha256(file)}\n" for file in _files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _stamp(path: Path) -> list[tuple[int, int, int]]:
    """Numbers that change when a file, or one in a folder, is replaced or written to."""
    stamps = (file.stat() for file in _files(path))
    return [(stamp.st_ino, stamp.st_size, stamp.st_mtime_ns) for stamp in stamps]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] * path.is_file()
