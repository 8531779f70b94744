"""Read embeddings and their ids as other programs write them: files of many formats, and folders of files."""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from cache_tools.corpora.tables import open_text, read_csv, read_lines
from cache_tools.errors import CacheError
from cache_tools.format.packing import Array
from cache_tools.format.shard import read_foreign

What = Literal["embeddings", "ids"]


class Raw(NamedTuple):
    """How a file of bare numbers is read, which says nothing of itself, such as a numpy memory map.

    Attributes:
        dim: numbers in a row.
        dtype: of each number.
    """

    dim: int
    dtype: str


def read_embeddings(path: Path, field: str, raw: Raw | None = None) -> Array:
    """The embeddings in a file or folder, (rows, dim).

    Args:
        path: of it.
        field: column, data set or tensor.
        raw: the file holds bare numbers.

    Raises:
        CacheError: when they cannot be read.
    """
    rows = _raw(path, raw) if raw else _read(path, field, "embeddings")
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "fiub":
        description = f"shape {rows.shape}, type {rows.dtype}"
        raise CacheError(f"{path}: expected embeddings as numbers of shape (rows, dim), found {description}")
    return rows


def read_ids(path: Path, field: str) -> list[str]:
    """The ids in a file or folder.

    Raises:
        CacheError: when they cannot be read, or are neither texts nor whole numbers.
    """
    ids = _read(path, field, "ids")
    if ids.ndim != 1 or ids.dtype.kind not in "USOiu":
        description = f"shape {ids.shape}, type {ids.dtype}"
        raise CacheError(f"{path}: expected ids as texts or whole numbers of shape (rows,), found {description}")
    for number, row in enumerate(rows := ids.tolist(), 1):
        if isinstance(row, bool) or not isinstance(row, str | bytes | int):
            raise CacheError(f"{path} row {number}: expected an id as text or whole number, found {row!r:.60}")
    return [row.decode(errors="backslashreplace") if isinstance(row, bytes) else str(row) for row in rows]


def holds_ids(path: Path) -> bool:
    """Whether ids lie in the same file or folder as embeddings."""
    return path.is_dir() or path.suffix in (".parquet", ".arrow", ".feather", ".h5", ".hdf5")


def optional_library(name: str, extra: str) -> Any:
    """A library that only some formats need.

    Raises:
        CacheError: when it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise CacheError(f"{name} is not installed, this format needs it: pip install 'quorum-distill[{extra}]'") from None


# ---------------------------------------------------------------------------------------------------- files


def _raw(path: Path, raw: Raw) -> Array:
    if not path.is_file():
        raise CacheError(f"no file {path.absolute()}: expected embeddings there, check the path")
    row = raw.dim * np.dtype(raw.dtype).itemsize
    if (size := path.stat().st_size) % row or not size:
        raise CacheError(f"{path} has {size:,} bytes, expected whole rows of {raw.dim} {raw.dtype}, {row:,} bytes each")
    return np.memmap(path, raw.dtype, "r").reshape(-1, raw.dim)  # (rows, dim)


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
    return _column(file.read(columns=[field]).column(field), field)


def _arrow(path: Path, field: str) -> Array:
    """Arrow's files, of which Feather's are one, and its streams, which the library datasets writes."""
    arrow, ipc = (optional_library(name, "parquet") for name in ("pyarrow", "pyarrow.ipc"))
    source = arrow.memory_map(str(path))
    with path.open("rb") as file:
        opened = ipc.open_file(source) if file.read(6) == b"ARROW1" else ipc.open_stream(source)
    if field not in (names := opened.schema.names):
        raise CacheError(f"{path} has no column {field}; it has: {', '.join(names)}")
    return _column(opened.read_all().column(field), field)


def _column(column: Any, field: str) -> Array:
    """A column of Arrow: (rows, dim) of lists, else (rows,)."""
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
    ".arrow": _arrow,
    ".feather": _arrow,
    ".h5": read_foreign,
    ".hdf5": read_foreign,
    ".safetensors": _safetensors,
}

ENDINGS = {"ids": list(READERS)[:-1], "embeddings": list(READERS)[4:]}


def _read(path: Path, field: str, what: What) -> Array:
    ending = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if not path.is_dir():
        if ending not in ENDINGS[what]:
            endings = ", ".join(ENDINGS[what])
            bare = "; of bare numbers, also give --raw_dim and --raw_dtype" if what == "embeddings" else ""
            raise CacheError(f"cannot read {what} from {path}: its name must end in {endings}{bare}")
        if not path.is_file():
            raise CacheError(f"no file {path.absolute()}: expected {what} there, check the path")
    try:
        return _folder(path, field, what) if path.is_dir() else READERS[ending](path, field)
    except (ValueError, EOFError, OSError, KeyError, SafetensorError) as error:
        raise CacheError(f"cannot read {what} from {path}: {error}") from None


# -------------------------------------------------------------------------------------------------- folders


def _folder(path: Path, field: str, what: What) -> Array:
    if (path / "_versions").is_dir():
        export = f"pyarrow.parquet.write_table(lance.dataset({str(path)!r}).to_table(), 'embeddings.parquet')"
        raise CacheError(f"{path} is a Lance data set, which is not read here; write a file first: {export}")
    if (path / "index.json").is_file():
        return _mteb(path, what)
    if features := sorted(path.glob("feature_*.npy"), key=lambda file: int(re.sub(r"\D", "", file.stem) or 0)):
        return _tokenlearn(features, what)
    if parts := _parts(path):
        return np.concatenate([READERS[part.suffix](part, field) for part in parts])
    raise CacheError(
        f"{path} holds no embeddings: expected a data set of the library datasets, .arrow or .parquet files, tokenlearn's "
        "feature_*.npy, or mteb's index.json and vectors.npy"
    )


def _parts(path: Path) -> list[Path]:
    """Files of a data set in order: those that the library datasets lists, else all in the folder."""
    if (state := path / "state.json").is_file():
        return [path / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    return sorted(path.glob("*.parquet")) or sorted(path.glob("*.arrow"))


def _tokenlearn(files: list[Path], what: What) -> Array:
    """Texts and mean embeddings of tokenlearn's featurize, a pair of files for every few batches."""
    if what == "embeddings":
        return np.concatenate([_npy(file, "") for file in files])
    return np.array([text for file in files for text in json.loads(file.with_suffix(".json").read_text())], object)


def _mteb(path: Path, what: What) -> Array:
    """The cache of mteb's CachedEmbeddingWrapper: SHA-256 of each text -> row of a file of bare float32."""
    index: dict[str, int] = json.loads((path / "index.json").read_text())
    if what == "ids":
        return np.array(list(index), object)
    dim = int((path / "dimension").read_text())
    return _raw(path / "vectors.npy", Raw(dim, "float32"))[list(index.values())]  # (rows, dim); not numpy's own format
