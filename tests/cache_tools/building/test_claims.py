"""Claims of shards: the living keep theirs, those of the dead are taken over, and who waits says for whom."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cache_tools.building import claims
from cache_tools.building.claims import Claims
from cache_tools.building.column import Build, Settings
from cache_tools.building.corpus import build, run_builds, store_corpus
from cache_tools.building.launch import place
from cache_tools.corpora.base import Items
from cache_tools.errors import CacheError, ConfigError
from cache_tools.format import files, shard, store
from cache_tools.format.verify import column_faults
from cache_tools.inputs.base import Featuriser
from cache_tools.machine import running
from cache_tools.teachers.base import Teacher

HOST = socket.gethostname()
HOW = Settings(workers=1, shard_rows=4)
TEXTS = Items([str(number) for number in range(10)], "text")


class Numbers(Teacher):
    modality = "text"
    dim = 1

    def __init__(self):
        self.calls = 0

    def embed(self, items):
        self.calls += 1
        return np.array([[int(item)] for item in items])


def wait_for(what, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def claim(folder: Path, content: bytes | str, ahead: float = 0.0) -> Path:
    """A claim on shard 3 whose time is that many seconds ahead of the clock."""
    path = folder / ".00003.claim"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(path, (time.time() + ahead,) * 2)
    return path


@pytest.fixture
def zombie():
    """The number of a process that ended, and that its parent does not wait for."""
    code = "import os, sys, time\npid = os.fork()\nif not pid: os._exit(0)\nprint(pid, flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as parent:
        process = int(parent.stdout.readline())
        if Path(f"/proc/{process}/stat").exists():
            wait_for(lambda: Path(f"/proc/{process}/stat").read_text().split()[2] == "Z")
        yield process
        parent.stdin.close()


def test_the_claim_of_this_processs_own_number_is_of_an_earlier_container_and_taken_over(tmp_path):
    path = claim(tmp_path, f"{HOST} {os.getpid()}")
    with Claims(tmp_path) as mine:
        assert mine.take(3)
        assert not mine.take(3), "what it holds itself is no earlier container's"
        assert path.read_text() == f"{HOST} {os.getpid()}"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux shows which processes ended")
def test_a_process_that_ended_and_that_nobody_waited_for_is_dead(tmp_path, zombie):
    assert not running(zombie)
    assert running(os.getpid())
    assert running(os.getppid())
    claim(tmp_path, f"{HOST} {zombie}")
    temporary = tmp_path / f".00000.h5.1.{HOST}.{zombie}.tmp"
    temporary.touch()
    files.sweep(tmp_path)
    assert not temporary.exists()
    with Claims(tmp_path) as mine:
        assert mine.take(3)


@pytest.mark.parametrize(
    ("ahead", "taken"), [(claims.STALE + 60, True), (10 * 86_400, True), (claims.STALE - 60, False), (5, False)]
)
def test_a_claim_from_the_future_does_not_block_for_ever(tmp_path, ahead, taken):
    claim(tmp_path, "another-host 1", ahead)
    with Claims(tmp_path) as mine:
        assert mine.take(3) is taken


@pytest.mark.parametrize("content", [b"\xff\xfe\x00 \xff", b"a b c", b"one-word", f"{HOST} {'9' * 5000}", f"{HOST} -1"])
def test_a_claim_that_no_writer_signed_like_this_is_taken_over_soon(tmp_path, content):
    path = claim(tmp_path, content)
    with Claims(tmp_path) as mine:
        assert not mine.take(3)
        claim(tmp_path, content, -claims.UNSIGNED - 1)
        assert mine.take(3)
        assert path.read_text() == mine.me


def test_a_number_that_no_process_can_have_is_dead(tmp_path):
    claim(tmp_path, f"{HOST} 9999999999")
    with Claims(tmp_path) as mine:
        assert mine.take(3)


def test_a_living_writer_touches_its_claims_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with Claims(tmp_path) as mine:
        for number in (3, 7):
            assert mine.take(number)
        paths = [tmp_path / f".{number:05d}.claim" for number in (3, 7)]
        for _ in range(2):  # again and again
            for path in paths:
                os.utime(path, (time.time() - claims.STALE,) * 2)
            wait_for(lambda: all(time.time() - path.stat().st_mtime < 60 for path in paths))
        paths[0].unlink()  # taken away: no reason to stop with the others
        os.utime(paths[1], (0, 0))
        wait_for(lambda: paths[1].stat().st_mtime > 0)
        assert not paths[0].exists()
    assert not paths[1].exists()


def test_a_writer_that_waits_says_for_which_shard_and_whom_now_and_then(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("cache_tools.building.corpus.WAIT", 0.01)
    folder = build(tmp_path, "c", TEXTS, {"a": Numbers()}, {}, HOW)
    path = folder / "teachers" / "a"
    (path / "00001.h5").unlink()
    other = path / ".00001.claim"
    other.write_text(f"{HOST} {os.getppid()}")
    wanted = f"waiting for shard 1 of process {os.getppid()} on {HOST}, whose last sign of life is "

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if wanted in record.getMessage()]

    builder = threading.Thread(target=build, args=(tmp_path, "c", TEXTS, {"a": Numbers()}, {}, HOW))
    builder.start()
    wait_for(said)
    assert said()[0].startswith("c, a: ")
    time.sleep(0.2)
    assert len(said()) == 1, "once, and after a minute again"
    monkeypatch.setattr("cache_tools.building.corpus.SAY", 0.05)
    wait_for(lambda: len(said()) > 2)
    other.unlink()
    builder.join()
    assert column_faults(path, store.read_corpus(folder).fingerprint) == []


# ------------------------------------------------------------------ what a killed writer left, and damaged facts


@pytest.mark.parametrize("note", ['{"bytes": 1}', "[]", '{"file": "00001.h5"}', "[" * 100_000, "\udcff", "a size"])
def test_a_shard_whose_note_is_wrong_is_kept_and_noted_anew(tmp_path, note):
    folder = build(tmp_path, "c", TEXTS, {"a": Numbers()}, {}, HOW)
    path = folder / "teachers" / "a"
    manifest = store.read_manifest(path / store.MANIFEST)
    facts = manifest["shards"][1]
    store.write_manifest(path / store.MANIFEST, manifest | {"finished": False, "shards": []})
    before = (path / "00001.h5").stat().st_ino
    content = str(facts | {"bytes": facts["bytes"] + 1}).replace("'", '"') if note == "a size" else note
    (path / "00001.json").write_bytes(content.encode(errors="surrogateescape"))
    teacher = Numbers()
    one = Build(folder, store.read_corpus(folder), "a", teacher, HOW)
    assert one.run(), "in one pass: nobody else holds a shard"
    assert teacher.calls == 0
    assert (path / "00001.h5").stat().st_ino == before
    assert store.read_manifest(path / store.MANIFEST) == manifest
    assert column_faults(path, store.read_corpus(folder).fingerprint) == []


class Pieces(Featuriser):
    modality = "text"
    fields = {"pieces": ("int16", ())}

    def featurise(self, item):
        return {"pieces": np.arange(int(item) % 4)}


def test_offsets_of_a_ragged_column_that_go_backwards_are_refused(tmp_path):
    from cache_tools import open_column

    folder = build(tmp_path, "c", TEXTS, {}, {"a": Pieces()}, Settings(workers=1))
    path = folder / "inputs" / "a"
    arrays, header = shard.map_shard(path / "00000.h5")
    changed = {name: np.array(array) for name, array in arrays.items()}
    offsets = changed["pieces/offsets"]
    offsets[4:6] = offsets[5], offsets[4] - 1
    assert (offsets[0], offsets[-1]) == (0, len(changed["pieces/values"])), "only the order is wrong"
    (path / "00000.h5").unlink()
    facts = shard.write_shard(path, 0, changed, header)
    manifest = store.read_manifest(path / store.MANIFEST)
    manifest["shards"][0] |= facts
    store.write_manifest(path / store.MANIFEST, manifest)
    with pytest.raises(CacheError, match="pieces/offsets do not cut the 13 values into rows"):
        open_column(path).rows(np.arange(10))
    assert any("do not cut" in fault for fault in column_faults(path, store.read_corpus(folder).fingerprint))


def test_two_builders_that_wait_for_nobody_say_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    manifest = store_corpus(tmp_path / "c", TEXTS, 4)
    run_builds([Build(tmp_path / "c", manifest, name, Numbers(), HOW) for name in ("a", "b")])
    assert not [record for record in caplog.records if "waiting" in record.getMessage()]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_ARRAY_TASK_ID"])
def test_a_place_that_is_no_number_is_named(name):
    environment = {"SLURM_ARRAY_TASK_ID": "0"} if "SLURM" in name else {"RANK": "0", "WORLD_SIZE": "2"}
    with pytest.raises(ConfigError, match=f"{name}=first in the environment: expected a whole number"):
        place(environment=environment | {name: "first"})
