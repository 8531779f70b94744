"""A bounded local folder for the shards of a corpus in an object store: fetched when they are read, or shortly before."""

import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cache_tools.errors import CacheError
from cache_tools.format.files import (
    file_size,
    read_file,
    removed_afterwards,
    require_space,
    sha256,
    temporary_name,
)
from cache_tools.format.remote import Remote

NOTE = ".remote.json"  # in a mirror's folder: where the corpus is, and how much may be here
ROOM = ".room"  # in the name of a file that is as long as a shard which is being fetched
FETCHERS = 8  # shards that one process fetches ahead at once

Facts = Mapping[str, Any]  # of a shard: its entry in the manifest


@contextmanager
def locked(path: Path, flags: int = 0) -> Iterator[None]:
    """Hold a lock among all threads and processes of this machine; a process that dies gives it back."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | flags)
        yield


@dataclass
class Mirror:
    """What a local folder holds of a corpus in an object store.

    Args:
        folder: of the mirror; mirrors beside it share the limit.
        remote: the corpus.
        limit: bytes that shards may take; as many as the disk has when None.

    Attributes:
        kept: shards that are never removed.
        asked: when each shard was asked for ahead: its file's time, whenever it was fetched.
    """

    folder: Path
    remote: Remote
    limit: int | None
    kept: set[Path] = field(default_factory=set)
    asked: dict[Path, float] = field(default_factory=dict)

    @contextmanager
    def held(self, path: Path, facts: Facts) -> Iterator[None]:
        """Fetch a shard unless it is here; nobody removes it while this context lasts, so that it can be mapped.

        Raises:
            CacheError: when it cannot be fetched, or its bytes are not those of the manifest.
        """
        with locked(_lock_of(path)):
            if file_size(path) != facts["bytes"]:
                room = temporary_name(path.with_suffix(ROOM))
                with removed_afterwards(room):
                    self._make_room(room, facts["bytes"])
                    self._fetch(path, facts, room)
            yield

    def ahead(self, path: Path, facts: Facts, keep: bool) -> None:
        """Let a thread fetch a shard; those that were asked for longest ago and need not be kept are removed first."""
        if keep:
            self.kept.add(path)
        self.asked[path] = time.time()
        with suppress(FileNotFoundError):
            os.utime(path, (self.asked[path],) * 2)
        _queue(os.getpid()).put((self, path, facts))

    def _fetch(self, path: Path, facts: Facts, room: Path) -> None:
        name, temporary = path.relative_to(self.folder).as_posix(), temporary_name(path)
        with removed_afterwards(temporary):
            require_space(self.folder, facts["bytes"])
            try:
                self.remote.ask(name, lambda fs, there: fs.get_file(there, str(temporary)))
            except FileNotFoundError:
                raise CacheError(f"{self.remote.url}/{name} is missing: push the corpus again") from None
            if sha256(temporary) != facts["sha256"]:
                raise CacheError(
                    f"{self.remote.url}/{name}: bytes changed since it was pushed (SHA-256 differs): delete it there, then "
                    "push the corpus again"
                )
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.utime(temporary, (self.asked.get(path, time.time()),) * 2)
            with locked(self.folder.parent / ".lock"):  # its space never counts twice
                room.unlink()
                temporary.replace(path)

    def _make_room(self, room: Path, size: int) -> None:
        """Remove the shards that were asked for longest ago until ``size`` more bytes fit, and let ``room`` hold them."""
        with locked(self.folder.parent / ".lock"):
            paths = [path for pattern in ("*/items/*", "*/*/*/*") for path in self.folder.parent.glob(pattern)]
            stats = []
            for path in paths:
                if path.suffix == ".h5" or ROOM in path.suffixes:
                    with suppress(FileNotFoundError):  # a fetch that ends just now
                        stats.append((path.stat(), path))
            excess = sum(stat.st_size for stat, _ in stats) + size - (self.limit or math.inf)
            for stat, path in sorted(stats, key=lambda each: each[0].st_mtime_ns):
                if excess > 0 and path.suffix == ".h5" and path not in self.kept and _removed(path):
                    excess -= stat.st_size
            with open(room, "wb") as file:
                file.truncate(size)  # without blocks: the disk's space stays free


def mirror_of(folder: Path) -> Mirror | None:
    """The mirror at ``folder``, one object in each process; None where there is none."""
    note = read_file(folder / NOTE)
    return None if note is None else _noted(folder, note)


@lru_cache(64)
def _noted(folder: Path, note: bytes) -> Mirror:
    content = json.loads(note)
    return Mirror(folder, Remote(content["url"], content["options"]), content["limit"])


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _removed(path: Path) -> bool:
    """Remove a shard that nobody is opening; a process that has mapped it keeps its bytes until it unmaps it."""
    with suppress(BlockingIOError), locked(_lock_of(path), fcntl.LOCK_NB):
        path.unlink(missing_ok=True)
        return True
    return False


@lru_cache(1)
def _queue(process: int) -> "SimpleQueue[tuple[Mirror, Path, Facts]]":
    """The shards that ``process``, this one, will need soon, and daemon threads that fetch them."""
    waiting: SimpleQueue[tuple[Mirror, Path, Facts]] = SimpleQueue()
    for _ in range(FETCHERS):
        threading.Thread(target=_fetch_all, args=(waiting,), daemon=True).start()
    return waiting


def _fetch_all(waiting: "SimpleQueue[tuple[Mirror, Path, Facts]]") -> None:
    while True:
        mirror, path, facts = waiting.get()
        with suppress(CacheError, OSError), mirror.held(path, facts):
            pass  # whoever reads the shard meets an error again
