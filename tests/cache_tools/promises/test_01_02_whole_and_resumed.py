"""Promises 1 and 2: a shard that exists is whole, running again continues."""

import random
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUIET, Given, contents, faults, litter, numbers

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.errors import CacheError
from cache_tools.format import files, shard, store

# ------------------------------------------------------------------------------ 1: a shard that exists is whole


def test_promise_01_a_writer_killed_at_any_moment_leaves_only_whole_shards(nursery, tmp_path):
    work = 500, 20  # molecules, rows of a shard
    started = time.monotonic()
    nursery.run("build_molecules", tmp_path / "reference", *work)
    whole_run = time.monotonic() - started
    reference = contents(tmp_path / "reference" / "mol")
    assert len(reference) == 3 * 25, "items, a teacher, an input"
    draw = random.Random(0)
    delays = [whole_run * 0.6 * (step + draw.random()) / 20 for step in range(20)]
    draw.shuffle(delays)
    attempt, killed_at = 0, []
    for delay in delays:
        folder = tmp_path / str(attempt) / "mol"
        writer = nursery.start("build_molecules", folder.parent, *work)
        time.sleep(delay)
        code = nursery.kill(writer)
        found = contents(folder)
        killed_at.append(len(found))
        wrong = [name for name, content in found.items() if content != reference[name]]
        assert not wrong, f"killed after {delay:.3f} s"
        for path in folder.rglob("*.h5"):
            shard.map_shard(path)
        if code == 0 or len(found) == len(reference):
            attempt += 1
    assert sum(0 < count < len(reference) for count in killed_at) >= 10, (
        f"kills that land elsewhere say little: {killed_at}"
    )
    for number in {attempt, max(0, attempt - 1)}:
        nursery.run("build_molecules", tmp_path / str(number), *work)
        folder = tmp_path / str(number) / "mol"
        assert (faults(folder), litter(folder)) == ([], [])
        assert contents(folder) == reference


def test_promise_01_what_a_killed_writer_left_behind_a_finished_column_is_removed(tmp_path):
    folder = build(tmp_path, "c", numbers(4), {"a": Given().knows(np.ones((4, 1)))}, {}, QUIET)
    path = folder / "teachers" / "a"
    dead = subprocess.Popen(["true"])
    dead.wait()
    (path / f".manifest.json.1.{socket.gethostname()}.{dead.pid}.tmp").touch()
    (path / ".00000.claim").write_text(f"{socket.gethostname()} {dead.pid}")
    (path / "00000.json").write_text("{}")
    build(tmp_path, "c", numbers(4), {"a": Given().knows(np.ones((4, 1)))}, {}, QUIET)
    assert litter(folder) == []


def test_promise_01_items_of_a_killed_run_with_another_corpus_or_shard_size_are_not_kept(tmp_path):
    old = build(tmp_path, "c", numbers(10), {}, {}, Settings(workers=1, shard_rows=4))
    (old / store.CORPUS).unlink()  # as if it was killed before the last word
    values = np.arange(10.0)[:, None]
    folder = build(tmp_path, "c", numbers(10), {"a": Given().knows(values)}, {}, Settings(workers=1, shard_rows=6))
    assert open_column(folder / "teachers" / "a").rows(torch.arange(10)).tolist() == values.tolist()
    assert faults(folder) == []


# ----------------------------------------------------------------------------------- 2: running again continues


class Configured(Given):
    """All that a fingerprint can hold."""

    def __init__(self, revision: str = "a", size: int = 224, weights: Path | None = None):
        super().__init__()
        self.weights = weights
        self.knows(np.ones((4, 1)))

    def fingerprint(self):
        return {**super().fingerprint(), "weights": files.sha256(self.weights)}


def test_promise_02_running_again_calls_no_teacher_for_shards_that_are_there(tmp_path):
    sizes = Settings(workers=1, shard_rows=4)
    first = Given().knows(np.ones((22, 1)))
    folder = build(tmp_path, "c", numbers(22), {"a": first}, {}, sizes)
    for number in (1, 4):
        (folder / "teachers" / "a" / f"0000{number}.h5").unlink()
    again, third = Given().knows(np.ones((22, 1))), Given().knows(np.ones((22, 1)))
    build(tmp_path, "c", numbers(22), {"a": again}, {}, sizes)
    build(tmp_path, "c", numbers(22), {"a": third}, {}, sizes)
    assert (first.calls, again.calls, third.calls) == (6, 2, 0)


@pytest.mark.parametrize("field", ["revision", "size", "weights", "dtype", "corpus"])
def test_promise_02_a_change_is_refused_by_the_name_of_its_field(tmp_path, field):
    weights = tmp_path / "weights"
    weights.write_text("old")
    build(tmp_path, "c", numbers(3), {"a": Configured(weights=weights)}, {}, QUIET)
    changed, corpus, how = {"weights": weights}, numbers(3), QUIET
    if field == "weights":
        weights.write_text("new")
    elif field == "dtype":
        how = Settings(workers=1, dtype="int8")
    elif field == "corpus":
        corpus = numbers(4)
    else:
        changed[field] = {"revision": "b", "size": 256}[field]
    before = contents(tmp_path)
    message = "holds another corpus" if field == "corpus" else f"was made with {field} = .*, now it is"
    with pytest.raises(CacheError, match=message):
        build(tmp_path, "c", corpus, {"a": Configured(**changed)}, {}, how)
    assert contents(tmp_path) == before


def test_promise_02_a_column_of_a_corpus_that_was_stored_anew_in_another_way_is_refused(tmp_path):
    teacher = Given().knows(np.ones((8, 1)))
    folder = build(tmp_path, "c", numbers(8), {"a": teacher}, {}, Settings(workers=1, shard_rows=4))
    (folder / store.CORPUS).unlink()
    with pytest.raises(CacheError, match="was made with shard_rows = 4, now it is 8"):
        build(tmp_path, "c", numbers(8), {"a": teacher}, {}, Settings(workers=1, shard_rows=8))
