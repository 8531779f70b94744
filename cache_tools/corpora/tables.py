"""Read rows of csv, jsonl and parquet files, gzipped or not."""

import csv
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from cache_tools.corpora.base import warn_once
from cache_tools.errors import CorpusError

TABLES = ".csv, .jsonl, .parquet"

DAMAGED = (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error)

MAX_LINE = 1 << 24  # characters of a line, a cell, a row of csv: beyond it a file is damaged, or it would fill the memory
PARQUET_ROWS = 1024  # read at once, so that long texts stay within memory

csv.field_size_limit(MAX_LINE)  # csv alone allows 131,072 characters


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
        for number, row in enumerate(read_parquet_rows(path, columns), 1):
            yield _texts(row, columns, f"{path} row {number}")
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


def require_file(path: Path) -> None:
    """Check that a file can be read to its end: a pipe or a device could block for ever or never end.

    Raises:
        CorpusError: when there is no such file, or when it is no regular file.
    """
    if not path.exists():
        raise CorpusError(f"no file {path.absolute()}: check the path")
    if not path.is_file():
        raise CorpusError(f"{path} is no regular file but a folder, pipe or device: give a file")


def open_text(path: Path) -> TextIO:
    """Open a text file, gzipped or not.

    Raises:
        CorpusError: when there is no such file.
    """
    require_file(path)
    encoding = "utf-8-sig"  # Excel writes a byte order mark
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return open(path, encoding=encoding, newline="")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without line breaks.

    Raises:
        CorpusError: when there is no such file, when it is not UTF-8, or when a line is longer than ``MAX_LINE``.
    """
    with open_text(path) as file:
        for line in _whole_lines(path, file):
            yield line.rstrip("\r\n")


def _whole_lines(path: Path, file: TextIO) -> Iterator[str]:
    try:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise CorpusError(f"{path} line {number} has more than {MAX_LINE:,} characters: mend or remove this line")
            if "\0" in line:
                raise CorpusError(
                    f"{path} line {number} holds a NUL character: it is UTF-16, or no text: save it as UTF-8, without NULs"
                )
            yield line
    except DAMAGED as error:
        raise _unreadable(path, error) from None


def read_csv(path: Path, file: TextIO, columns: list[str]) -> Iterator[dict[str, str]]:
    """The rows of a csv file with a header.

    Raises:
        CorpusError: when columns are missing; the message names them and those that are there. When a quote is stray,
            so that rows would be lost in one cell; the message names the line.
    """
    header: list[str] = []
    for number, row in _csv_rows(path, file):
        if not header:
            header = row
            _require(path, columns, header)
        elif len(row) > len(header):
            raise CorpusError(f"{path} line {number}: more cells than the header has columns")
        else:
            yield dict(itertools.zip_longest(header, row, fillvalue=""))
    if columns and not header:
        raise CorpusError(f"{path} is empty: expected a header with column {', '.join(columns)}, then rows")


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line."""
    lines: list[str] = []  # of the row that is read
    reader = csv.reader(_row_lines(path, file, lines), strict=True)
    while True:
        lines.clear()
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _stray_quote(path, number, str(error)) from None
        if row is None:
            return
        if len(lines) > 1:
            _require_one_row(path, number, lines, len(row))
        if row:
            yield number, row


def _row_lines(path: Path, file: TextIO, lines: list[str]) -> Iterator[str]:
    """The lines of a file; those of one row are also put into ``lines``."""
    size = 0  # characters of the row
    for number, line in enumerate(_whole_lines(path, file), 1):
        size = len(line) + (size if lines else 0)
        lines.append(line)
        if size > MAX_LINE:
            raise _stray_quote(path, number - len(lines) + 1, f"the row has more than {MAX_LINE:,} characters")
        yield line


def _require_one_row(path: Path, number: int, lines: list[str], width: int) -> None:
    """Refuse a row of several lines each of which looks like a row: a stray quote opened it, and another closed it."""
    rows = [line.rstrip("\r\n").split(",") for line in lines]
    if not all(len(row) == width and all(cell.strip() for cell in row) for row in rows):
        return
    if len(lines) > 2 and width > 1:
        raise _stray_quote(path, number, f"it takes in {len(lines)} lines that look like rows")
    warn_once(
        f"{path} line {number}: a quoted cell takes in {len(lines)} lines that could be rows of their own: check its quotes"
    )


def _stray_quote(path: Path, number: int, reason: str) -> CorpusError:
    return CorpusError(
        f"{path} line {number}: a stray quote opens a cell ({reason}), rows would be lost in it: close it, or double it "
        "and quote the whole cell where the quote is a character; or save the table as jsonl"
    )


def _require(path: Path, columns: list[str], present: list[str]) -> None:
    if missing := [name for name in columns if name not in present]:
        raise CorpusError(f"{path}: no column {', '.join(missing)}; its columns are: {', '.join(present) or 'none'}")


def _unreadable(path: Path, error: Exception) -> CorpusError:
    if isinstance(error, UnicodeDecodeError):
        return CorpusError(f"{path} is not UTF-8 ({error}): save it as UTF-8")
    return CorpusError(f"{path} is damaged or cut short ({error}): fetch or write it again")


def _read_jsonl(path: Path, file: TextIO, columns: list[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(_whole_lines(path, file), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected an object, found {line.strip()[:40]}")
        _require(Path(where), columns, list(row))
        yield _texts(row, columns, where)


def read_parquet_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, whose cells have the types of the file.

    Args:
        path: the file.
        columns: those that must be there.

    Raises:
        CorpusError: when the file or a column is missing, or it cannot be read.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise CorpusError(f"{path}: parquet needs pyarrow: pip install 'quorum-distill[parquet]'") from None
    require_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            _require(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(PARQUET_ROWS):
                yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{path} is no parquet file that can be read ({error}): write it again") from None


def _texts(row: Mapping[str, Any], columns: list[str], where: str) -> dict[str, str]:
    """A row's cells as text; those of other columns may hold anything."""
    texts = {}
    for name, value in row.items():
        try:
            texts[name] = cell_text(value) if name in columns else "" if value is None else str(value)
        except CorpusError as error:
            raise CorpusError(f"{where}, column {name}: {error}") from None
    return texts


def cell_text(value: Any) -> str:
    """The text that a cell of a typed table holds; a number or a date as Python writes it, ``""`` for nothing and for NaN.

    Raises:
        CorpusError: when it holds no text, such as a list of messages, or a text longer than ``MAX_LINE``. The caller adds
            the place.

    >>> cell_text("a"), cell_text(7), cell_text(None), cell_text(float("nan"))
    ('a', '7', '', '')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):  # parquet has texts as binary when they are not declared as text
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise CorpusError(f"it is not UTF-8 ({error}): save it as UTF-8") from None
    if not isinstance(value, str | int | float | Decimal | date | time):
        raise CorpusError(
            f"expected a text or a number, found {type(value).__name__} {value!r:.60}: name another column, or "
            "write one text into each row"
        )
    text = str(value)
    if len(text) > MAX_LINE:
        raise CorpusError(f"{len(text):,} characters, at most {MAX_LINE:,} are read: mend or remove this row")
    return text.encode(errors="replace").decode()  # JSON can hold half a surrogate pair, UTF-8 cannot
