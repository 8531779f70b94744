"""From raw items to embeddings, batch by batch: the next batch is prepared while the teacher works on this one."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import numpy as np
import torch

from cache_tools.console import start_logging
from cache_tools.errors import BadItem, TeacherError
from cache_tools.inputs import Featuriser
from cache_tools.producer import Producer, class_path
from cache_tools.teachers.base import Teacher


@dataclass(frozen=True)
class Made:
    """What one batch came to: values of the good positions, and why the others are bad."""

    good: list[int]
    values: Any  # (good, dim) of a teacher; a list of field -> array of a featuriser
    bad: dict[int, str]


@dataclass(frozen=True)
class _Prepared:
    ready: dict[int, Any]  # position -> what the producer works on
    bad: dict[int, str]


def make(producer: Producer, items: Sequence[bytes]) -> Made:
    """Prepare ``items`` and run ``producer`` on those that can be used."""
    return _finish(producer, _start(producer, _prepare(producer, items)))


def _prepare(producer: Producer, items: Sequence[bytes]) -> _Prepared:
    ready: dict[int, Any] = {}
    bad: dict[int, str] = {}
    for position, item in enumerate(items):
        try:
            prepared = producer.prepare(item)
            ready[position] = producer.featurise(prepared) if isinstance(producer, Featuriser) else prepared
        except (BadItem, UnicodeDecodeError) as error:
            bad[position] = str(error)
    return _Prepared(ready, bad)


def _start(producer: Producer, prepared: _Prepared) -> Made:
    """Run the teacher; on a GPU this returns while the device works, its results on the way to the host."""
    values: Any = list(prepared.ready.values())
    if isinstance(producer, Teacher) and values:
        values = producer.embed(values)
        if isinstance(values, torch.Tensor) and values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            values = host, copied
    return Made(list(prepared.ready), values, prepared.bad)


def _finish(producer: Producer, made: Made) -> Made:
    values = made.values
    if isinstance(producer, Teacher) and made.good:
        if isinstance(values, tuple):
            values, copied = values
            copied.synchronize()
        values = values.float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        if values.shape != (len(made.good), producer.dim):
            raise TeacherError(
                f"{class_path(producer)} gave an array of shape {values.shape}, expected {(len(made.good), producer.dim)}"
            )
    return Made(made.good, values, made.bad)


class Pipeline:
    """Runs a loaded producer over batches, in order; use as a context manager.

    A producer whose time goes into Python gets worker processes. Any other runs here while threads prepare the next
    batches: one for a teacher on the CPU, which needs the cores itself, and as many as ``workers`` beside a GPU (decoding
    images does not hold Python's lock).

    Args:
        producer: what to run.
        workers: processes or threads; 0 takes one per core.
    """

    def __init__(self, producer: Producer, workers: int):
        self.producer = producer
        self.workers = workers or os.cpu_count() or 1
        self.parallel = producer.python_bound and self.workers > 1
        self.threads = self.workers if torch.cuda.is_available() else 1
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.parallel:
            # forkserver: a fork of a process that has threads may hang
            context = multiprocessing.get_context("forkserver")
            pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.producer,))
            self._pool = self._stack.enter_context(pool)
        else:
            self._ahead = self._stack.enter_context(ThreadPoolExecutor(self.threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, batches: Sequence[Sequence[bytes]]) -> Iterator[Made]:
        """What each of ``batches`` comes to."""
        return iter(self._pool.map(_work, batches)) if self.parallel else self._overlapped(batches)

    def _overlapped(self, batches: Sequence[Sequence[bytes]]) -> Iterator[Made]:
        running: Made | None = None  # on the device, or on its way back from it
        rest = iter(batches)
        coming = deque(self._ahead.submit(_prepare, self.producer, batch) for batch in islice(rest, self.threads))
        while coming:
            prepared = coming.popleft().result()
            coming.extend(self._ahead.submit(_prepare, self.producer, batch) for batch in islice(rest, 1))
            started = _start(self.producer, prepared)
            if running is not None:
                yield _finish(self.producer, running)
            running = started
        if running is not None:
            yield _finish(self.producer, running)


_worker: Producer


def _start_worker(producer: Producer) -> None:
    global _worker  # noqa: PLW0603 - a pool can hand state to its workers in no other way
    start_logging()
    torch.set_num_threads(1)
    producer.load("cpu")
    _worker = producer


def _work(items: Sequence[bytes]) -> Made:
    return make(_worker, items)
