"""Map many files one after another into one range of addresses, so that one gather reads across all of them.

Python's own mmap cannot choose an address, and it keeps a file open for each mapping: ten thousand shards would need ten
thousand file descriptors.
"""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
MAP_FIXED = 0x10  # the same on Linux and macOS; the mmap module lacks it
PROT_NONE = 0
FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class AddressRange:
    """A range of addresses without memory behind it, until parts of files are placed in it.

    Args:
        size: bytes.

    Raises:
        OSError: when the system cannot give a range of this size.
    """

    def __init__(self, size: int):
        self.size, self.address = size, 0
        self.address = _map(None, size, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)

    def place(self, path: Path, offset: int, size: int, at: int) -> None:
        """Map ``size`` bytes of a file from ``offset`` on; copy-on-write, so that nothing can change the file.

        Args:
            path: the file.
            offset: in the file, a multiple of a page.
            size: bytes.
            at: where in the range, a multiple of a page.
        """
        file = os.open(path, os.O_RDONLY)
        try:
            _map(self.address + at, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED, file, offset)
        finally:
            os.close(file)

    def fill(self, content: bytes, at: int) -> None:
        """Put a copy of ``content`` at ``at``, a multiple of a page; ``MADV_DONTNEED`` would lose it."""
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        _map(self.address + at, len(content), writable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        ctypes.memmove(self.address + at, content, len(content))

    def clear(self, start: int, stop: int) -> None:
        """Unmap bytes ``start`` to ``stop``, multiples of a page; a file that was removed gives its space back then."""
        _map(self.address + start, stop - start, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED, -1, 0)

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The range as an array; reading where nothing was placed ends the process."""
        memory: Any = (ctypes.c_uint8 * self.size).from_address(self.address)
        memory.range = self  # the addresses live as long as any array on them
        return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)

    def advise(self, start: int, stop: int, advice: int) -> None:
        """Tell the system how bytes ``start`` to ``stop`` will be used: ``mmap.MADV_WILLNEED``, ``MADV_DONTNEED``."""
        start -= start % PAGE
        if stop > start:
            _libc.madvise(self.address + start, stop - start, advice)  # advice only: a failure costs nothing but time

    def __del__(self) -> None:
        if self.address:
            _libc.munmap(self.address, self.size)


def _map(address: int | None, size: int, protection: int, flags: int, file: int, offset: int) -> int:
    mapped = _libc.mmap(address, size, protection, flags, file, offset)
    if mapped == FAILED:
        raise OSError(ctypes.get_errno(), f"mmap of {size:,} bytes: {os.strerror(ctypes.get_errno())}")
    return int(mapped)
