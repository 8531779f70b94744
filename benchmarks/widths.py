"""Which ridge should the widths of kernels be compared at? By validation rows: a fifth of the training rows of each task.

    python benchmarks/widths.py CACHE TASK.csv.gz[:LABEL] ...

CACHE is a corpus whose tasks were probed (`distill test`). For each task, fold and system it scores the validation rows
after a choice of the width at each ridge, and after a choice of width and strength together. Test rows are not looked at.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from cache_tools import Items, open_column
from distill.evaluation.probes import KernelLogisticProbe, KernelRidgeProbe
from distill.evaluation.tasks import MoleculeTask
from distill.evaluation.tasks.base import distinct, folds

Array = np.ndarray[Any, Any]
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
SYSTEMS = {"fingerprints": ("descriptors", "morgan_counts"), "gcn_supervised": ("gcn_supervised",)}
FOLDS = 2  # of five


def embedded(cache: Path, task: MoleculeTask) -> Iterator[tuple[str, Array, Array]]:
    """Name of a system, its embeddings (rows, dim), and labels (rows, labels)."""
    keys, labels = task.load()
    items = distinct(keys)
    folder = cache / "tasks" / Items(items, "molecule", "").scan()[1][:16]
    rows = torch.tensor([{item: row for row, item in enumerate(items)}[key] for key in keys])
    for system, names in SYSTEMS.items():
        columns = [open_column(folder / "teachers" / name) for name in names]
        kept = torch.stack([column.valid(rows) for column in columns]).all(0)
        x = np.concatenate([column.rows(rows[kept]).float().numpy() for column in columns], 1)
        yield system, x, labels[kept.numpy()]


def validated(probe: Any, x: Array, y: Array, held: Array) -> float:
    """The score of the rows ``held``, options chosen by three inner folds of the others."""
    inner = folds(np.arange((~held).sum()), 3, 0)
    scores = probe.fit(x[~held], y[~held], inner).score(x[held], y[held])[probe.metric]
    return float(np.nanmean(scores))


def together(kind: Any, x: Array, y: Array, held: Array) -> float:
    """The same after a choice of width and strength together."""

    class Chosen(kind):  # type: ignore[misc]
        def best(self, scores: Array, outputs: int) -> list[int]:
            self.reached = float(np.nanmean(np.nanmax(scores, 1)))
            return super().best(scores, outputs)

    found = []
    for width in kind.widths:
        probe = type("One", (Chosen,), {"widths": (width,)})()
        found.append((validated(probe, x, y, held), probe.reached))
    return max(found, key=lambda pair: pair[1])[0]


def main(cache: str, *tasks: str) -> None:
    table: dict[str, list[float]] = {str(ridge): [] for ridge in RIDGES} | {"together": []}
    for place in tasks:
        path, _, label = place.partition(":")
        values = MoleculeTask(Path(path), "regression", [label] if label else None)
        binary = set(np.unique(values.load()[1])) <= {0.0, 1.0}
        kind = KernelLogisticProbe if binary else KernelRidgeProbe
        for system, x, y in embedded(Path(cache), values):
            outer = folds(np.arange(len(x)), 5, 0)
            row: dict[str, list[float]] = {name: [] for name in table}
            for number in range(FOLDS):
                train = np.flatnonzero(outer != number)[:1500]
                held = folds(np.arange(len(train)), 5, 1) == 0
                for ridge in RIDGES:
                    probe = type("At", (kind,), {"ridge": ridge})()
                    row[str(ridge)].append(validated(probe, x[train], y[train], held))
                row["together"].append(together(kind, x[train], y[train], held))
            means = {name: float(np.mean(scores)) for name, scores in row.items()}
            print(
                f"{Path(path).name:28} {system:16}", *(f"{name} {score:.4f}" for name, score in means.items()), flush=True
            )
            for name, score in means.items():
                table[name].append(score)
    base = np.array(table["0.3"])
    for name, scores in table.items():
        less = np.array(scores) - base
        error = less.std(ddof=1) / len(less) ** 0.5
        print(f"{name:10} mean {np.mean(scores):.4f}, less 0.3: {less.mean():+.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main(*sys.argv[1:])
