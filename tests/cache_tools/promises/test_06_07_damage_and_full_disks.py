"""Promises 6 and 7: damage has a name, and a full disk leaves no half shard."""

import contextlib
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUIET, Given, command_line, edited, faults, litter, numbers

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.errors import CacheError
from cache_tools.format import shard, store

# --------------------------------------------------------------------------------------- 6: damage has a name


def swap(one: Path, other: Path) -> None:
    assert one.stat().st_size == other.stat().st_size
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_promise_06_verify_names_every_damaged_shard_and_no_row_of_it_is_read(tmp_path):
    teachers = {name: Given(3).knows(np.full((80, 3), 0.5)) for name in "abcde"}
    folder = build(tmp_path, "c", numbers(80), teachers, {}, Settings(workers=1, shard_rows=16))
    assert faults(folder) == []
    columns = folder / "teachers"
    missing, cut, nothing, flipped, left, right = (
        columns / name for name in ("a/00001.h5", "b/00002.h5", "c/00000.h5", "d/00003.h5", "e/00001.h5", "e/00002.h5")
    )
    missing.unlink()
    os.truncate(cut, cut.stat().st_size - 1)
    os.truncate(nothing, 0)
    swap(left, right)
    content = bytearray(flipped.read_bytes())
    offset = shard.read_header(flipped).fields["embedding"][0]
    content[offset + 5] ^= 0x10
    flipped.write_bytes(content)
    item = folder / "items" / "00004.h5"
    item.write_bytes(item.read_bytes()[:-8])

    said = command_line("verify", "--cache", tmp_path)
    assert said.returncode != 0
    lines = said.stderr.replace("error: ", "").strip().splitlines()
    expected = {
        missing: "is missing",
        cut: "its manifest says",
        nothing: "has 0 bytes",
        left: "header says shard 2, expected 1",
        right: "header says shard 1, expected 2",
        flipped: "SHA-256 differs",
        item: "its manifest says",
    }
    assert len(lines) == len(expected), said.stderr
    for path, words in expected.items():
        assert any(str(path) in line and words in line for line in lines), path

    for path in (missing, cut, nothing, left, right):
        row = torch.tensor([16 * int(path.stem)])
        with pytest.raises(CacheError, match=expected[path]):
            open_column(path.parent).rows(row)
        with pytest.raises(CacheError):
            open_column(path.parent, check_hashes=True)
    assert open_column(flipped.parent).rows(torch.tensor([48])).shape == (1, 3), "opening checks sizes and headers"
    with pytest.raises(CacheError, match="00003.h5: bytes changed"):
        open_column(flipped.parent, check_hashes=True)


def test_promise_06_a_shard_of_another_column_is_refused(copy):
    shutil.copy(copy / "teachers" / "maccs" / "00000.h5", copy / "teachers" / "morgan" / "00000.h5")
    path = copy / "teachers" / "morgan"
    with edited(path / store.MANIFEST) as manifest:
        manifest["shards"][0]["bytes"] = (path / "00000.h5").stat().st_size
    with pytest.raises(CacheError, match="header says producer"):
        open_column(path).rows(torch.tensor([0]))


def test_promise_06_no_flipped_byte_of_a_header_hangs_or_crashes_the_reader(tmp_path):
    arrays = {"embedding": np.ones((5, 3), np.float32), "valid": np.ones(5, np.uint8), "g/values": np.arange(9)}
    expected = {"corpus_fingerprint": "ab", "producer": "cd"}
    shard.write_shard(tmp_path, 0, arrays, {**expected, "shard": 0})
    path, draw = tmp_path / "00000.h5", random.Random(0)
    sound, refused = path.read_bytes(), 0
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            shard.map_shard(path, store.checked_header(path, len(sound), 0, expected))
        except CacheError:
            refused += 1
    assert refused > 200


# --------------------------------------------------------------------------------------------------- 7: a full disk


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_promise_07_a_full_disk_is_said_in_words_and_leaves_no_half_shard(small_disk, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "corpus: {class_path: cache_tools.corpora.molecule.RdkitSamples, init_args: {limit: 2000}}\n"
        "teachers: {counts: {class_path: cache_tools.teachers.molecule.MorganCounts, init_args: {dim: 1000}}}\n"
        "inputs: {}\nsettings: {shard_rows: 200, workers: 1}\n"
    )
    arguments = "build", "--config", config, "--cache", small_disk
    path = small_disk / "mol" / "teachers" / "counts"

    refused = command_line(*arguments)
    assert refused.returncode != 0
    assert re.search(r"no space left for \S*counts \([\d,]+ bytes free, [\d,]+ needed\): free some space", refused.stderr)
    assert "Traceback" not in refused.stderr
    assert [each.name for each in path.iterdir()] == ["manifest.json"], "refused before the first shard"

    lie = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12)"
    full = command_line(*arguments, before=lie)
    assert full.returncode != 0
    assert re.search(r"no space left .*the disk filled up while writing", full.stderr.replace("\n", " "))
    assert "Traceback" not in full.stderr
    made = sorted(path.glob("*.h5"))
    assert 1 <= len(made) < 10, "the disk was to fill up halfway"
    for each in made:
        assert shard.map_shard(each)[0]["embedding"].shape == (200, 1000)
    assert not list(small_disk.rglob("*.tmp")) + list(small_disk.rglob(".*.claim"))

    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    before = {each: each.stat().st_mtime_ns for each in made}
    assert command_line(*arguments).returncode == 0
    assert {each: each.stat().st_mtime_ns for each in made} == before, "finished shards are kept"
    assert (faults(small_disk / "mol"), litter(small_disk / "mol")) == ([], [])


def test_promise_07_a_disk_too_full_for_a_claim_is_said_in_words_too(small_disk):
    folder = build(small_disk, "c", numbers(4), {}, {}, QUIET)
    teacher = Given().knows(np.ones((4, 1)))
    build(small_disk, "c", numbers(4), {"a": teacher}, {}, QUIET)
    (folder / "teachers" / "a" / "00000.h5").unlink()
    with pytest.MonkeyPatch.context() as patch, open(small_disk / "filler", "wb") as filler:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
        with contextlib.suppress(OSError):
            while True:
                os.write(filler.fileno(), bytes(4096))
        with pytest.raises(CacheError, match="the disk filled up while writing"):
            build(small_disk, "c", numbers(4), {"a": teacher}, {}, QUIET)
    (small_disk / "filler").unlink()
    build(small_disk, "c", numbers(4), {"a": teacher}, {}, QUIET)
    assert (faults(folder), litter(folder)) == ([], [])
