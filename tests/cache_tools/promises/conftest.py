"""What the tests of the promises get as fixtures, and where they import their helpers from."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `import helpers` and `import children`, here and in what `multiprocessing` starts


class Nursery:
    """Starts processes that have everything imported, in milliseconds."""

    def __init__(self, folder: Path):
        command = [sys.executable, str(HERE / "children.py"), str(folder)]
        self.log = open(folder / "log", "w")  # noqa: SIM115 - until close
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=HERE.parents[2]
        )
        assert self.server.stdout.readline() == "ready\n", (folder / "log").read_text()

    def _ask(self, *words) -> int:
        self.server.stdin.write(json.dumps(words, default=str) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, function: str, *arguments) -> int:
        return self._ask(function, *arguments)

    def wait(self, process: int) -> int:
        return self._ask("wait", process)

    def run(self, function: str, *arguments) -> None:
        assert self.wait(self.start(function, *arguments)) == 0, Path(self.log.name).read_text()[-2000:]

    def kill(self, process: int) -> int:
        """The exit code, -9 unless it had ended before."""
        os.kill(process, signal.SIGKILL)  # a process that nobody waited for yet keeps its number
        return self.wait(process)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        self.log.close()


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A corpus folder of one's own to damage."""
    return Path(shutil.copytree(cache / "mol", tmp_path / "cache" / "mol"))
