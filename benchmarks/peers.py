"""The same rows through other data loaders: litdata, mosaicml-streaming, webdataset. `make bench-peers` runs it.

The peers need an older numpy than the project's, so this has an environment of its own, `.venv-bench`. Every loader gives
shuffled batches of 512 rows of four teachers, 300 to 2048 wide, from a local folder, for one epoch; a peer's time is the
better of none and two worker processes.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from cache import WIDTHS, wide_corpus
from cache_tools import aligned, start_console
from distill.data.module import DistillData
from measure import Benchmark, Row, Setup, benchmark, run_all, seconds

Samples = list[dict[str, np.ndarray]]
WORKERS = (0, 2)


@cache
def all_samples(corpus: Path) -> Samples:
    columns = aligned(corpus, [f"teachers/t{width}" for width in WIDTHS])
    table = {name: rows.numpy() for name, rows in columns.rows(torch.arange(len(columns))).items()}
    return [{name: rows[index] for name, rows in table.items()} for index in range(len(columns))]


def one_sample(corpus: str, index: int) -> dict[str, np.ndarray]:
    return all_samples(Path(corpus))[index]


def run_through(loader: Iterable[dict[str, object]], rows: int, batch: int) -> None:
    read = sum(len(next(iter(columns.values()))) for columns in loader)
    if read < rows - batch:
        raise RuntimeError(f"the loader gave {read} rows of {rows}")


def litdata_epoch(folder: Path, corpus: Path, batch: int) -> Callable[[int], None]:
    import litdata

    out, rows = str(folder / "litdata"), len(all_samples(corpus))
    litdata.optimize(
        fn=partial(one_sample, str(corpus)), inputs=list(range(rows)), output_dir=out, num_workers=1, chunk_bytes="64MB"
    )

    def epoch(workers: int) -> None:
        dataset = litdata.StreamingDataset(out, shuffle=True)
        run_through(litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers), rows, batch)

    return epoch


def streaming_epoch(folder: Path, corpus: Path, batch: int) -> Callable[[int], None]:
    import streaming

    out, samples = str(folder / "mds"), all_samples(corpus)
    columns = {f"t{width}": f"ndarray:float16:{width}" for width in WIDTHS}
    with streaming.MDSWriter(out=out, columns=columns) as writer:
        for sample in samples:
            writer.write(sample)

    def epoch(workers: int) -> None:
        dataset = streaming.StreamingDataset(local=out, shuffle=True, batch_size=batch)
        run_through(DataLoader(dataset, batch_size=batch, num_workers=workers), len(samples), batch)

    return epoch


def webdataset_epoch(folder: Path, corpus: Path, batch: int) -> Callable[[int], None]:
    import webdataset

    out, samples = folder / "wds", all_samples(corpus)
    out.mkdir()
    with webdataset.ShardWriter(str(out / "%05d.tar"), maxsize=64e6, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:08d}", **{f"{name}.npy": row for name, row in sample.items()}})
    shards = sorted(map(str, out.glob("*.tar")))

    def epoch(workers: int) -> None:
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(5000).decode()
        names = [f"{name}.npy" for name in (f"t{width}" for width in WIDTHS)]
        tuples = dataset.to_tuple(*names)
        loader = DataLoader(tuples, batch_size=batch, num_workers=workers)
        run_through(({"t": columns[0]} for columns in loader), len(samples), batch)

    return epoch


def against(peer: str, prepare: Callable[[Path, Path, int], Callable[[int], None]]) -> Benchmark:
    """An epoch of ours against one of ``peer``.

    Args:
        peer: name of the library.
        prepare: writes its files and returns what reads them for one epoch with so many workers.
    """

    @benchmark(f"an epoch of 10,000 shuffled rows against {peer}")
    def rows(setup: Setup) -> Iterator[Row]:
        batch = setup.size(512, 64)
        corpus = wide_corpus(setup.folder, setup.size(10_000, 600))
        data = DistillData(corpus, input="length", batch_size=batch, held_out=setup.size(100, 60))
        epoch = prepare(setup.folder, corpus, batch)

        def ours() -> None:
            for _ in data.train_dataloader():
                pass

        ours()  # warm
        times = []
        for workers in WORKERS:
            epoch(workers)  # warm
            times.append(seconds(partial(epoch, workers)))
        best = min(times)
        mine = sorted(seconds(ours) for _ in range(5))[2]
        told = f"{best * 1e3:.0f} ms with {WORKERS[times.index(best)]} workers"
        yield Row(f"{mine * 1e3:.0f} ms", told, best / mine, ">= 10")

    return rows


BENCHMARKS = (
    against("litdata", litdata_epoch),
    against("mosaicml-streaming", streaming_epoch),
    against("webdataset", webdataset_epoch),
)


def main() -> None:
    start_console()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as folder:
        whole = run_all(BENCHMARKS, Setup(Path(folder)))
    sys.exit(not whole)


if __name__ == "__main__":
    main()
