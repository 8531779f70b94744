"""Make one column by the tasks of a Ray cluster: a shard per task, in processes that keep their producer loaded."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cache_tools.building.claims import Claims
from cache_tools.building.column import Build, Settings
from cache_tools.building.launch import Place
from cache_tools.cluster import Cluster
from cache_tools.errors import ConfigError
from cache_tools.format import files, store
from cache_tools.format.shard import file_name
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
        # a process reads the list of all shards itself, once; the meter of rank 1 is not shown
        self._column = (folder.absolute(), replace(corpus, shards=[]), name, producer, settings, Place(1, 2))

    def prepare(self) -> None:
        """Let one task load the producer and open the column: its errors are said before any shard is made."""
        with self._mark() as mark:
            self.cluster.call(_make, _Task(self._column, mark), self._name)

    def make(self, missing: list[int]) -> None:
        """Make a shard per task."""
        rows = masked = size = 0
        with self._meter(missing) as meter, self._mark() as mark:
            tasks = (_Task(self._column, mark, number) for number in missing)
            for facts in self.cluster.each(_make, tasks, self._name):
                rows, masked = rows + facts["rows"], masked + facts["rows"] - facts["valid"]
                size += facts["bytes"]
                meter.at(rows, size)
        self._say_made(rows, masked, meter)

    @contextmanager
    def _mark(self) -> Iterator[Path]:
        """A file that a node sees only where it shares the cache's folder with this machine."""
        mark = files.temporary_name(self.folder.absolute() / "shared")
        mark.touch()
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)

    def _name(self, task: "_Task") -> str:
        return self.label if task.number < 0 else f"{self.label}, shard {task.number}"


class _Task(NamedTuple):
    """A shard to make, of the column that these arguments of a build name; without a number, only open the column."""

    column: tuple[Any, ...]
    mark: Path
    number: int = -1


class _NoClaims(Claims):
    """Claims nothing: the claim of a dead node's task would make the task that replaces it skip the shard."""

    def take(self, number: int) -> bool:
        return True

    def release(self, number: int) -> None:
        pass


_current: Build | None = None  # the column of this process, whose producer is loaded


def _make(task: _Task) -> dict[str, Any]:
    """The facts of the shard that was made."""
    global _current  # noqa: PLW0603 - Ray gives one process task after task
    if not task.mark.exists():
        raise ConfigError(
            f"{socket.gethostname()} has another {task.mark.parent} than the machine of the command, or none: the nodes "
            "must share the folder of the cache"
        )
    build = Build(*task.column)
    if _current is None or _current.path != build.path:
        _current = None  # before the next producer needs its memory
        build.corpus, build.claims = store.read_corpus(build.folder), _NoClaims(build.path)
        build.prepare()
        _current = build
    if task.number < 0:
        return {}
    _current.make([task.number])
    note = (_current.path / file_name(task.number)).with_suffix(".json")
    return store.read_note(note) or {"rows": 0, "valid": 0, "bytes": 0}  # another command finished the column just now
