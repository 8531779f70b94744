"""``distill-cache import | export``: columns from and to plain files, joined by id."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np

from cache_tools.building.column import Settings
from cache_tools.building.corpus import add_column, check_column_name
from cache_tools.errors import CacheError, TeacherError
from cache_tools.format import store
from cache_tools.format.files import require_space
from cache_tools.format.packing import Array
from cache_tools.format.reader import Column, aligned
from cache_tools.format.summary import SKIPPED
from cache_tools.teachers.foreign import optional_library
from cache_tools.teachers.imported import Imported, Key

log = logging.getLogger(__name__)

KEYS: tuple[Key, ...] = get_args(Key)


def import_(
    corpus: Path,
    name: str,
    embeddings: Path,
    ids: Path | None = None,
    key: Key = "id",
    embedding_field: str = "embedding",
    id_field: str = "id",
    raw_dim: int | None = None,
    raw_dtype: Literal["float16", "float32", "float64", "int8", "uint8"] = "float32",
    dtype: Literal["float16", "float32", "int8"] = "float16",
) -> None:
    """Make a column from embeddings that were made elsewhere, joined to the corpus by id.

    A row without an embedding is masked and listed in the column's skipped.csv.

    Args:
        corpus: the corpus's folder in the cache, for instance cache/mol.
        name: of the new column.
        embeddings: rows of embeddings in a .npy, .parquet, .arrow, .feather, .h5, .hdf5 or .safetensors file; or a folder:
            a data set of the library datasets, parquet or Arrow files, tokenlearn's features, mteb's cache of embeddings.
        ids: the id of each row, in the same order: a .txt (one a line), .csv (both also .gz), .npy, .parquet, .arrow or .h5
            file. Without it, folders, parquet, Arrow and HDF5 hold the ids themselves; for others NAME.ids.txt,
            NAME.ids.txt.gz or NAME.ids.npy lies beside NAME.npy.
        key: what the ids are: ids of the corpus (a corpus without an id column has hashes), the items themselves, for
            instance SMILES, or the SHA-256 of each item, as in mteb's cache.
        embedding_field: parquet or Arrow column, HDF5 data set or safetensors key of the embeddings.
        id_field: csv, parquet or Arrow column or HDF5 data set of the ids.
        raw_dim: numbers in a row, of a file that holds bare numbers, such as a numpy memory map.
        raw_dtype: their type.
        dtype: on disk; values beyond float16's range widen it to float32.

    Raises:
        CacheError: when the files do not fit together, one id has two embeddings, or no id is known to the corpus.
        TeacherError: on a NaN or an infinity, with its id; no column is left.
    """
    check_column_name(name)
    manifest = store.read_corpus(corpus)
    files = str(embeddings.resolve()), str(ids.resolve()) if ids else None
    teacher = Imported(*files, key, manifest.modality, embedding_field, id_field, raw_dim, raw_dtype)
    teacher.load("cpu")
    rows, used = _matches(corpus, teacher)
    if not rows:
        would = {_matches(corpus, Imported(*files, other, manifest.modality), teacher.row)[0]: other for other in KEYS}
        raise CacheError(
            f"no {key} of {corpus} stands in {teacher.source}, which begins with {next(iter(teacher.row)).decode()!r}: "
            f"name the file of this corpus; with --key {would[max(would)]}, {max(would)} rows would match"
        )
    settings = Settings(batch_size=4096, device="cpu", workers=1, dtype=dtype)
    path = corpus / teacher.kind / name
    fresh = not path.exists()
    try:
        add_column(corpus, name, teacher, settings)
        teacher.require_unchanged()
    except (TeacherError, CacheError):  # shards of this file are of no use to the file that will replace it
        if fresh:
            shutil.rmtree(path, ignore_errors=True)
        raise
    rest = f"the others are listed in {path / SKIPPED}" if rows < manifest.rows else "none lacks one"
    log.info("%s: %d of %d rows have an embedding, %s", name, rows, manifest.rows, rest)
    log.info("%s: %d of the file's %d ids are not in the corpus", name, len(teacher.row) - used, len(teacher.row))
    log.info("next: distill fit --data.corpus %s --data.teachers '[%s]'; only then it is a teacher", corpus, name)


def _matches(corpus: Path, teacher: Imported, embedded: dict[bytes, int] | None = None) -> tuple[int, int]:
    """How many rows of the corpus have an embedding, and how many of the embeddings these rows use."""
    embedded = teacher.row if embedded is None else embedded
    rows, used = 0, set()
    for number in range(store.read_corpus(corpus).shard_count):
        keys = [teacher.key_of(identity, item) for identity, item in zip(*store.read_items(corpus, number), strict=True)]
        matching = [key for key in keys if key in embedded]
        rows += len(matching)
        used.update(matching)
    return rows, len(used)


def export(column: Path, to: Path) -> None:
    """Write the valid rows of a teacher's column to a plain file.

    Args:
        column: the column's folder, for instance cache/mol/teachers/maccs.
        to: NAME.npy, which gets the ids beside it in NAME.ids.npy, or NAME.parquet (columns id and embedding).

    Raises:
        CacheError: when the file is there already, or the column holds rows of different lengths.
    """
    opened = Column(column.absolute())
    if opened.kind == "ragged":
        raise CacheError(f"{column} holds rows of different lengths; only columns of teachers can be exported")
    writers = {".npy": _write_npy, ".parquet": _write_parquet}
    if to.suffix not in writers:
        raise CacheError(f"cannot write {to}: its name must end in {' or '.join(writers)}")
    files = [to.with_suffix(".ids.npy"), to] if to.suffix == ".npy" else [to]
    if present := [str(path) for path in files if path.exists()]:
        raise CacheError(f"{' and '.join(present)} would be overwritten: move that away, or choose another name")
    if not to.parent.is_dir():
        raise CacheError(f"no folder {to.parent.absolute()}: make it first")
    rows = sum(shard["valid"] for shard in opened.shards)
    require_space(to.parent, rows * opened.dim * (4 if to.suffix == ".parquet" else opened.dtype.itemsize))
    aligned(opened.path.parent.parent, [opened])  # the corpus whose ids are written must be the column's
    with TemporaryDirectory(prefix=".export", dir=to.parent) as folder:
        writers[to.suffix](opened, rows, Path(folder) / to.name)
        for path in files:
            (Path(folder) / path.name).rename(path)
    log.info("%s: %d rows of %d written to %s", opened.name, rows, len(opened), ", ".join(map(str, reversed(files))))


def _shards(column: Column) -> Iterator[tuple[list[str], Array]]:
    """Ids and embeddings (valid rows, dim) of the valid rows, shard by shard."""
    for number, shard in enumerate(column.shards):
        ids, _ = store.read_items(column.path.parent.parent, number)
        span = np.arange(shard["rows"]) + number * column.shard_rows
        valid = column.valid(span).numpy()
        yield np.array(ids, object)[valid].tolist(), column.rows(span[valid]).numpy()
        column.release()


def _write_npy(column: Column, rows: int, path: Path) -> None:
    dtype = str(column.dtype).removeprefix("torch.")
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows, column.dim))
    names: list[str] = []
    for ids, part in _shards(column):
        out[len(names) : len(names) + len(ids)] = part
        names += ids
    out.flush()
    np.save(path.with_suffix(".ids.npy"), np.array(names, np.str_), allow_pickle=False)


def _write_parquet(column: Column, rows: int, path: Path) -> None:
    arrow, parquet = (optional_library(name, "parquet") for name in ("pyarrow", "pyarrow.parquet"))
    schema = arrow.schema([("id", arrow.string()), ("embedding", arrow.list_(arrow.float32()))])
    with parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for ids, part in _shards(column):
            offsets = np.arange(len(ids) + 1, dtype=np.int32) * column.dim
            embedding = arrow.ListArray.from_arrays(offsets, part.astype(np.float32).ravel())
            writer.write_table(arrow.table([ids, embedding], schema=schema), row_group_size=max(1, len(ids)))
