"""Ctrl-C ends a command, whatever the command is doing; real signals to processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cache_tools.interrupt import PARENT, Interruptible

START = """
import os, signal, subprocess, sys, threading, time, weakref
from cache_tools.interrupt import Interruptible

class Thing:
    pass

with Interruptible("interrupted: in words") as command:
    print("ready", flush=True)
"""

SWALLOWED = """
    while True:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: time.sleep(0.2))
        del thing  # an exception in the callback is printed and dropped
"""
CAUGHT = """
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("caught", flush=True)
"""
IN_A_SYSTEM_CALL = """
    threading.Event().wait()
"""
A_THREAD_GOES_ON = """
    threading.Thread(target=time.sleep, args=(60,)).start()
    time.sleep(60)
"""
ASKING = """
    command.asking = True
    for step in range(1000):
        command.check()
        for part in range(2):
            print(step, part, flush=True)
            time.sleep(0.1)
"""
LONG_STEP = """
    command.asking = True
    try:
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
"""


class Command:
    """A command in a process of its own, that is ready."""

    def __init__(self, body: str):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", START + body], **options)
        assert self.process.stdout.readline() == "ready\n"
        time.sleep(0.3)

    def press(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[float, str, str]:
        """The seconds until it ended, what it printed, and its errors."""
        started = time.monotonic()
        out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == 130, err
        assert err.count("interrupted: in words\n") == 1
        return time.monotonic() - started, out, err


@pytest.mark.parametrize("body", [SWALLOWED, CAUGHT, IN_A_SYSTEM_CALL, A_THREAD_GOES_ON, LONG_STEP])
def test_one_ctrl_c_ends_a_command_within_seconds(body):
    command = Command(body)
    command.press()
    seconds, out, err = command.end()
    assert seconds < 8  # 1.5 or 3 on a quiet machine
    assert "Traceback" not in err or body == SWALLOWED
    assert ("cleaned up" in out) == (body == LONG_STEP)


def test_a_second_ctrl_c_ends_it_at_once():
    command = Command(CAUGHT)
    command.press()
    assert command.process.stdout.readline() == "caught\n"
    command.press()
    assert command.end()[0] < 1.4


def test_a_loop_that_asks_is_interrupted_between_its_steps():
    for delay in (0.05, 0.13, 0.28):
        command = Command(ASKING)
        time.sleep(delay)
        command.press()
        _, out, err = command.end()
        assert out.splitlines()[-1].endswith(" 1"), "the second half of a step"
        assert "Traceback" not in err


def test_a_command_ends_when_the_one_that_started_it_is_killed(tmp_path):
    (tmp_path / "child.py").write_text(START.replace("print", "print(os.getpid());print") + "    time.sleep(60)\n")
    command = Command(f"""
    subprocess.Popen([sys.executable, {str(tmp_path / "child.py")!r}])
    time.sleep(60)
""")
    assert int(command.process.stdout.readline())  # the child runs
    assert command.process.stdout.readline() == "ready\n"
    command.process.kill()
    command.process.communicate(timeout=20)  # the child has the same pipes: it ended, too


def test_a_command_ends_when_the_one_that_started_it_was_killed_meanwhile(monkeypatch):
    ended = subprocess.Popen(["true"])  # the pid stays that of a zombie here, as of a command that nobody waits for
    time.sleep(0.1)
    monkeypatch.setenv(PARENT, str(ended.pid))
    assert subprocess.run([sys.executable, "-c", f"{START}    time.sleep(60)"], check=False, timeout=20).returncode == 130
    ended.wait()


def test_afterwards_all_is_as_it_was():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGURG), os.environ.get(PARENT)
    with pytest.raises(SystemExit, match="130"), Interruptible("in words"):
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="mine"), Interruptible("in words"):
        raise ValueError("mine")
    assert (signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGURG), os.environ.get(PARENT)) == before
    assert Interruptible.current is None
