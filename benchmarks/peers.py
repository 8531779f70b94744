"""The same rows through other data loaders: litdata, mosaicml-streaming, webdataset. `make bench-peers` runs it.

The peers need an older numpy than the project's, so this has an environment of its own, `.venv-bench`. Every loader gives
shuffled batches of 512 rows of four teachers, 300 to 2048 wide, from a local folder, for one epoch; a peer's time is the
better of none and two worker processes.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from cache import BATCH, WIDTHS, wide_corpus
from cache_tools import aligned
from cache_tools.console import start_logging
from distill.data.module import DistillData
from measure import Row, seconds, show

ROWS = 10_000
WORKERS = (0, 2)


@cache
def all_samples(corpus: Path) -> list[dict[str, np.ndarray]]:
    columns = aligned(corpus, [f"teachers/t{width}" for width in WIDTHS])
    table = {name: rows.numpy() for name, rows in columns.rows(torch.arange(ROWS)).items()}
    return [{name: rows[index] for name, rows in table.items()} for index in range(ROWS)]


def one_sample(corpus: str, index: int) -> dict[str, np.ndarray]:
    return all_samples(Path(corpus))[index]


def run_through(loader: Iterable[object], expected: int) -> None:
    seen = sum(len(next(iter(batch.values()))) for batch in loader)
    assert seen >= expected - BATCH, f"{seen} rows of {expected}"


def litdata_epoch(folder: Path, corpus: Path) -> Callable[[int], None]:
    import litdata

    out = str(folder / "litdata")
    litdata.optimize(
        fn=partial(one_sample, str(corpus)), inputs=list(range(ROWS)), output_dir=out, num_workers=1, chunk_bytes="64MB"
    )

    def epoch(workers: int) -> None:
        dataset = litdata.StreamingDataset(out, shuffle=True)
        run_through(litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers), ROWS)

    return epoch


def streaming_epoch(folder: Path, corpus: Path) -> Callable[[int], None]:
    import streaming

    out = str(folder / "mds")
    columns = {f"t{width}": f"ndarray:float16:{width}" for width in WIDTHS}
    with streaming.MDSWriter(out=out, columns=columns) as writer:
        for sample in all_samples(corpus):
            writer.write(sample)

    def epoch(workers: int) -> None:
        dataset = streaming.StreamingDataset(local=out, shuffle=True, batch_size=BATCH)
        run_through(DataLoader(dataset, batch_size=BATCH, num_workers=workers), ROWS)

    return epoch


def webdataset_epoch(folder: Path, corpus: Path) -> Callable[[int], None]:
    import webdataset

    out = folder / "wds"
    out.mkdir()
    with webdataset.ShardWriter(str(out / "%05d.tar"), maxsize=64e6, verbose=0) as writer:
        for number, sample in enumerate(all_samples(corpus)):
            writer.write({"__key__": f"{number:08d}", **{f"{name}.npy": row for name, row in sample.items()}})
    shards = sorted(map(str, out.glob("*.tar")))

    def epoch(workers: int) -> None:
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(5000).decode()
        names = [f"{name}.npy" for name in (f"t{width}" for width in WIDTHS)]
        tuples = dataset.to_tuple(*names)
        loader = DataLoader(tuples, batch_size=BATCH, num_workers=workers)
        run_through(({"t": batch[0]} for batch in loader), ROWS)

    return epoch


def main() -> None:
    start_logging()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = wide_corpus(folder, ROWS)
        data = DistillData(corpus, input="length", batch_size=BATCH, held_out=100)

        def ours() -> None:
            for _ in data.train_dataloader():
                pass

        ours()
        rows = {}
        for peer, make in {
            "litdata": litdata_epoch,
            "mosaicml-streaming": streaming_epoch,
            "webdataset": webdataset_epoch,
        }.items():
            epoch = make(folder, corpus)
            print(peer, "written", flush=True)
            times = []
            for workers in WORKERS:
                epoch(workers)  # warm
                times.append(seconds(partial(epoch, workers)))
            best = min(times)
            mine = sorted(seconds(ours) for _ in range(5))[2]
            rows[f"an epoch of {ROWS:,} shuffled rows against {peer}"] = Row(
                f"{mine * 1e3:.0f} ms", f"{best * 1e3:.0f} ms, {WORKERS[times.index(best)]} workers", best / mine, ">= 10"
            )
    show("other data loaders", rows)


if __name__ == "__main__":
    main()
