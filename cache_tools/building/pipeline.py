"""Run a producer over batches of raw items: the next batch is prepared while the producer works on this one."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self

from cache_tools.console import start_logging
from cache_tools.errors import BadItem
from cache_tools.producer import Producer


@dataclass(frozen=True)
class BatchResult:
    """The result of one batch: values of the good positions, and why the others are bad."""

    good: list[int]
    values: Any  # (good, dim) of a teacher; a list of field -> array of a featuriser
    bad: dict[int, str]


def run_batch(producer: Producer, items: Sequence[bytes]) -> BatchResult:
    """Prepare ``items`` and run ``producer`` on those that can be used."""
    return _finish(_start(producer, _process(producer, items)))


def _process(producer: Producer, items: Sequence[bytes]) -> BatchResult:
    """Values are what the producer works on."""
    processed: dict[int, Any] = {}
    bad: dict[int, str] = {}
    for position, item in enumerate(items):
        try:
            processed[position] = producer.process_item(item)
        except (BadItem, UnicodeDecodeError) as error:
            bad[position] = str(error)
    return BatchResult(list(processed), list(processed.values()), bad)


def _start(producer: Producer, batch: BatchResult) -> BatchResult:
    """Values are a function that waits for them."""
    return replace(batch, values=producer.start_batch(batch.values)) if batch.good else batch


def _finish(batch: BatchResult) -> BatchResult:
    return replace(batch, values=batch.values()) if batch.good else batch


class Pipeline:
    """Runs a loaded producer over batches, in order; use as a context manager.

    A producer whose time goes into Python gets worker processes. Any other runs here while threads prepare the next
    batches: one thread for a teacher on the CPU, which needs the cores itself, and as many as ``workers`` beside a GPU
    (decoding images does not hold Python's lock).

    Args:
        producer: what to run.
        workers: processes or threads; 0 takes one per core.
    """

    def __init__(self, producer: Producer, workers: int):
        import torch

        self.producer = producer
        self.workers = workers or os.cpu_count() or 1
        self.parallel = producer.python_bound and self.workers > 1
        self.threads = self.workers if torch.cuda.is_available() else 1

    def __enter__(self) -> Self:
        self._pool: Executor
        if self.parallel:
            # forkserver: a fork of a process that has threads may hang
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.producer,))
        else:
            self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, batches: Sequence[Sequence[bytes]]) -> Iterator[BatchResult]:
        """The result of each of ``batches``."""
        return iter(self._pool.map(_work, batches)) if self.parallel else self._overlapped(batches)

    def _overlapped(self, batches: Sequence[Sequence[bytes]]) -> Iterator[BatchResult]:
        running: BatchResult | None = None  # on the device, or on its way back from it
        rest = iter(batches)
        coming = deque(self._pool.submit(_process, self.producer, batch) for batch in islice(rest, self.threads))
        while coming:
            processed = coming.popleft().result()
            coming.extend(self._pool.submit(_process, self.producer, batch) for batch in islice(rest, 1))
            started = _start(self.producer, processed)
            if running is not None:
                yield _finish(running)
            running = started
        if running is not None:
            yield _finish(running)


_worker: Producer


def _start_worker(producer: Producer) -> None:
    global _worker  # noqa: PLW0603 - a pool can hand state to its workers in no other way
    import torch

    start_logging()
    torch.set_num_threads(1)
    producer.load("cpu")
    _worker = producer


def _work(items: Sequence[bytes]) -> BatchResult:
    return run_batch(_worker, items)
