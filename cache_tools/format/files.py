"""Write files whole or not at all, read them, and say errors of the operating system in words."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheError
from cache_tools.machine import running

SPARE = 1 << 20  # bytes that must stay free beside the arrays themselves
ABANDONED = 86_400.0  # seconds without a change after which a temporary file of another machine has no writer

H5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError)  # whatever h5py raises for a file that it cannot read
FULL = (errno.ENOSPC, errno.EDQUOT)
DISK = (*FULL, errno.EFBIG, errno.EROFS)
ADVICE = {  # what to do about an error of the system
    errno.EACCES: "give this user the right to use it (`ls -l` shows its owner)",
    errno.EPERM: "give this user the right to use it (`ls -l` shows its owner)",
    errno.EROFS: "use a folder that can be written to (CACHE=...)",
    errno.EFBIG: "files cannot be this large here: raise `ulimit -f`, or build with fewer --settings.shard_rows",
    errno.EIO: "the disk or its connection fails: see `dmesg`, repair it, then run the same command again",
    errno.ELOOP: "its links form a circle: remove the link, then restore the file",
    errno.EISDIR: "expected a file: move the folder away, then run the same command again",
    errno.EEXIST: "expected a folder: move the file away, then run the same command again",
    errno.ENOTDIR: "expected a folder: move the file away, then run the same command again",
    errno.ENOENT: "it disappeared: run the build again, it makes what is missing",
    errno.ENOMEM: (
        "this process has too many mapped shards: raise vm.max_map_count (sysctl), read in blocks with fewer columns, or "
        "build with more --settings.shard_rows"
    ),
    errno.EMFILE: "raise `ulimit -n`",
}


# ------------------------------------------------------------------------------------------- errors of the system


@contextmanager
def system_errors_in_words(path: Path, others: bool = True) -> Iterator[None]:
    """Turn errors of the operating system into a :class:`CacheError` that names the file and says what to do.

    A lock, a missing right or a failing disk says nothing about a file's content: no advice here is to delete a shard.

    Args:
        path: the file or folder that is used.
        others: also turn errors that do not name a file below ``path``; without, only a full or read-only disk's.
    """
    try:
        yield
    except H5_ERRORS as error:
        code = getattr(error, "errno", None) or _code_in(str(error))
        name = getattr(error, "filename", None)
        below = isinstance(name, str) and Path(name).is_relative_to(path)
        if not isinstance(code, int) or not (others or below or (name is None and code in DISK)):
            raise
        if code in FULL:
            folder = path if path.is_dir() else path.parent
            raise _full(folder, "the disk filled up while writing") from None
        advice = ADVICE.get(code, "run the same command again when the system permits it")
        raise CacheError(f"{name if below else path}: {os.strerror(code)} (error {code} of the system): {advice}") from None


def _code_in(message: str) -> int | None:
    """The system's error number in a message of HDF5."""
    code = re.search(r"errno = (\d+)", message)
    return int(code[1]) if code else None


def file_size(path: Path) -> int | None:
    """Bytes of a file, None when it is missing.

    Raises:
        CacheError: when it is a folder, a pipe, a device or a link to nothing, or the system refuses to say.
    """
    with system_errors_in_words(path):
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if not path.is_symlink():
                return None
            words = "restore that file, or remove the link and run the same build again"
            raise CacheError(f"{path} is a link to a file that is missing: {words}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise CacheError(f"{path} is {kind}, expected a file: move it away, then run the same command again")
    return found.st_size


def read_file(path: Path) -> bytes | None:
    """All bytes of a file, None when it is missing.

    Raises:
        CacheError: as :func:`file_size`.
    """
    if file_size(path) is None:
        return None
    with system_errors_in_words(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:  # removed just now
            return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- writing


def write_json(path: Path, content: Mapping[str, Any], keep: bool = False) -> None:
    """As :func:`write_file`, for JSON."""
    write_file(path, json.dumps(content, indent=1), keep)


def write_file(path: Path, content: str | bytes, keep: bool = False) -> None:
    """Write a file that is complete whenever it exists: to a temporary file, which is then renamed.

    Args:
        path: of the file.
        content: all of it.
        keep: an existing file stays; otherwise it is replaced.
    """
    temporary = temporary_name(path)
    with removed_afterwards(temporary):
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path, keep)


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk has enough space before anything is written.

    Raises:
        CacheError: when ``needed`` bytes do not fit.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise _full(folder, f"{free:,} bytes free, {needed + SPARE:,} needed")


def _full(folder: Path, reason: str) -> CacheError:
    return CacheError(
        f"no space left for {folder} ({reason}): free some space or use another folder (a build's CACHE=..., a run's "
        "data.local), then run the same command again; finished shards are kept"
    )


_in_use: set[str] = set()  # names of temporary files that this process is writing


@contextmanager
def removed_afterwards(temporary: Path) -> Iterator[None]:
    """Use the file ``temporary`` and remove it in any case; errors of the system become a :class:`CacheError`."""
    _in_use.add(temporary.name)
    try:
        with system_errors_in_words(temporary.parent):
            yield
    finally:
        with suppress(OSError):  # for instance on a disk that became read-only; the error above says so
            temporary.unlink(missing_ok=True)
        _in_use.discard(temporary.name)


def temporary_name(path: Path) -> Path:
    """Where ``path`` is written before it is published: it names this thread, machine and process, for :func:`sweep`."""
    return path.with_name(f".{path.name}.{threading.get_ident()}.{socket.gethostname()}.{os.getpid()}.tmp")


def sweep(folder: Path) -> None:
    """Remove temporary files in ``folder`` whose writers were killed.

    A writer of another machine counts as killed when its file did not change for a day.
    """
    for path in folder.glob(".*.tmp"):
        if path.name not in _in_use and _abandoned(path):
            with suppress(OSError):  # gone by now, or on a disk that cannot be written to; nothing reads these files
                path.unlink()


def _abandoned(path: Path) -> bool:
    process = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
    if path.name.endswith(f".{socket.gethostname()}.{process}.tmp") and process.isdecimal():
        # a file of this process's number that it does not use: a restarted container uses numbers again
        return int(process) == os.getpid() or not running(int(process))
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


def publish(temporary: Path, path: Path, keep: bool) -> bool:
    """Rename ``temporary`` to ``path``; with ``keep`` an existing file stays, and the answer is False."""
    if keep:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            os.replace(temporary, path)  # a file system without hard links: here the last writer wins
    else:
        os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
