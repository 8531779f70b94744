"""How far a build is: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


EVERY = 30.0  # seconds between plain lines


class Meter:
    """Rows done, rows and bytes a second, time left; of all writers of a column together.

    Args:
        label: what is being made.
        total: rows to make.
        shown: off for all writers but one.
    """

    def __init__(self, label: str, total: int, shown: bool = True):
        self.label, self.total, self.shown = label, total, shown
        self.rows, self.bytes = 0, 0
        self._start = self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and shown),
        )
        self._plain = shown and not console.is_terminal
        self._task = self._bar.add_task(label, total=total, speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def at(self, rows: int, size: int) -> None:
        """``rows`` are done so far, and this writer has made ``size`` bytes of them."""
        self.rows, self.bytes = min(rows, self.total), size
        self._bar.update(self._task, completed=self.rows, speed=self.speed)
        now = time.monotonic()
        if self._plain and now - self._said >= EVERY:
            self._said = now
            left = (self.total - self.rows) * (now - self._start) / max(1, self.rows)
            log.info("%s: %d of %d rows, %s, about %d s left", self.label, self.rows, self.total, self.speed, left)

    @property
    def speed(self) -> str:
        """Rows and bytes a second since the start, for people."""
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self.rows / seconds:,.0f} rows/s {decimal(int(self.bytes / seconds))}/s"
