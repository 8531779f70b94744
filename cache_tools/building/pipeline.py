"""Run a producer over batches of raw items: the next batch is prepared while the producer works on this one."""

import fcntl
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count, islice, takewhile
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, NamedTuple, Self

from cache_tools.console import start_logging
from cache_tools.errors import BadItem, QuorumError, TeacherError
from cache_tools.machine import cores, flush_denormals
from cache_tools.producer import Producer, as_json, class_path

AHEAD = 256  # results that wait for an earlier one, at most: a build that is killed loses them


@dataclass(frozen=True)
class BatchResult:
    """The result of one batch: values of the good positions, and why the others are bad."""

    good: list[int]
    values: Any  # (good, dim) of a teacher; a list of field -> array of a featuriser
    bad: dict[int, str]


class Ready(NamedTuple):
    """An item that is processed already: a row of the column that the producer reads."""

    value: Any


Item = bytes | Ready

Work = Callable[[Producer, Sequence[Item]], BatchResult]


def run_batch(producer: Producer, items: Sequence[Item]) -> BatchResult:
    """Prepare ``items`` and run ``producer`` on those that can be used."""
    return _finish(_start(producer, _process(producer, items)))


def _process(producer: Producer, items: Iterable[Item]) -> BatchResult:
    """Process ``items`` one by one; values are what the producer works on."""
    processed: dict[int, Any] = {}
    bad: dict[int, str] = {}
    for position, item in enumerate(items):
        try:
            processed[position] = item.value if isinstance(item, Ready) else producer.process_item(item)
        except (BadItem, UnicodeDecodeError) as error:
            bad[position] = str(error)
    return BatchResult(list(processed), list(processed.values()), bad)


def _start(producer: Producer, batch: BatchResult) -> BatchResult:
    """Values are a function that waits for them."""
    return replace(batch, values=producer.start_batch(batch.values)) if batch.good else batch


def _finish(batch: BatchResult) -> BatchResult:
    return replace(batch, values=batch.values()) if batch.good else batch


class Pipeline:
    """Runs a loaded producer over batches, in order, as often as it is called; use as a context manager.

    A producer whose time goes into Python gets worker processes. They do all of its work, or process the items only, when
    its batches run on a GPU. Any other runs here while threads process the next items: one thread for a teacher on the CPU,
    which needs the cores itself, and as many as ``workers`` beside a GPU (decoding images does not hold Python's lock).

    They start with the first call. An error or an interrupt ends the processes at once, and the threads after the items
    that they are at.

    Args:
        producer: what to run.
        workers: processes or threads; 0 takes one per core.
        device: what the producer was loaded on, unless :meth:`load` does that.
    """

    def __init__(self, producer: Producer, workers: int, device: str = "cpu"):
        import torch

        self.producer, self.device = producer, device
        self.workers = workers or cores()
        self.parallel = producer.python_bound and self.workers > 1
        self.threads = self.workers if torch.cuda.is_available() else 1
        self._pool: _Processes | ThreadPoolExecutor | None = None
        self._loaded = self._stopped = False

    def load(self, device: str) -> None:
        """Load the producer on ``device``, the first time."""
        if not self._loaded:
            self.producer.load(device)
            self.device, self._loaded = device, True

    @property
    def beside(self) -> bool:
        """Whether batches run here, beside the processes."""
        return self.producer.on_device and self.device != "cpu"

    def batch(self, most: int) -> int:
        """Items to give it at a time, of at most ``most``.

        Fewer for processes: all but one of them wait for the last batch, and graphs of a small one stay in a core's cache.
        """
        return most if self.beside or not self.producer.python_bound else max(1, most // 8)

    def __enter__(self) -> Self:
        self._stopped = False
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped = kind is not None
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=self._stopped)
            self._pool = None

    def __call__(self, batches: Iterable[Sequence[Item]]) -> Iterator[BatchResult]:
        """The result of each of ``batches``, which are taken only a little ahead; without one nothing starts."""
        rest = iter(batches)
        batches = chain(first := [*islice(rest, 1)], rest)
        if not first:
            return iter(())
        if self._pool is None and self.parallel:
            self._pool = _Processes(self.producer, self.workers, _process if self.beside else run_batch)
        elif self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        if not isinstance(self._pool, _Processes):
            return self._overlapped(self._processed(batches, self._pool))
        results = self._pool.run(batches)
        return self._overlapped(results) if self.beside else results

    def _processed(self, batches: Iterable[Sequence[Item]], pool: ThreadPoolExecutor) -> Iterator[BatchResult]:
        """Each batch as :func:`_process` gives it; threads process the next ones."""

        def process(batch: Sequence[Item]) -> BatchResult:
            return _process(self.producer, takewhile(lambda _: not self._stopped, batch))

        rest = iter(batches)
        coming = deque(pool.submit(process, batch) for batch in islice(rest, self.threads))
        while coming:
            processed = coming.popleft().result()
            coming.extend(pool.submit(process, batch) for batch in islice(rest, 1))
            yield processed

    def _overlapped(self, processed: Iterator[BatchResult]) -> Iterator[BatchResult]:
        """Start each batch before the one before it is waited for: what a GPU made is on its way back meanwhile."""
        running: BatchResult | None = None
        for batch in processed:
            started = _start(self.producer, batch)
            if running is not None:
                yield _finish(running)
            running = started
        if running is not None:
            yield _finish(running)


class _Processes:
    """Worker processes, each of which runs the producer on one batch at a time; they never outlive this process.

    Args:
        producer: what they run; each loads its own.
        number: of processes.
        work: what they do with a batch: :func:`run_batch` or :func:`_process`.
    """

    def __init__(self, producer: Producer, number: int, work: Work):
        self.producer = producer
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        context = multiprocessing.get_context("forkserver")  # a fork of a process that has threads may hang
        context.set_forkserver_preload(["torch"])  # imported once, not by each process for each column
        self._lifelines: list[Connection] = []
        before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        resource_tracker.ensure_running()  # it unblocks signals when it starts, in this thread too
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: this process handles a Ctrl-C
        try:
            for _ in range(number):
                (ours, theirs), (watched, lifeline) = context.Pipe(), context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(producer, work, theirs, watched), daemon=True)
                with _safe_path(), _without_script(producer):
                    process.start()
                self._processes[ours] = process
                self._lifelines.append(lifeline)
                theirs.close()  # here: the end of that process ends the connection
                watched.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self, batches: Iterable[Sequence[Item]]) -> Iterator[BatchResult]:
        """The result of each of ``batches``, in their order; a process gets the next batch when it gave back the last.

        Raises:
            TeacherError: when a process ended without a result.
            QuorumError: what the producer raised.
        """
        waiting, done = iter(enumerate(batches)), dict[int, BatchResult]()
        running: dict[Connection, int] = {}  # -> the number of its batch

        def give(connection: Connection) -> None:
            for number, batch in islice(waiting, 1):
                with suppress(ConnectionError):  # it ended; _receive says so
                    connection.send(batch)
                running[connection] = number

        idle = list(self._processes)
        for wanted in count():
            while True:
                while idle and len(done) < AHEAD:
                    give(idle.pop(0))
                if wanted in done or not running:
                    break
                ready = set(wait(list(running)))
                for connection in [connection for connection in running if connection in ready]:
                    done[running.pop(connection)] = self._receive(connection)
                    idle.append(connection)
            if wanted not in done:
                return
            yield done.pop(wanted)

    def _receive(self, connection: Connection) -> BatchResult:
        try:
            result = connection.recv()
        except (EOFError, ConnectionError):
            process = self._processes[connection]
            process.join()
            raise TeacherError(
                f"a worker process of {class_path(self.producer)} ended with {process.exitcode} (-9: killed, for instance "
                "by a lack of memory); what it said is above; one process needs least: --settings.workers 1"
            ) from None
        if isinstance(result, QuorumError):
            raise result
        assert isinstance(result, BatchResult)
        return result

    def shutdown(self, cancel_futures: bool) -> None:
        """End the processes, those that still work on a batch too."""
        for connection, process in self._processes.items():
            connection.close()
            process.kill()
        for lifeline in self._lifelines:
            lifeline.close()
        for process in self._processes.values():
            process.join()


@contextmanager
def _safe_path() -> Iterator[None]:
    """A context in which a fork server that starts finds its modules, torch too, never in the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _without_script(producer: Producer) -> Iterator[None]:
    """A context in which a process that starts runs the user's script again only if the producer's class is in it."""
    script = sys.modules["__main__"]
    if "__main__." not in str(as_json({"producer": producer})):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _work(producer: Producer, work: Work, connection: Connection, lifeline: Connection) -> None:
    """Run batch after batch, until the main process closes the connection or ends, however it ends.

    The kernel ends this process when the other end of ``lifeline`` closes, also inside of a call that holds Python's lock.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)  # SIGIO, which ends a process
    if lifeline.poll():  # closed before
        return
    import torch

    start_logging()
    torch.set_num_threads(1)
    flush_denormals()
    loaded = False
    with suppress(EOFError, ConnectionError):  # as the main process ends
        while True:
            batch = connection.recv()
            try:
                if not loaded:
                    producer.load("cpu")
                    loaded = True
                result: BatchResult | QuorumError = work(producer, batch)
            except QuorumError as error:
                result = error
            connection.send(result)
