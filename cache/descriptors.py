"""Reading and writing at an offset of an open file, on every system.

POSIX has calls for it; Windows has not, and there the position is set first, which threads must not do at once.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import Any

# O_CLOEXEC is POSIX's, O_BINARY is Windows' (without it line ends are translated).
FLAGS: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_positioned = Lock()


def read_at(fd: int, buffer: Any, offset: int) -> int:
    """Fills `buffer` from `offset` as far as one call does; returns the number of bytes, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    with _positioned:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, memoryview(buffer).nbytes)
    memoryview(buffer).cast("B")[: len(data)] = data
    return len(data)


def write_at(fd: int, data: Any, offset: int) -> int:
    """Writes `data` at `offset` as far as one call does; returns the number of bytes."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _positioned:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
