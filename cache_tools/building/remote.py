"""Make one column by the tasks of a Ray cluster: a shard per task, in processes that keep their producer loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cache_tools.building.claims import Claims
from cache_tools.building.column import Build, Settings
from cache_tools.building.launch import Place
from cache_tools.cluster import Cluster
from cache_tools.format import store
from cache_tools.format.store import CorpusManifest
from cache_tools.producer import Producer


class RemoteBuild(Build):
    """A build whose producer runs in the tasks of a cluster, whose nodes share the cache's folder.

    Args:
        folder: as for :class:`cache_tools.building.column.Build`, with all that follows.
        cluster: the connection.
    """

    def __init__(
        self, folder: Path, corpus: CorpusManifest, name: str, producer: Producer, settings: Settings, cluster: Cluster
    ):
        super().__init__(folder, corpus, name, producer, settings)
        self.cluster = cluster
        settings = replace(settings, workers=cluster.resources.cpus)
        # a task needs no list of all shards; the meter of rank 1 is not shown
        self._column = (folder.absolute(), replace(corpus, shards=[]), name, producer, settings, Place(1, 2))

    def prepare(self) -> None:
        """Let one task load the producer and open the column: its errors are said before any shard is made."""
        self.cluster.call(_make, _Task(self._column), self._name)

    def make(self, missing: list[int]) -> None:
        """Make a shard per task."""
        rows = masked = size = 0
        with self._meter(missing) as meter:
            for number in self.cluster.each(_make, (_Task(self._column, number) for number in missing), self._name):
                facts = store.read_note(self._shard(number).with_suffix(".json")) or {}
                rows, masked = rows + facts["rows"], masked + facts["rows"] - facts["valid"]
                size += self._shard(number).stat().st_size
                meter.at(rows, size)
        self._say_made(rows, masked, meter)

    def _name(self, task: "_Task") -> str:
        return self.label if task.number < 0 else f"{self.label}, shard {task.number}"


class _Task(NamedTuple):
    """A shard to make, of the column that these arguments of a build name; without a number, only open the column."""

    column: tuple[Any, ...]
    number: int = -1


class _NoClaims(Claims):
    """Claims nothing: the claim of a dead node's task would make the task that replaces it skip the shard."""

    def take(self, number: int) -> bool:
        return True

    def release(self, number: int) -> None:
        pass


_current: Build | None = None  # the column of this process, whose producer is loaded


def _make(task: _Task) -> int:
    global _current  # noqa: PLW0603 - Ray gives one process task after task
    build = Build(*task.column)
    if _current is None or _current.path != build.path:
        _current = None  # before the next producer needs its memory
        build.claims = _NoClaims(build.path)
        build.prepare()
        _current = build
    if task.number >= 0:
        _current.make([task.number])
    return task.number
