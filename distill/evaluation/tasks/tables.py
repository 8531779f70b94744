"""Rows and labels of a task's table."""

from pathlib import Path

import numpy as np

from cache_tools import CorpusError, read_table


def table_rows(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """All rows of a table.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        columns: those that it must have.

    Raises:
        CorpusError: missing file or column, no rows.
    """
    rows = list(read_table(path, columns))
    if not rows:
        raise CorpusError(f"{path} holds no rows below its header")
    return rows


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
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (binary and value not in (0.0, 1.0)):
        labels = ["0", "1"] if binary else ["a finite number"]
        *others, last = [*labels, "nothing"] if optional else labels
        expected = f"{', '.join(others)} or {last}" if others else last
        raise CorpusError(f"{where} is {text!r}, expected {expected}")
    return value
