"""``distill-cache sample``: show random rows of a teacher's column, and compare them with what the teacher gives today."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools.building.column import Settings
from cache_tools.building.launch import choose_device
from cache_tools.building.pipeline import run_batch
from cache_tools.errors import CacheError
from cache_tools.format.packing import Array
from cache_tools.format.reader import Column, aligned
from cache_tools.format.store import read_item
from cache_tools.producer import as_json, rebuild, require_same
from cache_tools.teachers.base import Teacher

LEAST = 0.999  # cosine of a stored row to the live teacher's: float16 and int8 reach it, another teacher does not

WIDTH = 40  # characters of an item


def sample(
    column: Path,
    rows: int = 16,
    seed: int = 0,
    check: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Show random rows of a teacher's column; with ``check``, embed them again and compare.

    Args:
        column: the column's folder, for instance cache/mol/teachers/maccs.
        rows: how many.
        seed: decides which.
        check: embed the rows again with the teacher that the column's manifest names, and report the cosine.
        device: where that teacher runs: auto, cpu, cuda, ...
        trust_remote_code: let that teacher run Python code that comes with its model, where the manifest says that the
            build did so; only for models whose code you have read.

    Raises:
        CacheError: when the teacher is not the one that made the column, or a cosine is below 0.999.
    """
    opened = Column(column.absolute())
    if opened.kind == "ragged":
        raise CacheError(f"{column} holds rows of different lengths; only columns of teachers can be sampled")
    corpus = opened.path.parent.parent
    aligned(corpus, [opened])  # ids and items must be those of the column's corpus
    chosen = np.sort(np.random.default_rng(seed).choice(len(opened), min(rows, len(opened)), replace=False))
    drawn = [read_item(corpus, row) for row in chosen.tolist()]
    ids, items = [identity for identity, _ in drawn], [item for _, item in drawn]
    valid, stored = opened.valid(chosen).numpy(), opened.rows(chosen).numpy().astype(np.float64)  # (rows, dim)
    Console().print(_table(opened, chosen, ids, items, valid, stored))
    if not check:
        Console().print(f"next: distill-cache sample --column {column} --check", soft_wrap=True, highlight=False)
    else:
        teacher = live_teacher(opened.path, opened.manifest["producer"], device, trust_remote_code)
        kept = np.flatnonzero(valid).tolist()
        names = [ids[row] for row in kept]
        given = [ids[row].encode() if teacher.by_id else items[row] for row in kept]
        _compare(opened, names, stored[valid], _embed(teacher, names, given))


def live_teacher(path: Path, producer: Mapping[str, Any], device: str, trust_remote_code: bool = False) -> Teacher:
    """The teacher that made the column at ``path``, loaded.

    Raises:
        CacheError: when that teacher has changed; the field that differs is named. As :func:`rebuild`.
    """
    teacher = rebuild(producer, Teacher, path, trust_remote_code=trust_remote_code)
    teacher.load(choose_device(device))
    require_same(path, producer["fingerprint"], as_json(teacher.fingerprint()))
    return teacher


def _table(opened: Column, chosen: Array, ids: list[str], items: list[bytes], valid: Array, stored: Array) -> Table:
    table = Table(title=f"{len(ids)} of {len(opened):,} rows of {opened.name}", box=box.SIMPLE_HEAD)
    for heading, justify in (("row", "right"), ("id", "left"), ("item", "left"), ("valid", "left"), ("norm", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row, identity, item, usable, norm in zip(chosen, ids, items, valid, np.linalg.norm(stored, axis=1), strict=True):
        cells = f"{row:,}", _plain(identity), _plain(item[: 4 * WIDTH].decode(errors="replace")), "yes" if usable else "no"
        table.add_row(*map(Text, cells), f"{norm:.4g}" if usable else "")  # Text: a SMILES's brackets are no markup
    return table


def _plain(text: str) -> str:
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _embed(teacher: Teacher, ids: list[str], given: list[bytes]) -> Array:
    size = Settings().batch_size
    parts = []
    for start in range(0, len(given), size):
        result = run_batch(teacher, given[start : start + size])
        for position, reason in result.bad.items():
            raise CacheError(f"the teacher can no longer embed the item of id {ids[start + position]!r}: {reason}")
        parts.append(np.asarray(result.values, np.float64))
    return np.concatenate([np.empty((0, teacher.dim)), *parts])  # (rows, dim)


def _compare(opened: Column, ids: list[str], stored: Array, live: Array) -> None:
    if not ids:
        raise CacheError(f"not one of the rows is valid, nothing to check in {opened.path}: take more with --rows")
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(live, axis=1)
    dots = (stored * live).sum(1)
    cosine = np.where((stored == live).all(1), 1.0, np.divide(dots, lengths, out=np.zeros(len(dots)), where=lengths > 0))
    worst = int(cosine.argmin())  # a NaN counts as the least
    Console().print(f"{len(ids)} rows embedded again: cosine at least {cosine[worst]:.6f}, median {np.median(cosine):.6f}")
    if not cosine[worst] >= LEAST:
        raise CacheError(
            f"{opened.path}: the row of id {ids[worst]!r} has cosine {cosine[worst]:.6f} to what the teacher gives now, "
            f"expected {LEAST} or more: run `distill-cache verify`, or delete the folder and build again"
        )
