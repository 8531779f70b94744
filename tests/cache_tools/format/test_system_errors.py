"""Errors of the operating system are said in words, and none of them makes a build delete a shard."""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Items
from cache_tools.errors import CacheError
from cache_tools.format import files, shard, store
from cache_tools.format.verify import cache_faults
from cache_tools.teachers.base import Teacher

TEXTS = [str(number) for number in range(10)]
HOW = Settings(workers=1, shard_rows=4)


class Numbers(Teacher):
    modality = "text"
    dim = 2

    def __init__(self):
        self.calls = 0

    def embed(self, items):
        self.calls += 1
        return np.array([[int(item), 1] for item in items])


def make(cache: Path) -> Teacher:
    teacher = Numbers()
    build(cache, "c", Items(TEXTS, "text"), {"numbers": teacher}, {}, HOW)
    return teacher


@pytest.fixture
def cache(tmp_path):
    make(tmp_path / "cache")
    return tmp_path / "cache"


def in_another_process(work: Callable[[], object], user: int | None = None) -> str:
    """What ``work`` raises in a fork of this process, as another user where one is given."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            if user is not None:
                os.setuid(user)
            work()
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, encoding="utf-8") as file:
        return file.read()


# ------------------------------------------------------------------------- a sound shard that cannot be read now


def test_a_lock_of_another_program_stops_no_reader_and_no_build(cache, tmp_path):
    path = cache / "c/teachers/numbers"
    shards = [*path.glob("*.h5"), *cache.glob("c/items/*.h5")]
    assert len(shards) == 6
    (path / "00002.h5").unlink()  # so that the build has work
    (path / store.MANIFEST).unlink()  # and looks at every shard
    code = (
        "import fcntl, sys\nfiles = [open(name, 'rb+') for name in sys.argv[1:]]\n"
        "for file in files: fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    locked = [str(file) for file in shards if file.exists()]
    with subprocess.Popen([sys.executable, "-c", code, *locked], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"locked\n"
        with open(locked[0], "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before = {file: os.stat(file).st_ino for file in locked}
        assert make(cache).calls == 1, "only the shard that was missing is made"
        assert {file: os.stat(file).st_ino for file in locked} == before
        assert list(cache_faults(cache)) == []
        assert shard.read_foreign(Path(locked[0]), "valid").tolist() == [1] * 4
        assert open_column(path).rows(np.arange(10))[:, 0].tolist() == list(range(10))
        other.communicate()


def test_a_shard_that_this_user_may_not_read_stays_and_the_message_says_so():
    with tempfile.TemporaryDirectory() as place:  # other users cannot look into pytest's own folder
        cache = Path(place) / "cache"
        make(cache)
        path = cache / "c/teachers/numbers/00001.h5"
        inode = path.stat().st_ino
        (path.parent / store.MANIFEST).unlink()
        for folder in (Path(place), cache, *cache.rglob("*")):
            folder.chmod(0o777)
        path.chmod(0)
        said = in_another_process(lambda: make(cache), user=65_534 if os.getuid() == 0 else None)
        assert said.startswith(f"CacheError: {path}: Permission denied (error 13 of the system): give this user the right")
        assert path.stat().st_ino == inode
        path.chmod(0o644)
        assert make(cache).calls == 0
        assert list(cache_faults(cache)) == []


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has a file whose first bytes cannot be read")
@pytest.mark.parametrize("read", [shard.read_header, lambda path: shard.read_foreign(path, "valid")])
def test_an_input_output_error_is_no_proof_against_a_shard(tmp_path, monkeypatch, read):
    path = tmp_path / "00000.h5"
    path.symlink_to("/proc/self/mem")  # reading its first byte is an input/output error (EIO)
    with pytest.raises(CacheError, match=r"Input/output error \(error 5 of the system\): the disk or its conn") as caught:
        read(path)
    assert not isinstance(caught.value, shard.ForeignShard)
    assert "delete" not in str(caught.value)
    with pytest.raises(CacheError, match="Input/output error"):
        store.remove_foreign(path, 0, {})
    assert path.is_symlink()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOLCK, errno.EAGAIN, errno.ESTALE])
@pytest.mark.parametrize("kind", [OSError, RuntimeError, KeyError])
def test_hdf5_says_an_error_of_the_system_in_its_text_only(tmp_path, code, kind):
    text = f"Unable to open object (file read failed: fd = 3, errno = {code}, error message = 'any')"
    with pytest.raises(CacheError, match=rf"error {code} of the system"), files.system_errors_in_words(tmp_path):
        raise kind(text)


@pytest.mark.parametrize("damage", ["text", "cut", "empty", "other column", "no header"])
def test_only_what_is_proven_to_be_no_shard_of_the_column_is_made_anew(cache, damage):
    path = cache / "c/teachers/numbers/00001.h5"
    sound = path.read_bytes()
    (path.parent / store.MANIFEST).unlink()
    if damage == "other column":
        path.write_bytes((path.parent / "00000.h5").read_bytes())
    elif damage == "no header":
        path.unlink()
        with h5py.File(path, "w") as file:
            file["embedding"] = np.ones(3)
    else:
        path.write_bytes({"text": b"no shard at all", "cut": sound[:-1], "empty": b""}[damage])
    assert make(cache).calls == 1
    assert path.read_bytes() == sound
    assert list(cache_faults(cache)) == []


# ------------------------------------------------------------------------- something else in the place of a file


@pytest.mark.parametrize("name", ["teachers/numbers/00001.h5", "items/00001.h5", "teachers/numbers/.00001.claim"])
@pytest.mark.parametrize("what", ["folder", "loop", "pipe"])
def test_what_is_no_file_is_named_and_stays(cache, name, what):
    path = cache / "c" / name
    path.unlink(missing_ok=True)
    if "claim" in name:
        (path.parent / "00001.h5").unlink()
    {"folder": path.mkdir, "loop": lambda: path.symlink_to(path.name), "pipe": lambda: os.mkfifo(path)}[what]()
    words = {"folder": "is a folder, expected a file", "loop": "form a circle", "pipe": "is a device or a pipe"}[what]
    with pytest.raises(CacheError, match=words) as caught:
        make(cache)
    assert str(path) in str(caught.value)
    assert os.path.lexists(path)
    if "claim" not in name:
        assert any(str(path) in fault and words in fault for fault in cache_faults(cache))
    path.rmdir() if what == "folder" else path.unlink()
    make(cache)
    assert list(cache_faults(cache)) == []


@pytest.mark.parametrize("name", ["c", "c/teachers", "c/teachers/numbers", "c/items"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, name):
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True)
    path.write_text("notes")
    with pytest.raises(CacheError, match="expected a folder: move the file away") as caught:
        make(tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert path.read_text() == "notes"


# ------------------------------------------------------------------------------------------- disks and limits


def test_a_limit_on_file_sizes_is_said_in_words_and_leaves_no_half_file(tmp_path):
    cache = tmp_path / "cache"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        make(cache)

    assert in_another_process(limited).startswith(f"CacheError: {cache}/c/items: File too large (error 27 of the system)")
    assert [path.name for path in cache.rglob("*") if path.is_file()] == []
    make(cache)
    assert list(cache_faults(cache)) == []


@pytest.fixture
def disk(tmp_path):
    """A file system of one's own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_is_read_and_a_build_on_it_is_refused_in_words(disk):
    make(disk)
    shutil.copytree(disk / "c", disk / "lost")
    (disk / "lost/teachers/numbers/00001.h5").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert make(disk).calls == 0, "what is finished needs no writing"
    assert len(open_column(disk / "c/teachers/numbers").rows(np.arange(10))) == 10
    for name in ("lost", "new"):
        with pytest.raises(
            CacheError, match=rf"{disk}/{name}\S*: Read-only file system \(error 30 of the system\): use a f"
        ):
            build(disk, name, Items(TEXTS, "text"), {"numbers": Numbers()}, {}, HOW)


def test_nothing_is_written_where_the_disk_has_too_little_space_for_it(tmp_path, monkeypatch):
    arrays = {"embedding": np.ones((100, 10), np.float32)}
    for free, fits in ((4000 + files.SPARE - 1, False), (4000 + files.SPARE, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**12, 0, free))
        if fits:
            assert shard.write_shard(tmp_path, 0, arrays, {})["file"] == "00000.h5"
        else:
            with pytest.raises(CacheError, match=f"{free:,} bytes free, {free + 1:,} needed"):
                shard.write_shard(tmp_path, 0, arrays, {})
            assert list(tmp_path.iterdir()) == []


def test_a_build_that_does_not_fit_on_the_disk_makes_no_row(tmp_path, monkeypatch):
    build(tmp_path, "c", Items(TEXTS, "text"), {}, {}, HOW)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, files.SPARE + 10))
    teacher = Numbers()
    with pytest.raises(CacheError, match=r"no space left for \S*numbers"):
        build(tmp_path, "c", Items(TEXTS, "text"), {"numbers": teacher}, {}, HOW)
    assert teacher.calls == 0


@pytest.mark.parametrize("write", ["shard", "file"])
def test_a_file_reaches_the_disk_before_its_name_and_then_the_folder(tmp_path, monkeypatch, write):
    calls = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(first, *rest):
            target = os.fstat(first) if isinstance(first, int) else os.stat(first)
            calls.append((name, target.st_ino))
            return real(first, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "replace"):
        watch(name)
    if write == "shard":
        shard.write_shard(tmp_path, 0, {"valid": np.ones(3, np.uint8)}, {})
    else:
        files.write_file(tmp_path / "manifest.json", "{}")
    [path] = tmp_path.iterdir()
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("fsync", file), ("link" if write == "shard" else "replace", file), ("fsync", folder)]


# --------------------------------------------------------------------------------------------- temporary files


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_temporary_files_of_a_killed_writer_of_a_corpus_are_removed_by_the_next_build(cache):
    host = os.uname().nodename
    left = [
        cache / "c" / f".corpus.json.1.{host}.{dead_process()}.tmp",
        cache / "c/items" / f".00000.h5.1.{host}.{dead_process()}.tmp",
        cache / "c/items" / f".00000.h5.1.{host}.{os.getpid()}.tmp",  # a restarted container has the same number again
        cache / "c/items" / ".00000.h5.1.another-host.12.tmp",
        cache / "c/teachers/numbers" / f".00000.h5.1.{host}.{dead_process()}.tmp",
    ]
    living = [
        cache / "c/items" / f".00000.h5.1.{host}.{os.getppid()}.tmp",
        cache / "c/items" / ".00001.h5.1.another-host.12.tmp",
        cache / "c/items" / ".not.a.number.tmp",
    ]
    for path in (*left, *living):
        path.touch()
    os.utime(left[3], (time.time() - files.ABANDONED - 60,) * 2)
    make(cache)
    assert [path.name for path in left if path.exists()] == []
    assert [path.name for path in living if not path.exists()] == []


def test_a_temporary_file_that_this_process_is_writing_is_not_swept(tmp_path):
    temporary = files.temporary_name(tmp_path / "manifest.json")
    with files.removed_afterwards(temporary):
        temporary.touch()
        files.sweep(tmp_path)
        assert temporary.exists()
    assert not temporary.exists()
