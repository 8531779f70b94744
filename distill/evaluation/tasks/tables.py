"""Rows and labels of a task's table."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools import CorpusError, file_ending, read_table

Array = np.ndarray[Any, Any]

Rows = Sequence[Mapping[str, str]]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

PARTS = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}  # names of a split's parts

EXACT = 2**53  # whole numbers below it are exact as floats

RATINGS = 20  # fractional numbers that may be classes, as a half star is

log = logging.getLogger(__name__)


def table_rows(path: Path, columns: list[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """All rows of a table.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        columns: those that it must have.
        optional: those that are read like them where the first row has them.

    Raises:
        CorpusError: missing file or column, no rows.
    """
    present = header(path) if optional else []
    rows = list(read_table(path, [*columns, *(name for name in optional if name in present)]))
    if not rows:
        raise CorpusError(f"{path} holds no rows below its header")
    return rows


def header(path: Path) -> list[str]:
    """The columns of a table's first row; none when it has no rows."""
    return list(next(iter(read_table(path, [])), {}))


def place(path: Path, row: int) -> str:
    """Where row number ``row`` of a table stands, for a message.

    >>> place(Path("t.csv"), 0), place(Path("t.jsonl.gz"), 0), place(Path("t.parquet"), 0)
    ('t.csv line 2', 't.jsonl.gz line 1', 't.parquet row 1')
    """
    kind = file_ending(path)
    return f"{path} {'row' if kind == '.parquet' else 'line'} {row + (2 if kind == '.csv' else 1)}"


def values(rows: Rows, path: Path, columns: Sequence[str], binary: bool, optional: bool = False) -> Array:
    """The numbers in some columns of a table, (rows, columns), in float64; see :func:`number`."""
    return np.array(
        [
            [number(row.get(column, ""), f"{place(path, count)}: {column}", binary, optional) for column in columns]
            for count, row in enumerate(rows)
        ],
        np.float64,
    )


def number(text: str, where: str, binary: bool, optional: bool = False) -> float:
    """The label that a cell holds.

    Args:
        text: the cell.
        where: file, line and column, for the message.
        binary: whether only 0 and 1 are labels.
        optional: whether a label may be missing: an empty cell is NaN.

    Raises:
        CorpusError: when it is no finite number, or not a label.

    >>> number("0.5", "t.csv line 2: score", binary=False)
    0.5
    """
    if optional and text.strip().lower() in ("", "nan"):
        return float("nan")
    value = float(text) if NUMBER.fullmatch(text.strip()) else float("nan")
    if not np.isfinite(value) or (binary and value not in (0.0, 1.0)):
        labels = ["0", "1"] if binary else ["a finite number"]
        *others, last = [*labels, "nothing"] if optional else labels
        expected = f"{', '.join(others)} or {last}" if others else last
        raise CorpusError(f"{where} is {text!r}, expected {expected}")
    return value


def part_names(rows: Rows, path: Path, column: str) -> list[str]:
    """The part of a split that every row names, as a key of ``PARTS``; all are empty when no row names one.

    Raises:
        CorpusError: when a row names no part, and others do, or a part that is not known.
    """
    names = [row.get(column, "").strip().lower() for row in rows]
    wrong = next((count for count, name in enumerate(names) if name not in PARTS), None)
    if wrong is not None and any(names):
        raise CorpusError(
            f"{place(path, wrong)}: {column} is {rows[wrong].get(column, '')!r}, "
            "expected train, validation or test in all rows or in none"
        )
    return names


def class_names(rows: Rows, path: Path, column: str) -> list[str]:
    """The class of every row; a number is one class however it is written.

    Raises:
        CorpusError: when a label is missing, or the column holds values instead of classes.
    """
    names = [_class_name(row[column]) for row in rows]
    if "" in names:
        where = f"{place(path, names.index(''))}: no label in column {column}"
        raise CorpusError(f"{where}, expected the name or number of a class")
    classes = set(names)
    fractional = sorted(name for name in classes if NUMBER.fullmatch(name) and not float(name).is_integer())
    singular = 2 * len(classes) > len(names)
    if fractional and all(map(NUMBER.fullmatch, classes)):
        count = f"{len(classes):,} different numbers in {len(names):,} rows"
        found = f"{path}: column {column} has {count}, such as {fractional[0]}"
        if singular or len(classes) > RATINGS:
            raise CorpusError(f"{found}: these are values, not classes; take kind: regression, or name another column")
        _warn(f"{found}: each is a class; if they are values, take kind: regression")
    elif singular:
        _warn(f"{path}: column {column} has {len(classes):,} classes in {len(names):,} rows: does it name classes?")
    return names


def _class_name(text: str) -> str:
    text = text.strip()
    if text.lower() == "nan":
        return ""
    value = float(text) if NUMBER.fullmatch(text) else math.inf
    return text if abs(value) >= EXACT else str(int(value) if value.is_integer() else value)


@cache
def _warn(message: str) -> None:
    """Log a warning once, however often a task is loaded."""
    log.warning(message)
