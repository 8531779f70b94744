"""Reading and writing a cache: against tensors in RAM, h5py, plain files and torch_geometric."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import torch
from torch_geometric.data import Batch, Data

from cache_tools import aligned, open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.building.pipeline import make
from cache_tools.corpora.base import Items
from cache_tools.corpora.molecule import RdkitSamples, SmilesFile
from cache_tools.format import store
from cache_tools.format.shard import ALIGNMENT, write_shard
from cache_tools.inputs import Featuriser, MoleculeGraph
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.gnn import PretrainedGnn
from distill.data.module import DistillData
from measure import Row, compare, seconds

BATCH = 512
WIDTHS = (300, 512, 768, 2048)
ROWS = 200_000


class Noise(Teacher):
    """Random embeddings: reading does not care what they say."""

    modality = "text"

    def __init__(self, dim: int):
        self.dim = dim

    def load(self, device: str) -> None:
        self.rows = np.random.default_rng(self.dim).normal(size=(4096, self.dim)).astype(np.float32)

    def embed(self, items):
        return self.rows[: len(items)]


class Length(Featuriser):
    """The smallest input that a student could read."""

    modality = "text"
    fields = {"length": ("uint8", ())}

    def featurise(self, item):
        return {"length": np.array([len(item)], np.uint8)}


def wide_corpus(folder: Path, rows: int = ROWS) -> Path:
    """Four teachers, 300 to 2048 wide, float16."""
    items = Items([f"{number}" for number in range(rows)], "text")
    teachers = {f"t{width}": Noise(width) for width in WIDTHS}
    return build(folder, "wide", items, teachers, {"length": Length()}, Settings(batch_size=4096, workers=1))


def reading(corpus: Path) -> dict[str, Row]:
    columns = aligned(corpus, [f"teachers/t{width}" for width in WIDTHS])
    everything = torch.arange(len(columns))
    in_memory = [column.rows(everything) for column in columns.columns.values()]
    # rows of a batch come sorted, as in training; the peer gets the same
    batches = list(torch.randperm(len(columns))[: 300 * BATCH].view(-1, BATCH).sort(1).values)
    data = DistillData(corpus, input="length", batch_size=BATCH, held_out=1000)
    files = [h5py.File(column.path / "00000.h5")["embedding"] for column in columns.columns.values()]
    in_first = [np.sort(np.random.default_rng(k).permutation(store.SHARD_ROWS)[:BATCH]) for k in range(30)]

    def ours() -> None:
        for rows in batches:
            chosen = columns.select(rows)
            columns.rows(chosen), columns.valid(chosen)

    def selected() -> None:
        for rows in batches:
            [tensor.index_select(0, rows) for tensor in in_memory]

    def loaded() -> None:
        for _ in islice(data.train_dataloader(), len(batches)):
            pass

    return {
        "shuffled aligned batches, 4 teachers, against index_select in RAM": compare(ours, selected, 9, ">= 0.8"),
        "the same through the training's DataLoader": compare(loaded, selected, 9, ">= 0.6"),
        "the same against h5py fancy indexing": compare(
            lambda: [columns.rows(rows) for rows in in_first],
            lambda: [file[rows] for rows in in_first for file in files],
            5,
            ">= 20",
        ),
    }


def graphs(folder: Path) -> dict[str, Row]:
    corpus = build(folder, "mol", RdkitSamples(), {}, {"graph": MoleculeGraph()})
    column = open_column(corpus / "inputs" / "graph")
    atoms = column.rows(torch.arange(len(column)))["atoms"].counts
    rows = ((atoms >= 15) & (atoms <= 40)).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows))[:BATCH]]
    objects = []
    for row in rows:
        one = column.rows(row.view(1))
        objects.append(Data(x=one["atoms"].values, edge_index=one["edges"].values.T, edge_attr=one["bonds"].values))
    return {
        "molecule batches, 15 to 40 atoms, against torch_geometric's collate": compare(
            lambda: column.rows(rows), lambda: Batch.from_data_list(objects), 25, ">= 8"
        )
    }


def building(folder: Path, weights: Path, molecules: Path) -> dict[str, Row]:
    """The whole cache build of a pretrained GNN against the loop that anybody would write."""
    if not weights.is_file() or not molecules.is_file():
        print(f"no {weights} or {molecules}: the build of a GNN teacher is not measured")
        return {}
    corpus = SmilesFile(molecules, limit=12_000)
    _, items, _ = corpus.read()
    number = 0

    def ours() -> None:
        nonlocal number
        number += 1
        build(folder, f"gnn{number}", corpus, {"gnn": PretrainedGnn(str(weights))}, {}, Settings(shard_rows=4000))

    def bare() -> None:
        teacher = PretrainedGnn(str(weights))
        teacher.load("cpu")
        for start in range(0, len(items), 256):
            make(teacher, items[start : start + 256])

    return {"cache build with a pretrained GNN against the bare loop": compare(ours, bare, 2, ">= 0.95")}


def writing(folder: Path) -> dict[str, Row]:
    array = np.random.default_rng(0).normal(size=(store.SHARD_ROWS, 2048)).astype(np.float16)
    target = folder / "write"
    target.mkdir()
    content = memoryview(array).cast("B")
    number = 0

    def ours() -> None:
        nonlocal number
        number += 1
        write_shard(target, number, {"embedding": array}, {})
        (target / f"{number:05d}.h5").unlink()

    def plain() -> None:
        with open(target / "plain", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (target / "plain").unlink()

    return {"writing a shard, hash included, against write and fsync": compare(ours, plain, 7, ">= 0.7")}


def sparse_column(folder: Path, rows: int = 10_000_000, dim: int = 512) -> Path:
    """A column of 10 million rows whose embeddings are holes in the files."""
    column = folder / "sparse" / "teachers" / "t"
    column.mkdir(parents=True)
    producer = {"class_path": "none", "init_args": {}, "fingerprint": {}, "libraries": {}}
    listed = []
    identity = {"corpus_fingerprint": "0", "producer": store.producer_key(producer)}
    for number, first in enumerate(range(0, rows, store.SHARD_ROWS)):
        count = min(store.SHARD_ROWS, rows - first)
        path = column / f"{number:05d}.h5"
        with h5py.File(path, "w", libver="latest", alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT) as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((count, dim))
            h5py.h5d.create(file.id, b"embedding", h5py.h5t.IEEE_F16LE, space, properties)
            file["valid"] = np.ones(count, np.uint8)
            file.attrs.update({**identity, "shard": number, "first_row": first, "rows": count, "format_version": 1})
        facts = {"file": path.name, "rows": count, "valid": count, "bytes": path.stat().st_size, "sha256": ""}
        listed.append({**facts, "dtype": "float16"})
    statistics = {"count": rows, "mean": [0.0] * dim, "var": [1.0] * dim}
    manifest = {"format_version": 1, "kind": "dense", "corpus_fingerprint": "0", "producer": producer, "rows": rows}
    manifest |= {"shard_rows": store.SHARD_ROWS, "requested_dtype": "float16", "finished": True, "shards": listed}
    (column / "manifest.json").write_text(json.dumps(manifest | {"dim": dim, "dtype": "float16", "statistics": statistics}))
    return column


def large(folder: Path) -> dict[str, Row]:
    """In a process of its own, so that nothing else counts as its memory."""
    column = sparse_column(folder)
    command = [sys.executable, __file__, str(column)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent)
    opening, base, resident = map(float, done.stdout.split()[-3:])
    return {
        "opening a column of 10 million rows, s": Row(f"{opening:.4f} s", "", opening, "< 0.2"),
        "resident memory while streaming it in blocks, above the imports, MB": Row(
            f"{resident:.0f} MB", f"imports: {base:.0f} MB", resident, "< 300"
        ),
    }


def resident() -> float:
    """Megabytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def stream(path: str) -> None:
    from distill.data.order import BatchOrder, Source

    base = resident()
    start = time.perf_counter()
    column = open_column(path)
    opening = time.perf_counter() - start
    most, window = base, None
    order = BatchOrder([Source(len(column), block=1024)], 4096, 0)
    for step in order:
        if step.windows != window:
            column.release()
            window = step.windows
        for runs in step.ahead:
            for run in runs:
                column.read_ahead(*run)
        column.rows(step.rows[0])
        most = max(most, resident())
    print(opening, base, most - base)


def evict(corpus: Path) -> None:
    """Drop the corpus's files from the page cache, which needs no privilege."""
    for path in corpus.rglob("*.h5"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(corpus: Path) -> dict[str, Row]:
    """Every byte comes from the disk: block shuffle against reading the files from end to end."""
    data = DistillData(corpus, input="length", batch_size=BATCH, held_out=1000, block_rows=1024, window_blocks=16)
    files = [path for column in data.columns.values() for path in sorted(column.path.glob("*.h5"))]

    def ours() -> None:
        for _ in data.train_dataloader():
            pass

    def sequential() -> None:
        buffer = bytearray(8 << 20)
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    turns: list[tuple[float, float]] = []
    for _ in range(3):
        data.parts[0].columns.release()
        evict(corpus)
        mine = seconds(ours)
        data.parts[0].columns.release()
        evict(corpus)
        turns.append((mine, seconds(sequential)))
    mine, theirs = np.median(np.array(turns), 0)
    ratio = float(np.median([b / a for a, b in turns]))
    size = sum(path.stat().st_size for path in files) / 1e9
    return {
        f"block shuffle from a cold disk, {size:.1f} GB, against a sequential read": Row(
            f"{mine:.2f} s", f"{theirs:.2f} s", ratio, ">= 0.7"
        )
    }


def everything(folder: Path) -> Iterator[dict[str, Row]]:
    shared = Path(__file__).parents[2] / "shared"
    weights = Path(os.environ.get("WEIGHTS") or shared / "weights" / "mol")
    corpus = wide_corpus(folder)
    yield reading(corpus)
    yield graphs(folder)
    yield building(folder, weights / "gcn_supervised.safetensors", shared / "data" / "mol" / "corpus.csv.gz")
    yield writing(folder)
    yield large(folder)
    yield cold(corpus)


if __name__ == "__main__":
    stream(sys.argv[1])
