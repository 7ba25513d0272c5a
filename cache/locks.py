"""Locks of files that hold between processes and machines and end with their process, however it ends.

POSIX record locks where there are any: NFS, Lustre and GPFS pass those on to the server, which not all do with flock.
On Windows, which has none, portalocker's (LockFileEx).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

from zeus_union.cache.descriptors import FLAGS, read_at, write_at

# ENOLCK: NFS without a lock daemon; ENOSYS: Lustre mounted without flock; EOPNOTSUPP: some user-space file systems.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class NoLocksError(Exception):
    """The file system has no locks."""


MARK_BYTES = 4096  # a mark is one line of JSON


class LockFile:
    """A file that this process has locked until `close`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def mark(self) -> bytes:
        """What its holder wrote into it; empty where the last one gave it back in order."""
        data = bytearray(MARK_BYTES)
        return bytes(data[: read_at(self.fd, data, 0)])

    @mark.setter
    def mark(self, data: bytes) -> None:
        os.ftruncate(self.fd, 0)
        if data:
            write_at(self.fd, memoryview(data), 0)
            os.fsync(self.fd)  # other machines see it at once

    def close(self) -> None:
        os.close(self.fd)


def acquire(path: Path, shared: bool, wait: bool) -> LockFile | None:
    """Locks `path`, creating it; None where another process has it and `wait` is False.

    Raises:
        NoLocksError: the file system has no locks.
        OSError: the file cannot be created.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | FLAGS, 0o666)
        try:
            taken = _lock(fd, shared, wait)
            # A lock on a file that was removed in between holds nobody off.
            if taken and not _is_named(fd, path):
                os.close(fd)
                continue
        except OSError as error:
            os.close(fd)
            if error.errno in NO_LOCKS:
                raise NoLocksError(str(path)) from error
            raise
        except BaseException:
            os.close(fd)
            raise
        if taken:
            return LockFile(fd)
        os.close(fd)
        return None


def is_locked(path: Path) -> bool:
    """Whether another process has locked `path`; asked without taking the lock, so nobody is kept from it.

    Of what this process has locked itself nothing may be asked: closing the file here would give its lock back.

    Raises:
        NoLocksError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | FLAGS)
    try:
        return _locked_by_another(fd)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocksError(str(path)) from error
        raise
    finally:
        os.close(fd)


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import portalocker

    def _lock(fd: int, shared: bool, wait: bool) -> bool:
        flags = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
        if not wait:
            flags |= portalocker.LockFlags.NON_BLOCKING
        try:
            portalocker.lock(os.fdopen(fd, "r+b", closefd=False), flags)
        except portalocker.exceptions.AlreadyLocked:
            return False
        return True

    def _locked_by_another(fd: int) -> bool:
        return not _lock(fd, shared=True, wait=False)  # given back as the file is closed

else:
    import fcntl

    def _lock(fd: int, shared: bool, wait: bool) -> bool:
        try:
            fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as POSIX leaves it to the system
            return False
        return True

    # struct flock as F_GETLK reads and answers it: its layout, and where its l_type stands.
    _FLOCK = {"linux": ("@hhqqi0q", 0), "darwin": ("@qqihh", 3)}

    def _locked_by_another(fd: int) -> bool:
        if sys.platform not in _FLOCK:
            return not _lock(fd, shared=True, wait=False)  # given back as the file is closed
        layout, at = _FLOCK[sys.platform]
        question = [0] * len(struct.unpack(layout, bytes(struct.calcsize(layout))))
        question[at] = fcntl.F_RDLCK
        answer = struct.unpack(layout, fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(layout, *question)))
        return bool(answer[at] != fcntl.F_UNLCK)
