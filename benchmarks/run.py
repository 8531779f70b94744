"""Speed as ratios, measured side by side in one run on real molecules: `make bench`.

Every row times two ways to the same result, in turns, and reports the median of the ratios.
"""

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression, Ridge
from torch_geometric.data import Batch, Data

from cache_tools import open_column
from cache_tools.build import build
from cache_tools.columns import MoleculeGraph
from cache_tools.console import start_logging
from cache_tools.corpus import RdkitSamples
from cache_tools.teachers.molecule import MorganCounts
from distill.probes import LogisticProbe, RidgeProbe

BATCH = 512


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both and the median over turns of peer / ours."""
    ours(), peer()  # warm
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return medians[0], medians[1], statistics.median(theirs / mine for mine, theirs in pairs)


def dense_rows(corpus: Path) -> dict[str, tuple[float, float, float]]:
    column = open_column(corpus / "teachers" / "morgan_counts")
    orders = [torch.randperm(len(column))[:BATCH] for _ in range(20)]
    in_memory = column.rows(torch.arange(len(column)))
    file = h5py.File(column.path / column.shards[0]["file"], "r")["embedding"]
    return {
        "shuffled rows: ours against index_select of a tensor in RAM": ratio(
            lambda: [column.rows(rows) for rows in orders], lambda: [in_memory.index_select(0, rows) for rows in orders], 15
        ),
        "shuffled rows: ours against h5py fancy indexing": ratio(
            lambda: [column.rows(rows) for rows in orders],
            lambda: [file[np.sort(rows.numpy())] for rows in orders],
            3,
        ),
    }


def graphs(corpus: Path) -> dict[str, tuple[float, float, float]]:
    column = open_column(corpus / "inputs" / "graph")
    rows = torch.randperm(len(column))[:BATCH]
    objects = []
    for row in rows:
        one = column.rows(row.view(1))
        objects.append(Data(x=one["atoms"].values, edge_index=one["edges"].values.T, edge_attr=one["bonds"].values))
    return {
        "molecule batches: ours against torch_geometric's collate": ratio(
            lambda: column.rows(rows), lambda: Batch.from_data_list(objects), 15
        )
    }


def probes() -> dict[str, tuple[float, float, float]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 512)).astype(np.float32)
    signal = x[:, :64] @ rng.normal(size=(64, 1)) / 8 + rng.normal(size=(4000, 1))
    bits = (signal > 0).astype(np.float64)

    def ours(probe: type, y: np.ndarray) -> Callable[[], object]:
        return lambda: probe().fit(x[:3200], y[:3200], x[3200:], y[3200:])

    def naive(models: list, y: np.ndarray) -> Callable[[], object]:
        return lambda: [model.fit(x[:3200], y[:3200, 0]).predict(x[3200:]) for model in models]

    logistic = [LogisticRegression(C=1 / strength, max_iter=1000) for strength in LogisticProbe.strengths]
    ridge = [Ridge(alpha=strength) for strength in RidgeProbe.strengths]
    return {
        "ridge probe, 4,000 x 512: ours against a scikit-learn sweep": ratio(
            ours(RidgeProbe, signal), naive(ridge, signal), 5
        ),
        "logistic probe, 4,000 x 512: ours against a scikit-learn sweep": ratio(
            ours(LogisticProbe, bits), naive(logistic, bits), 3
        ),
    }


def main() -> None:
    start_logging()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus = build(Path(folder), "c", RdkitSamples(), {"morgan_counts": MorganCounts()}, {"graph": MoleculeGraph()})
        results = dense_rows(corpus) | graphs(corpus) | probes()
    table = Table("what", "ours, ms", "peer, ms", "times faster", title=f"{torch.get_num_threads()} threads")
    for name, (mine, theirs, times) in results.items():
        table.add_row(name, f"{mine * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{times:.2f}")
    Console().print(table)
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps({name: times for name, (_, _, times) in results.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
