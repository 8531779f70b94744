"""Promises 11 to 13: many writers, readers in every process, and versions."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from children import rows_of
from helpers import ROOT, contents, edited, faults, litter, plain_column

from cache_tools import aligned, open_column
from cache_tools.building import claims, launch
from cache_tools.errors import CacheError
from cache_tools.format import files, shard, store
from cache_tools.machine import running

# -------------------------------------------------------------------------------------------- 11: many writers


def test_promise_11_of_two_writers_of_one_shard_one_wins(nursery, tmp_path):
    rounds = 40
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
    writers = [nursery.start("write_rounds", tmp_path, rounds, me, 3 - me) for me in (1, 2)]
    assert [nursery.wait(writer) for writer in writers] == [0, 0]
    winners = set()
    for number in range(rounds):
        here = tmp_path / str(number)
        mapped, header = shard.map_shard(here / "00007.h5")
        assert (mapped["embedding"] == header["writer"]).all()
        winners.add(header["writer"])
        for me in (1, 2):
            assert json.loads((here / f"facts {me}.json").read_text())["sha256"] == files.sha256(here / "00007.h5")
        assert not list(here.glob(".*")), "no temporary file"
    assert winners <= {1, 2}


def test_promise_11_four_processes_make_every_shard_once_and_the_same_column(nursery, tmp_path):
    nursery.run("build_texts", tmp_path / "one", tmp_path / "calls of one")
    writers = [nursery.start("build_texts", tmp_path / "four", tmp_path / "calls", 0.03, rank, 4) for rank in range(4)]
    assert [nursery.wait(writer) for writer in writers] == [0] * 4
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls) == sorted((tmp_path / "calls of one").read_text().split())
    assert len(set(calls)) == 12
    one, four = (tmp_path / name / "texts" for name in ("one", "four"))
    assert contents(one) == contents(four)
    manifests = [json.loads((folder / "teachers" / "logged" / store.MANIFEST).read_text()) for folder in (one, four)]
    assert manifests[0] == manifests[1], "shards, hashes, and statistics to the last digit"
    assert (faults(four), litter(four)) == ([], [])


def wait_for(what, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_promise_11_the_shard_of_a_killed_writer_is_taken_over(nursery, tmp_path):
    writer = nursery.start("build_texts", tmp_path / "cache", tmp_path / "slow", 60.0)
    wait_for((tmp_path / "slow").exists)  # it is at work on a shard
    folder = tmp_path / "cache" / "texts"
    claimed = sorted(path.name for path in folder.rglob(".*.claim"))
    assert claimed == [".00000.claim", ".00001.claim"], "the next one's items are processed while this one is embedded"
    assert nursery.kill(writer) == -signal.SIGKILL
    started = time.monotonic()
    nursery.run("build_texts", tmp_path / "cache", tmp_path / "calls", 0.0)
    assert time.monotonic() - started < 10, "without waiting for a sign of life"
    assert len((tmp_path / "calls").read_text().split()) == 12
    assert (faults(folder), litter(folder)) == ([], [])


@pytest.mark.parametrize(
    ("text", "silent", "taken"),
    [
        ("another-host 1", claims.STALE + 60, True),
        ("another-host 1", claims.STALE - 60, False),
        (f"{socket.gethostname()} {os.getppid()}", 1, False),
        (f"{socket.gethostname()} {os.getppid()}", claims.STALE + 60, True),  # its number is another program's by now
        (f"{socket.gethostname()} 4194399", 1, True),  # no such process
        ("", claims.UNSIGNED + 1, True),  # killed between making and signing it
        ("", 0, False),
    ],
)
def test_promise_11_only_the_claim_of_a_dead_writer_is_taken_over(tmp_path, text, silent, taken):
    path = tmp_path / ".00003.claim"
    path.write_text(text)
    os.utime(path, (time.time() - silent,) * 2)
    with claims.Claims(tmp_path) as mine:
        assert mine.take(3) is taken
        assert path.read_text() == (mine.me if taken else text)
    assert path.exists() is not taken, "one's own claims are given back, others' never"
    assert not list(tmp_path.glob("*.tmp"))


def test_promise_11_a_writer_that_this_command_started_does_not_count_as_alive_when_it_died(monkeypatch):
    started = []

    def start(command, **options):
        started.append(real([sys.executable, "-c", "raise SystemExit(3)"], **options))
        return started[-1]

    real = subprocess.Popen
    monkeypatch.setattr(launch.subprocess, "Popen", start)
    with launch.writers(2, [], 1):
        wait_for(lambda: not running(started[0].pid))


# ------------------------------------------------------------------------------------------------- 12: reading


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_promise_12_every_way_to_start_a_process_reads_the_same_rows(cache, method):
    indices = [599, 0, 17, 300, 17]
    columns = [open_column(cache / "mol" / "teachers" / name) for name in ("counts", "morgan")]
    here = [column.rows(torch.tensor(indices)).tolist() for column in columns]  # mapped before the process starts
    with multiprocessing.get_context(method).Pool(1) as pool:
        for column, expected in zip(columns, here, strict=True):
            passed, opened = pool.apply_async(rows_of, (column, indices)).get(timeout=60)
            assert passed == opened == expected


def test_promise_12_opening_reads_the_manifest_only_whatever_the_rows(tmp_path):
    path = plain_column(tmp_path)
    rows, per_shard = 10_000_000, store.SHARD_ROWS
    sizes = [min(per_shard, rows - first) for first in range(0, rows, per_shard)]
    assert len(sizes) == 153
    with edited(path / store.MANIFEST) as manifest:
        one = manifest["shards"][0]
        shards = [one | {"file": shard.file_name(n), "rows": size, "valid": size} for n, size in enumerate(sizes)]
        manifest |= {"rows": rows, "shard_rows": per_shard, "shards": shards}
    (path / "00000.h5").unlink()
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, what: opened.append(str(what[0])) if event == "open" and watching else None)
    started = time.monotonic()
    column = open_column(path)
    took = time.monotonic() - started
    watching.clear()
    assert (len(column), opened) == (rows, [str(path / store.MANIFEST)])
    assert took < 0.5
    assert column.valid(torch.tensor([rows - 1])).tolist() == [True]
    with pytest.raises(CacheError, match="00152.h5 is missing"):
        column.rows(torch.tensor([rows - 1]))


# ------------------------------------------------------------------------------------------------- 13: versions


@pytest.mark.parametrize("which", ["column", "corpus", "shard", "items"])
def test_promise_13_a_newer_format_is_refused_in_words(copy, which):
    path = copy / "teachers" / "counts"
    if which in ("column", "corpus"):
        with edited(path / store.MANIFEST if which == "column" else copy / store.CORPUS) as manifest:
            manifest["format_version"] = 2
    else:
        with h5py.File((path if which == "shard" else copy / "items") / "00000.h5", "r+") as file:
            file.attrs.modify("format_version", 2)
    with pytest.raises(CacheError, match="has format version 2, this version reads 1: upgrade"):
        if which == "items":
            store.read_items(copy, 0)
        else:
            aligned(copy, [path]).rows(torch.tensor([0]))


def test_promise_13_a_cache_of_version_1_is_read():
    """Made by ``tests/fixtures/make_v1.py``."""
    folder = ROOT / "tests" / "fixtures" / "v1" / "mol"
    every = torch.arange(12)
    atoms = torch.tensor([1, 2, 3, 6, 3, 0, 4, 2, 3, 6, 3, 4])  # 0: masked
    expected = torch.stack([atoms, atoms / 4, -atoms], 1)
    valid = atoms > 0
    columns = {path.name: open_column(path, check_hashes=True) for path in store.list_columns(folder)}
    assert set(columns) == {"float16", "float32", "int8", "bits", "graph"}
    for column in columns.values():
        assert column.valid(every).tolist() == valid.tolist()
    for name in ("float16", "float32"):
        assert columns[name].rows(every).dtype == getattr(torch, name)
        assert torch.equal(columns[name].rows(every).float(), expected)
    torch.testing.assert_close(columns["int8"].rows(every)[valid], expected[valid], rtol=0, atol=5 / 254)
    np.testing.assert_allclose(columns["float32"].statistics.mean, [37 / 11, 37 / 44, -37 / 11], rtol=1e-12)
    bits = columns["bits"].rows(torch.tensor([2, 5, 11])).tolist()
    assert ["".join(map(str, row)) for row in bits] == [
        "00000010000110100100",
        "00000000000000000000",
        "01000000000000010101",
    ]
    graph = columns["graph"].rows(torch.tensor([2, 5, 7]))  # CCO, masked, C#N
    assert graph["atoms"].counts.tolist() == [3, 0, 2]
    assert graph["atoms"].values[:, 0].tolist() == [6, 6, 8, 6, 7]
    assert graph["edges"].values.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [0, 1], [1, 0]]
    ids, items = store.read_items(folder, 0)
    assert (items[2], items[5], ids[5]) == (b"CCO", b"no molecule", "e3211b37e1d360cf")
    assert faults(folder) == []
