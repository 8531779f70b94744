"""A teacher that looks its embeddings up in a file, by id; ``distill-cache import`` makes columns with it."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from cache_tools.corpora.tables import open_text, read_csv, read_lines
from cache_tools.errors import BadItem, CacheError
from cache_tools.format.files import sha256
from cache_tools.format.packing import Array
from cache_tools.format.shard import read_foreign
from cache_tools.teachers.base import Teacher

log = logging.getLogger(__name__)


def optional_library(name: str, extra: str) -> Any:
    """A library that only some formats need.

    Raises:
        CacheError: when it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise CacheError(f"{name} is not installed, this format needs it: pip install 'quorum-distill[{extra}]'") from None


def _npy(path: Path, field: str) -> Array:
    array: Array = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    return array


def _safetensors(path: Path, field: str) -> Array:
    with safe_open(path, "pt") as file:
        if field not in (names := file.keys()):
            raise CacheError(f"{path} has no tensor {field}; it has: {', '.join(names)}")
        rows: Array = file.get_tensor(field).float().numpy()  # numpy knows no bfloat16
        return rows


def _parquet(path: Path, field: str) -> Array:
    file = optional_library("pyarrow.parquet", "parquet").ParquetFile(path)
    if field not in (names := file.schema_arrow.names):
        raise CacheError(f"{path} has no column {field}; it has: {', '.join(names)}")
    column = file.read(columns=[field]).column(field)
    if column.null_count:
        raise ValueError(f"{column.null_count} rows of {field} are null: leave them out")
    if "list" not in str(column.type):
        return np.array(column.to_pylist(), object)
    lengths = optional_library("pyarrow.compute", "parquet").list_value_length(column).unique().to_pylist()
    if len(lengths) != 1:
        raise ValueError(f"the lists of {field} have lengths {sorted(lengths)[:5]}, expected one and the same")
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(flat).reshape(-1, lengths[0])  # (rows, dim)


def _lines(path: Path, field: str) -> Array:
    lines = list(read_lines(path))
    while lines and not lines[-1]:  # blank lines at the end
        lines.pop()
    return np.array(lines, object)


def _cells(path: Path, field: str) -> Array:
    with open_text(path) as file:
        return np.array([row[field] for row in read_csv(path, file, [field])], object)


READERS: dict[str, Callable[[Path, str], Array]] = {
    ".txt": _lines,
    ".txt.gz": _lines,
    ".csv": _cells,
    ".csv.gz": _cells,
    ".npy": _npy,
    ".parquet": _parquet,
    ".h5": read_foreign,
    ".hdf5": read_foreign,
    ".safetensors": _safetensors,
}

ENDINGS = {"ids": list(READERS)[:-1], "embeddings": list(READERS)[4:]}
BESIDE = (".ids.txt", ".ids.txt.gz", ".ids.npy")  # where the ids of NAME.npy are looked for


def _read(path: Path, field: str, what: Literal["embeddings", "ids"]) -> Array:
    ending = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if ending not in ENDINGS[what]:
        raise CacheError(f"cannot read {what} from {path}: its name must end in {', '.join(ENDINGS[what])}")
    if not path.is_file():
        raise CacheError(f"no file {path.absolute()}: expected {what} there, check the path")
    try:
        return READERS[ending](path, field)
    except (ValueError, EOFError, OSError, SafetensorError) as error:
        raise CacheError(f"cannot read {what} from {path}: {error}") from None


def _embeddings(path: Path, field: str) -> Array:
    rows = _read(path, field, "embeddings")
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "fiub":
        description = f"shape {rows.shape}, type {rows.dtype}"
        raise CacheError(f"{path}: expected embeddings as numbers of shape (rows, dim), found {description}")
    return rows


def _ids(path: Path, field: str) -> list[str]:
    ids = _read(path, field, "ids")
    if ids.ndim != 1 or ids.dtype.kind not in "USOiu":
        description = f"shape {ids.shape}, type {ids.dtype}"
        raise CacheError(f"{path}: expected ids as texts or whole numbers of shape (rows,), found {description}")
    for number, row in enumerate(rows := ids.tolist(), 1):
        if isinstance(row, bool) or not isinstance(row, str | bytes | int):
            raise CacheError(f"{path} row {number}: expected an id as text or whole number, found {row!r:.60}")
    return [row.decode(errors="backslashreplace") if isinstance(row, bytes) else str(row) for row in rows]


class Imported(Teacher):
    """A teacher whose embeddings were made elsewhere: it looks every row up in a file, and cannot embed new items.

    Args:
        embeddings: the file, (rows, dim): ``.npy``, ``.parquet``, ``.h5``, ``.hdf5`` or ``.safetensors``.
        ids: the file of ids, in the order of the embeddings; see :func:`import_`.
        key: what the ids are: the corpus's ids (``id``) or the items themselves (``item``).
        modality: of the corpus.
        embedding_field: the embeddings' column, data set or tensor.
        id_field: the ids' column or data set.
    """

    live = False

    def __init__(
        self,
        embeddings: str,
        ids: str | None,
        key: Literal["id", "item"],
        modality: str,
        embedding_field: str = "embedding",
        id_field: str = "id",
    ):
        self.modality = modality  # type: ignore[misc]  # a fact of the instance here
        self.by_id = key == "id"  # type: ignore[misc]
        self.key, self.embedding_field, self.id_field = key, embedding_field, id_field
        self.embeddings, self.ids = Path(embeddings), Path(ids) if ids else None
        self.row: dict[bytes, int] = {}  # id -> row of the file

    def load(self, device: str) -> None:
        if self.row:
            return
        self._seen = [_stamp(self.embeddings)]
        self._table = _embeddings(self.embeddings, self.embedding_field)  # (rows, dim)
        rows, self.dim = self._table.shape
        self._seen.append(_stamp(self.source))
        ids = _ids(self.source, self.id_field)
        if len(ids) != rows:
            raise CacheError(
                f"{self.embeddings} has {rows} rows, {self.source} has {len(ids)} ids: expected one id for each row"
            )
        self.row = self._join(ids)

    def prepare(self, item: bytes) -> int:
        if item not in self.row:
            raise BadItem(f"no embedding for this {self.key} in {self.embeddings}")
        return self.row[item]

    def embed(self, items: Sequence[int]) -> Array:
        with np.errstate(over="ignore"):  # the build refuses an infinity by its id
            rows: Array = self._table[items].astype(np.float32)  # (batch, dim)
        return rows

    def fingerprint(self) -> dict[str, Any]:
        self.require_unchanged()
        hashes = {path: sha256(path) for path in {self.embeddings, self.source}}
        return {**super().fingerprint(), "embeddings": hashes[self.embeddings], "ids": hashes[self.source]}

    def require_unchanged(self) -> None:
        """Raise an error when a file was replaced or written to since it was opened."""
        if [_stamp(self.embeddings), _stamp(self.source)] != self._seen:
            raise CacheError(f"{self.embeddings} or {self.source} changed while it was read: import it again")

    @cached_property
    def source(self) -> Path:
        """The file that holds the ids."""
        if self.ids or self.embeddings.suffix in (".parquet", ".h5", ".hdf5"):
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


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Numbers that change when a file is replaced or written to; None without a file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
