"""What the tests of the promises share."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Corpus, Items
from cache_tools.errors import BadItem
from cache_tools.format import store
from cache_tools.format.verify import column_faults, corpus_faults
from cache_tools.teachers.base import Teacher

ROOT = Path(__file__).parents[3]
QUIET = Settings(workers=1)


class Pairs(Corpus):
    """Ids and raw items as given."""

    source = "test"

    def __init__(self, given: dict[str, bytes], modality: str = "text"):
        self.given, self.modality = given, modality

    def pairs(self):
        yield from self.given.items()


class Given(Teacher):
    """Embeds item "n" as row n of ``values``; a row that is not ``usable`` is a bad item."""

    modality = "text"

    def __init__(self, dim: int = 1):
        self.dim = dim
        self.calls = 0

    def knows(self, values, usable=None):
        self.values, self.usable = values, np.ones(len(values), bool) if usable is None else usable
        return self

    def prepare(self, item):
        if not self.usable[int(item)]:
            raise BadItem("not usable")
        return int(item)

    def embed(self, items):
        self.calls += 1
        return self.values[items]


class GivenBits(Given):
    binary = True


def numbers(count: int) -> Items:
    return Items([str(number) for number in range(count)], "text")


def faults(folder: Path) -> list[str]:
    fingerprint = store.read_corpus(folder).fingerprint
    columns = [fault for path in store.list_columns(folder) for fault in column_faults(path, fingerprint)]
    return corpus_faults(folder) + columns


def litter(folder: Path) -> list[str]:
    """Temporary files, claims and notes."""
    kept = re.compile(r"[0-9]{5}\.h5|manifest\.json|corpus\.json|skipped\.csv")
    return [path.name for path in folder.rglob("*") if path.is_file() and not kept.fullmatch(path.name)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.h5")}


@contextlib.contextmanager
def edited(path: Path) -> Iterator[dict]:
    """The content of a JSON file, to change it."""
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def plain_column(tmp_path: Path, dtype: str = "float16") -> Path:
    how = Settings(workers=1, dtype=dtype)
    teacher = Given(3).knows(np.arange(12.0).reshape(4, 3))
    return build(tmp_path, "c", numbers(4), {"a": teacher}, {}, how) / "teachers" / "a"


def command_line(*arguments, before: str = "") -> subprocess.CompletedProcess:
    """The real `distill-cache`; ``before`` is run first."""
    start = ["-c", f"{before}; from cache_tools.cli import main; main()"] if before else ["-m", "cache_tools.cli"]
    return subprocess.run([sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, check=False)
