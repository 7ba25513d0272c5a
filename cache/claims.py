"""Who works on what, where several processes build one cache: a lock a subject, which ends with its process.

Nothing is split beforehand. Whoever is free takes the next subject that is neither finished nor taken, so the load
balances itself by the time that slices really take, and the subject of a process that was lost is taken by another.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zeus_union.cache.atomic import make_folder


@contextmanager
def claim(folder: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether `name` is this process's for the time of the block.

    A POSIX record lock: the kernel (on NFS the server) gives it back when its process ends, however it ends.

    Args:
        folder: where the lock files are; one that all processes see.
        wait: until whoever has it is done.
    """
    make_folder(folder)
    fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True
    finally:
        os.close(fd)
