"""Let many writers share one column: a file per shard names its writer, and the shards of a dead writer are taken over.

Claims only save work. :func:`cache_tools.format.shard.write_shard` ensures that a shard is whole and that one writer wins.
"""

import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from cache_tools.format.files import read_file, system_errors_in_words
from cache_tools.machine import running

BEAT = 30.0  # seconds between signs of life
UNSIGNED = 2.0  # seconds that a living writer has to write its name into a new claim
STALE = 300.0  # seconds without a sign of life after which a writer of another machine counts as dead


class Claims:
    """The claims of one writer in a column's folder; as a context manager, it gives signs of life until it ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.me = f"{socket.gethostname()} {os.getpid()}"
        self._held: set[int] = set()
        self._others: dict[int, str] = {}
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._others.clear()
        self._over.clear()
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
        with system_errors_in_words(path):
            try:
                with open(path, "x") as file:
                    file.write(self.me)
            except FileExistsError:
                if not self._dead(path, number):
                    return False
                mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
                mine.write_text(self.me)
                os.replace(mine, path)
        self._others.pop(number, None)
        self._held.add(number)
        return True

    def waiting(self) -> str:
        """Which shards of the last pass other writers hold, and which writers."""
        held = "; ".join(f"shard {number} of {holder}" for number, holder in list(self._others.items())[:3])
        more = f"; and {len(self._others) - 3} more" if len(self._others) > 3 else ""
        return f"waiting for {held or 'another writer'}{more}. After {STALE:.0f} s without one it is replaced"

    def release(self, number: int) -> None:
        self._held.discard(number)
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f".{number:05d}.claim"

    def _dead(self, path: Path, number: int) -> bool:
        signed = re.fullmatch(rb"(\S+) ([0-9]{1,10})", read_file(path) or b"")
        try:
            # a claim ahead of the clock shows no life either: when a clock was set back, a living writer signs anew
            silent = abs(self._now() - path.stat().st_mtime)
        except FileNotFoundError:  # released just now: the next pass looks at the shard again
            return False
        host, process = (signed[1].decode(errors="replace"), int(signed[2])) if signed else ("", 0)
        holder = f"process {process} on {host}" if signed else "a writer that did not sign its claim"
        self._others[number] = f"{holder}, whose last sign of life is {silent:.0f} s old"
        limit = STALE if signed else UNSIGNED
        if host == socket.gethostname():
            # this process's number on a claim that it does not hold: a restarted container reuses numbers
            mine = process == os.getpid() and number not in self._held
            # another program may have this number by now: it gives no sign of life
            return mine or not running(process) or silent > limit
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
                with suppress(OSError):  # the claim is gone, or its disk has trouble, which the next shard will meet
                    os.utime(self._path(number))
