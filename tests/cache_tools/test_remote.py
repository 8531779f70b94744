"""A corpus in an object store, here fsspec's ``memory://``; tests/distill/data/test_object_stores.py has a server of S3."""

import errno
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from cache_tools import Items, MoleculeGraph, Settings, aligned, build, open, open_mirror, read_items
from cache_tools.cli import main as distill_cache
from cache_tools.cli.push import CLAIM, push
from cache_tools.errors import CacheError
from cache_tools.format import files, mirror, remote
from cache_tools.teachers.molecule import Maccs, MorganCounts

ITEMS = Items(["C" * n + "O" for n in range(1, 60)] + ["broken"], "molecule")
URL = "memory://bucket/cache/mol"
SETTINGS = Settings(shard_rows=8, workers=1)
COLUMNS = ["inputs/graph", "teachers/counts"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """60 rows in 8 shards; those of the teacher are large enough to be mapped."""
    teachers = {"counts": MorganCounts(8192)}
    return build(tmp_path_factory.mktemp("cache"), "mol", ITEMS, teachers, {"graph": MoleculeGraph()}, SETTINGS)


@pytest.fixture
def bucket(monkeypatch) -> fsspec.AbstractFileSystem:
    """An empty store; it is asked again at once."""
    monkeypatch.setattr(remote, "WAITS", (0, 0))
    store = fsspec.filesystem("memory")
    store.store.clear()
    return store


@pytest.fixture
def fetched(bucket, monkeypatch) -> list[str]:
    """The files that are fetched, as they come."""
    names, real = [], type(bucket).get_file

    def get_file(self, there, here, **options):
        names.append(there.removeprefix("/bucket/cache/mol/"))
        return real(self, there, here, **options)

    monkeypatch.setattr(type(bucket), "get_file", get_file)
    return names


@pytest.fixture
def sent(bucket, monkeypatch) -> list[str]:
    names, real = [], type(bucket).put_file

    def put_file(self, here, there, **options):
        names.append(there.removeprefix("/bucket/cache/mol/"))
        return real(self, here, there, **options)

    monkeypatch.setattr(type(bucket), "put_file", put_file)
    return names


def shards(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.h5"))


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def size(corpus: Path) -> int:
    """Bytes of the first shard of both columns."""
    return sum((corpus / column / "00000.h5").stat().st_size for column in COLUMNS)


def test_a_mirror_reads_like_the_corpus_and_fetches_what_is_read(corpus, fetched, tmp_path):
    push(corpus, URL)
    folder = open_mirror(URL, tmp_path)
    here, there = open(corpus), open(folder)
    assert fetched == []
    rows = torch.tensor([17, 3, 18, 3, 59])
    for name, column in here.columns.items():
        expected, found = column.rows(rows), there.columns[name].rows(rows)
        if name == "counts":
            assert torch.equal(expected, found)
        else:
            assert all(torch.equal(expected[key].values, found[key].values) for key in expected)
        assert torch.equal(column.valid(rows), there.columns[name].valid(rows))
    assert sorted(fetched) == [f"{column}/0000{number}.h5" for column in COLUMNS for number in (0, 2, 7)]
    assert read_items(folder, 1) == read_items(corpus, 1)
    assert {"corpus.json", "items/00001.h5"} <= {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }


def test_pushing_again_sends_what_is_missing_alone(corpus, bucket, sent):
    distill_cache(["push", "--corpus", str(corpus), "--to", URL])
    assert len(sent) == 3 * 8
    sent.clear()
    push(corpus, URL)
    assert sent == []
    bucket.rm(f"{URL}/teachers/counts/manifest.json")  # a push was killed: shards, and no manifest
    bucket.rm(f"{URL}/teachers/counts/00003.h5")
    bucket.pipe_file(f"{URL}/teachers/counts/00005.h5", b"half")
    push(corpus, URL + "/")
    assert sorted(sent) == ["teachers/counts/00003.h5", "teachers/counts/00005.h5"]
    assert bucket.exists(f"{URL}/teachers/counts/manifest.json")


def test_two_builds_never_mix_in_one_column(corpus, bucket, sent, tmp_path):
    push(corpus, URL)
    teachers = {"counts": MorganCounts(16), "maccs": Maccs()}
    other = build(tmp_path, "mol", ITEMS, teachers, {"graph": MoleculeGraph()}, SETTINGS)
    sent.clear()
    with pytest.raises(CacheError, match=r"teachers/counts holds what another build made \(shards differs\)"):
        push(other, URL)
    bucket.rm(f"{URL}/teachers/counts/manifest.json")
    with pytest.raises(CacheError, match=r"teachers/counts holds what another build made \(shards differs\)"):
        push(other, URL)  # the first driver is still sending
    assert sent == []
    shutil.rmtree(other / "teachers" / "counts")
    push(other, URL)
    assert {name.rpartition("/")[0] for name in sent} == {"teachers/maccs"}, "a column more of the same rows"
    strangers = build(tmp_path, "other", Items(["CCO"], "molecule"), {"maccs": Maccs()}, {}, SETTINGS)
    with pytest.raises(CacheError, match="items holds what another build made .fingerprint differs"):
        push(strangers, URL)


def test_the_manifest_comes_last_and_only_of_sound_shards(corpus, bucket, tmp_path):
    mine = shutil.copytree(corpus, tmp_path / "mol")
    path = mine / "teachers" / "counts" / "00004.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"00004.h5: bytes changed since it was written"):
        push(mine, URL)
    there = {name.rpartition("/")[2] for name in bucket.find(f"{URL}/teachers/counts")}
    assert CLAIM in there
    assert not {"manifest.json", "00004.h5"} & there
    folder = open_mirror(URL, tmp_path / "local")
    assert not (folder / "teachers" / "counts" / "manifest.json").exists(), "it is no column yet"


def test_a_damaged_or_missing_shard_is_named_and_leaves_nothing(corpus, bucket, tmp_path):
    push(corpus, URL)
    name = "/bucket/cache/mol/teachers/counts/00002.h5"
    content = bytearray(bucket.cat_file(name))
    content[len(content) // 2] ^= 1
    bucket.pipe_file(name, bytes(content))
    bucket.rm("/bucket/cache/mol/teachers/counts/00003.h5")
    folder = open_mirror(URL, tmp_path)
    column = open(folder / "teachers" / "counts")
    with pytest.raises(CacheError, match=rf"{URL}/teachers/counts/00002.h5: bytes changed since it was pushed"):
        column.rows([16])
    with pytest.raises(CacheError, match=rf"{URL}/teachers/counts/00003.h5 is missing: push the corpus again"):
        column.rows([24])
    assert column.rows([0]).any()
    assert shards(folder) == ["teachers/counts/00000.h5"]
    assert not litter(tmp_path)


def test_a_store_is_asked_again_and_then_told_of_in_words(corpus, bucket, monkeypatch, tmp_path):
    from botocore.exceptions import EndpointConnectionError

    push(corpus, URL)
    column, failures, real = open(open_mirror(URL, tmp_path) / "teachers" / "counts"), [1, 1], type(bucket).get_file

    def get_file(*arguments, **options):
        if failures and failures.pop():
            raise EndpointConnectionError(endpoint_url="http://bucket")  # no class of Python's own
        return real(*arguments, **options)

    monkeypatch.setattr(type(bucket), "get_file", get_file)
    assert column.rows([0]).any(), "the third try"
    failures += [1] * 9
    with pytest.raises(CacheError, match=r"00001.h5: the store refuses or does not answer \(Could not connect"):
        column.rows([8])
    assert len(failures) == 6
    failures.clear()
    assert column.rows([8]).any(), "a store that is back"
    assert not litter(tmp_path)


def test_a_full_disk_is_said_and_leaves_nothing(corpus, bucket, monkeypatch, tmp_path):
    push(corpus, URL)
    column = open(open_mirror(URL, tmp_path) / "teachers" / "counts")

    def get_file(self, there, here, **options):
        Path(here).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(bucket), "get_file", get_file)
    with pytest.raises(CacheError, match="no space left for .*free some space or use another folder .*data.local"):
        column.rows([0])
    assert not litter(tmp_path)
    monkeypatch.setattr(files, "SPARE", 1 << 60)
    with pytest.raises(CacheError, match="no space left for"):
        column.rows([0])


def test_the_folder_never_holds_more_than_its_limit(corpus, fetched, tmp_path):
    push(corpus, URL)
    limit = 3 * size(corpus)
    folder = open_mirror(URL, tmp_path, limit)
    columns = aligned(folder, COLUMNS)
    columns.read_ahead(0, 8, keep=True)
    most = 0
    for number in (1, 2, 3, 4, 0, 4):
        columns.rows(np.arange(number * 8, number * 8 + 8))
        columns.release()
        most = max(most, sum((folder / name).stat().st_size for name in shards(folder)))
    assert most <= limit
    assert len(fetched) == len(set(fetched)), "kept, or here already"
    kept = {name for name in shards(folder) if name.endswith(("0.h5", "4.h5"))}
    assert len(kept) == 4
    assert torch.equal(columns.columns["counts"].rows([8]), open(corpus).columns["counts"].rows([8]))
    assert fetched.count("teachers/counts/00001.h5") == 2, "it had been removed"


def test_rows_stay_right_while_their_shard_is_removed_and_let_go(corpus, bucket, tmp_path):
    """As a validation does beside the thread that reads ahead."""
    push(corpus, URL)
    folder = open_mirror(URL, tmp_path, 2 * size(corpus))
    column, over = open(folder / "teachers" / "counts"), threading.Event()
    rows = torch.arange(59)
    expected = open(corpus / "teachers" / "counts").rows(rows)

    def let_go() -> None:
        while not over.is_set():
            column.release()
            for name in shards(folder):
                mirror._removed(folder / name)

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        for _ in range(20):
            assert torch.equal(column.rows(rows), expected)
    finally:
        over.set()
        thread.join()


def test_readers_of_one_shard_fetch_it_once(corpus, fetched, tmp_path):
    push(corpus, URL)
    folder = open_mirror(URL, tmp_path)
    columns = [open(folder / "teachers" / "counts") for _ in range(4)]  # each has locks and maps of its own, as a rank has
    threads = [threading.Thread(target=column.rows, args=([0, 9],)) for column in columns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == ["teachers/counts/00000.h5", "teachers/counts/00001.h5"]


def test_what_a_killed_fetch_left_is_removed(corpus, bucket, monkeypatch, tmp_path):
    push(corpus, URL)
    folder = open_mirror(URL, tmp_path)
    process = subprocess.Popen(["true"])
    process.wait()
    monkeypatch.setattr(files.os, "getpid", lambda: process.pid)
    for name in ("00001.h5", "00001.room"):
        files.temporary_name(folder / "teachers" / "counts" / name).write_bytes(b"half")
    monkeypatch.undo()
    assert len(litter(folder)) == 2
    open_mirror(URL, tmp_path)
    assert not litter(folder)


def test_shards_of_a_column_that_was_replaced_are_not_read(corpus, bucket, tmp_path):
    push(corpus, URL)
    folder = open_mirror(URL, tmp_path)
    open(folder).rows([0])
    bucket.rm(f"{URL}/teachers/counts", recursive=True)
    other = build(tmp_path / "other", "mol", ITEMS, {"counts": MorganCounts(16)}, {"graph": MoleculeGraph()}, SETTINGS)
    push(other, URL)
    assert open(open_mirror(URL, tmp_path)).columns["counts"].dim == 16
    assert shards(folder) == ["inputs/graph/00000.h5"]


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (URL, {"key": "AKIA", "secret": "x"}),
        (URL, {"client_kwargs": {"aws_secret_access_key": "x"}}),
        ("s3://AKIA:x@bucket/cache", {}),
    ],
)
def test_credentials_are_refused_where_they_would_be_written_down(tmp_path, url, options):
    with pytest.raises(CacheError, match=r"a credential stands in .* move it into the environment"):
        open_mirror(url, tmp_path, options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nostore://b/c", "Protocol not known: nostore"),
        ("memory://bucket/nothing", "no corpus at memory://bucket/nothing: push"),
    ],
)
def test_what_is_no_corpus_is_refused_in_words(bucket, tmp_path, url, words):
    with pytest.raises(CacheError, match=words):
        open_mirror(url, tmp_path)


def test_the_note_holds_the_address_alone(corpus, bucket, tmp_path):
    push(corpus, URL)
    folder = open_mirror(URL, tmp_path, 10**9)
    assert json.loads((folder / mirror.NOTE).read_text()) == {"url": URL, "options": {}, "limit": 10**9}
