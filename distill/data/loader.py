"""The DataLoader of aligned batches, which reads ahead and can resume inside an epoch."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from cache_tools import INTERRUPTED
from distill.data.batch import Batch, join
from distill.data.columns import CorpusColumns
from distill.data.order import BatchOrder, Step


class AlignedRows(Dataset[Batch]):
    """Batches of the rows of several corpora.

    Args:
        corpora: their columns.
        dims: teacher -> its width, over all corpora.
    """

    def __init__(self, corpora: Sequence[CorpusColumns], dims: Mapping[str, int]):
        self.corpora, self.dims = list(corpora), dict(dims)
        self._windows: tuple[int, ...] = ()

    def __getitems__(self, step: Step) -> Batch:
        for corpus, window, previous in zip(self.corpora, step.windows, self._windows, strict=False):
            if window != previous:
                corpus.columns.release()
        self._windows = step.windows
        for corpus, runs in zip(self.corpora, step.ahead, strict=False):
            for first, count in runs:
                corpus.columns.read_ahead(first, count)
        numbered = enumerate(zip(self.corpora, step.rows, strict=True))
        batches = [corpus.read(rows, number) for number, (corpus, rows) in numbered if len(rows)]
        if len(batches) == 1 and batches[0].targets.keys() == self.dims.keys():
            return batches[0]
        return join(batches, self.dims)


def as_is(batch: Any) -> Any:
    """The collate function of :class:`AlignedRows`, which makes whole batches itself."""
    return batch


def end_with_parent(_: int) -> None:
    """End this process when the one that it reads for was killed, even while this one started: torch looks later."""
    parent = multiprocessing.parent_process()
    assert parent, "a process that a loader started"

    def watch() -> None:
        parent.join()
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


class AheadLoader(DataLoader[Batch]):
    """A DataLoader that gathers the next two batches in a thread while a GPU works on this one.

    Gathering is copying, which does not hold Python's lock; a worker process would add a pipe and one more copy. Without a
    GPU the training thread gathers: two teams of threads on the same cores would wait for each other.

    A killed epoch resumes after the last batch that the optimiser stepped on, as Lightning's progress counts them.
    """

    progress: Callable[[], tuple[int, int]] | None = None  # the epoch to read, and how many of its batches are done

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning takes a loader with this method for one that can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing; see :meth:`state_dict`."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        order, dataset = cast(BatchOrder, self.batch_sampler), cast(AlignedRows, self.dataset)
        if self.progress:  # Lightning's own set_epoch is one too high after some restarts
            order.epoch, order.start = self.progress()
        if self.num_workers:
            yield from super().__iter__()
            return
        batches = (dataset.__getitems__(step) for step in order)
        if not self.pin_memory:
            yield from batches
            return
        with ThreadPoolExecutor(1) as thread:
            pinned = map(pin_memory, batches)
            coming = deque(thread.submit(next, pinned, None) for _ in range(2))
            while (batch := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, pinned, None))
                yield batch
