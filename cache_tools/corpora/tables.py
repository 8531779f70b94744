"""Read rows of csv, jsonl and parquet files, gzipped or not."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cache_tools.errors import CorpusError

TABLES = ".csv, .jsonl, .parquet"

DAMAGED = (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error)

csv.field_size_limit(2**31 - 1)  # a text may be longer than the 131,072 characters that csv allows


def read_table(path: Path, columns: list[str], beside: str = "") -> Iterator[dict[str, str]]:
    """The rows of a table, every cell as text, an empty cell as ``""``.

    Args:
        path: ``.csv`` (with a header), ``.jsonl`` (an object a line) or ``.parquet``; the first two also as ``.gz``.
        columns: those that must be there; rows may hold others as well.
        beside: further endings that the caller reads itself, for the message.

    Raises:
        CorpusError: when the file or a column is missing, the ending is unknown, or a line cannot be read.
    """
    kind = file_ending(path)
    if kind == ".parquet":
        yield from _read_parquet(path, columns)
        return
    with open_text(path) as file:
        if kind == ".csv":
            yield from read_csv(path, file, columns)
        elif kind == ".jsonl":
            yield from _read_jsonl(path, file, columns)
        else:
            raise CorpusError(f"{path}: expected a name ending in {TABLES}{beside} (all but parquet also with .gz)")


def file_ending(path: Path) -> str:
    """The ending that says which format a file has, in lower case; ``.gz`` does not count."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def open_text(path: Path) -> TextIO:
    """Open a text file, gzipped or not.

    Raises:
        CorpusError: when there is no such file.
    """
    if not path.is_file():
        raise CorpusError(f"no file {path.absolute()}: check the path")
    encoding = "utf-8-sig"  # Excel writes a byte order mark
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return open(path, encoding=encoding, newline="")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without line breaks.

    Raises:
        CorpusError: when there is no such file, or when it is not UTF-8.
    """
    with open_text(path) as file:
        try:
            for line in file:
                yield line.rstrip("\r\n")
        except DAMAGED as error:
            raise _unreadable(path, error) from None


def read_csv(path: Path, file: TextIO, columns: list[str]) -> Iterator[dict[str, str]]:
    """The rows of a csv file with a header.

    Raises:
        CorpusError: when columns are missing; the message names them and those that are there.
    """
    reader = csv.DictReader(file, restval="")
    try:
        _require(path, columns, list(reader.fieldnames or []))
        for row in reader:
            if None in row:
                raise CorpusError(f"{path} line {reader.line_num}: more cells than the header has columns")
            yield row
    except (*DAMAGED, csv.Error) as error:
        raise _unreadable(path, error) from None


def _require(path: Path, columns: list[str], present: list[str]) -> None:
    if missing := [name for name in columns if name not in present]:
        raise CorpusError(f"{path}: no column {', '.join(missing)}; its columns are: {', '.join(present) or 'none'}")


def _unreadable(path: Path, error: Exception) -> CorpusError:
    if isinstance(error, UnicodeDecodeError):
        return CorpusError(f"{path} is not UTF-8 ({error}): save it as UTF-8")
    return CorpusError(f"{path} is damaged or cut short ({error}): fetch or write it again")


def _read_jsonl(path: Path, file: TextIO, columns: list[str]) -> Iterator[dict[str, str]]:
    try:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise CorpusError(f"{path} line {number}: expected an object, found {line.strip()[:40]}")
            _require(Path(f"{path} line {number}"), columns, list(row))
            yield {key: _text(value) for key, value in row.items()}
    except DAMAGED as error:
        raise _unreadable(path, error) from None


def _read_parquet(path: Path, columns: list[str]) -> Iterator[dict[str, str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise CorpusError(f"{path}: parquet needs pyarrow: pip install 'quorum-distill[parquet]'") from None
    if not path.is_file():
        raise CorpusError(f"no file {path.absolute()}: check the path")
    try:
        with parquet.ParquetFile(path) as file:
            _require(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield {key: _text(value, "strict" if key in columns else "replace") for key, value in row.items()}
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{path} is no parquet file that can be read ({error}): write it again") from None


def _text(value: object, errors: str = "strict") -> str:
    if isinstance(value, bytes):  # parquet has texts as binary when they are not declared as text
        return value.decode(errors=errors)
    text = "" if value is None else str(value)
    return text.encode(errors="replace").decode()  # JSON can hold half a surrogate pair, UTF-8 cannot
