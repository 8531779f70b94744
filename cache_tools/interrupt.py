"""How a command ends early: on a Ctrl-C within seconds, and with the process that started it.

Python raises a KeyboardInterrupt in whatever line is running, and that loses some: it is dropped in a weak reference's
callback; it leaves a library's queue half changed, and the end of the command then waits for that queue for ever; and RDKit
puts its own handler in the place of Python's while it matches a substructure. So here one thread alone takes the signal. It
interrupts the command and, where that does not help, ends the process. Nothing on disk is lost: files are published whole.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Self

from cache_tools.machine import running

INTERRUPTED = 130  # the status of a command that Ctrl-C stopped
GRACE = 1.5  # seconds that a command has to end itself
PARENT = "QUORUM_PARENT"  # the environment variable with the process number of the command that started this one


class Interruptible:
    """A command that Ctrl-C ends, in three steps; a further Ctrl-C, or 1.5 s, takes the next step.

    A loop that asks between its steps (:meth:`check`) is interrupted there. Then, or without such a loop, a
    KeyboardInterrupt is raised in the main thread. At last the process ends at once.

    A command that another one of ours started (a writer, a rank, a run of a study) ends when that one was killed.

    Use as a context manager, in the main thread, before other threads are started: they inherit that they do not get the
    signal, as do processes.

    Args:
        words: what is said when it was interrupted.

    Attributes:
        asking: whether a loop asks between its steps.
        current: the command of this process; None outside of a command.
    """

    current: "Interruptible | None" = None

    def __init__(self, words: str):
        self.asking = False
        self._words = f"{words}\n"
        self._step = 0
        self._over = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        Interruptible.current = self
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # this signal wakes the main thread out of a system call; nobody else sends it
        self._handler = signal.signal(signal.SIGURG, self._interrupt)
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()
        self._default = signal.signal(signal.SIGINT, self._forward)
        starter = int(os.environ.get(PARENT, "0"))
        # a process between the two may end when it likes; and the starter may have been killed while this one started
        if starter == os.getppid() or (starter and not running(starter)):
            threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
        os.environ[PARENT] = str(os.getpid())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not self._step:
            self._stop()
        # an error that follows an interrupt comes of it, for instance of another rank that it ended
        if kind is not None and (self._step or issubclass(kind, KeyboardInterrupt)):
            words, self._words = self._words, ""  # said once, also when threads keep this process from its end
            sys.stderr.write(words)
            sys.exit(INTERRUPTED)

    def check(self) -> None:
        """Raise the interrupt that waits, if there is one.

        Raises:
            KeyboardInterrupt: after a Ctrl-C.
        """
        if self._step == 1:
            self._advance(1, silently=True)
            raise KeyboardInterrupt

    def _stop(self) -> None:
        with self._lock:
            self._over = True
        signal.pthread_kill(self._thread.ident or 0, signal.SIGINT)
        self._thread.join()
        signal.signal(signal.SIGURG, self._handler)
        signal.signal(signal.SIGINT, self._default)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        del os.environ[PARENT]
        Interruptible.current = None

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            if self._over:
                return
            self._advance(self._step)

    def _advance(self, step: int, silently: bool = False) -> None:
        """Take the step after ``step``, unless it was taken or the command is over."""
        with self._lock:
            if self._over or self._step != step:
                return
            self._step = 1 if step == 0 and self.asking else max(2, step + 1)
        if self._step == 3:
            cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
            os.write(2, f"{cursor}{self._words}".encode())
            os._exit(INTERRUPTED)
        if self._step == 2 and not silently:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
        timer = threading.Timer(GRACE, self._advance, (self._step,))
        timer.daemon = True
        timer.start()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Give the waiting thread what another one got: multiprocessing unblocks the signal when it starts its tracker."""
        signal.pthread_kill(self._thread.ident or 0, signal.SIGINT)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt


class InterruptibleCall(Interruptible):
    """A call in a notebook or another program of a user: a Ctrl-C raises a KeyboardInterrupt, and the program goes on.

    In a loop that asks between its steps, the first Ctrl-C waits for the end of the step. Use in the main thread.
    """

    def __init__(self) -> None:
        super().__init__("")

    def __enter__(self) -> Self:
        Interruptible.current = self
        self._default = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._default)
        Interruptible.current = None

    def check(self) -> None:
        if self._step:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._step += 1
        if self._step > 1 or not self.asking:
            raise KeyboardInterrupt


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, also one that ended while this process started."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(INTERRUPTED)
