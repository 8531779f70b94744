"""Let many writers share one column: a file per shard names its writer, and the shards of a dead writer are taken over.

Claims only save work. :func:`cache_tools.format.shard.write_shard` ensures that a shard is whole and that one writer wins.
"""

import os
import socket
import threading
from pathlib import Path
from typing import Self

from cache_tools.format.shard import running

BEAT = 30.0  # seconds between signs of life
UNSIGNED = 2.0  # seconds that a living writer has to write its name into a new claim
STALE = 300.0  # seconds without a sign of life after which a writer of another machine counts as dead


class Claims:
    """The claims of one writer in a column's folder; as a context manager, it gives signs of life until it ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.me = f"{socket.gethostname()} {os.getpid()}"
        self._held: set[int] = set()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()
        for number in list(self._held):
            self.release(number)

    def take(self, number: int) -> bool:
        """Claim shard ``number``; False when a living writer has it."""
        path = self._path(number)
        try:
            with open(path, "x") as file:
                file.write(self.me)
        except FileExistsError:
            if not self._dead(path, number):
                return False
            mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
            mine.write_text(self.me)
            os.replace(mine, path)
        self._held.add(number)
        return True

    def release(self, number: int) -> None:
        self._held.discard(number)
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f".{number:05d}.claim"

    def _dead(self, path: Path, number: int) -> bool:
        try:
            host, _, process = path.read_text().partition(" ")
            silent = self._now() - path.stat().st_mtime
        except FileNotFoundError:  # released just now: the next pass looks at the shard again
            return False
        limit = STALE if host else UNSIGNED
        if host == socket.gethostname() and process.isdecimal():
            # this process's number on a claim that it does not hold: a restarted container reuses numbers
            mine = int(process) == os.getpid() and number not in self._held
            # another program may have this number by now: it gives no sign of life
            return mine or not running(int(process)) or silent > limit
        return silent > limit

    def _now(self) -> float:
        """The file system's clock: those of two machines may differ."""
        probe = self.folder / f".clock.{socket.gethostname()}.{os.getpid()}.tmp"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            for number in list(self._held):
                try:
                    os.utime(self._path(number))
                except FileNotFoundError:
                    continue
