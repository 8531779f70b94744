"""Look at random rows of a teacher's column, and embed them again to see that they are what the teacher says today."""

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
from cache_tools.building.pipeline import make
from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.reader import Column, aligned
from cache_tools.format.store import Array
from cache_tools.producer import as_json, rebuild, require_same
from cache_tools.teachers.base import Teacher

LEAST = 0.999  # cosine of a stored row to the live teacher's: float16 and int8 keep it, another teacher does not

WIDTH = 40  # characters of an item


def sample(column: Path, rows: int = 16, seed: int = 0, check: bool = False, device: str = "auto") -> None:
    """Show random rows of a teacher's column; with check, embed them again and compare.

    Args:
        column: the column's folder, for instance cache/mol/teachers/maccs.
        rows: how many.
        seed: decides which.
        check: embed the rows again with the teacher that the column's manifest names, and report the cosine.
        device: where that teacher runs: auto, cpu, cuda, ...

    Raises:
        CacheError: when the teacher is not the one that made the column, or a cosine is below 0.999.
    """
    opened = Column(column.absolute())
    if opened.kind == "ragged":
        raise CacheError(f"{column} holds rows of different lengths; only columns of teachers can be sampled")
    corpus = opened.path.parent.parent
    aligned(corpus, [opened])  # ids and items must be those of the column's corpus
    chosen = np.sort(np.random.default_rng(seed).choice(len(opened), min(rows, len(opened)), replace=False))
    ids, items = _items(corpus, chosen, opened.shard_rows)
    valid, stored = opened.valid(chosen).numpy(), opened.rows(chosen).numpy().astype(np.float64)  # (rows, dim)
    Console().print(_table(opened, chosen, ids, items, valid, stored))
    if check:
        teacher = live_teacher(opened.path, opened.manifest["producer"], device)
        names = [identity for identity, there in zip(ids, valid, strict=True) if there]
        given = [each.encode() for each in ids] if teacher.by_id else items
        kept = [each for each, there in zip(given, valid, strict=True) if there]
        _compare(opened, names, stored[valid], _embed(teacher, names, kept))


def live_teacher(path: Path, producer: Mapping[str, Any], device: str) -> Teacher:
    """The teacher that made the column at ``path``, loaded.

    Raises:
        CacheError: when it is another one now; the field that differs is named.
    """
    teacher = rebuild(producer, Teacher)
    assert isinstance(teacher, Teacher)
    teacher.load(choose_device(device))
    require_same(path, producer["fingerprint"], as_json(teacher.fingerprint()))
    return teacher


def _items(corpus: Path, chosen: Array, shard_rows: int) -> tuple[list[str], list[bytes]]:
    """Ids and items of the rows ``chosen``, which are sorted."""
    ids, items = [], []
    for number in np.unique(chosen // shard_rows).tolist():
        names, contents = store.read_items(corpus, number)
        for row in (chosen[chosen // shard_rows == number] % shard_rows).tolist():
            ids.append(names[row])
            items.append(contents[row])
    return ids, items


def _table(opened: Column, chosen: Array, ids: list[str], items: list[bytes], valid: Array, stored: Array) -> Table:
    table = Table(title=f"{len(ids)} of {len(opened):,} rows of {opened.name}", box=box.SIMPLE_HEAD)
    for heading, justify in (("row", "right"), ("id", "left"), ("item", "left"), ("valid", "left"), ("norm", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row, identity, item, there, norm in zip(chosen, ids, items, valid, np.linalg.norm(stored, axis=1), strict=True):
        cells = f"{row:,}", _plain(identity), _plain(item[: 4 * WIDTH].decode(errors="replace")), "yes" if there else "no"
        table.add_row(*map(Text, cells), f"{norm:.4g}" if there else "")  # a SMILES's brackets are no markup
    return table


def _plain(text: str) -> str:
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _embed(teacher: Teacher, ids: list[str], given: list[bytes]) -> Array:
    size = Settings().batch_size
    parts = []
    for start in range(0, len(given), size):
        made = make(teacher, given[start : start + size])
        for position, reason in made.bad.items():
            raise CacheError(f"the teacher can no longer embed the item of id {ids[start + position]!r}: {reason}")
        parts.append(np.asarray(made.values, np.float64))
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
