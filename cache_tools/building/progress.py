"""Show the progress of a build: a bar on a terminal, otherwise a plain line every half minute."""

import logging
import time

from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache_tools.console import MESSAGES, shows_bars

log = logging.getLogger(__name__)

EVERY = 30.0  # seconds between plain lines


class Meter(Progress):
    """Rows done, rows and bytes a second, time left; of all writers of a column together. Use as a context manager.

    The bar is one for all columns of a build; time left is as long as this column's speed makes it.

    Args:
        label: what is being made.
        total: rows to make.
        shown: off for all writers but one.
        before: rows of earlier columns, which the bar counts as done.
        after: rows of later columns, which it counts as well.
    """

    def __init__(self, label: str, total: int, shown: bool = True, before: int = 0, after: int = 0):
        self.label, self.total, self.before = label, total, before
        self.rows, self.bytes = 0, 0
        self._start = self._last_line = time.monotonic()
        self._plain = shown and not MESSAGES.is_terminal
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        times = TimeElapsedColumn(), TimeRemainingColumn()
        super().__init__(*columns, *times, console=MESSAGES, transient=True, disable=not (shows_bars(MESSAGES) and shown))
        self._task = self.add_task(label, total=before + total + after, completed=before, speed="")

    def at(self, rows: int, size: int) -> None:
        """Show that ``rows`` are done so far, and that this writer has made ``size`` bytes."""
        self.rows, self.bytes = min(rows, self.total), size
        self.update(self._task, completed=self.before + self.rows, speed=self.speed)
        now = time.monotonic()
        if self._plain and now - self._last_line >= EVERY:
            self._last_line = now
            left = (self.total - self.rows) * (now - self._start) / max(1, self.rows)
            log.info("%s: %d of %d rows, %s, about %d s left", self.label, self.rows, self.total, self.speed, left)

    @property
    def speed(self) -> str:
        """Rows and bytes a second since the start, for people."""
        seconds = max(1e-9, time.monotonic() - self._start)
        return f"{self.rows / seconds:,.0f} rows/s {decimal(int(self.bytes / seconds))}/s"
