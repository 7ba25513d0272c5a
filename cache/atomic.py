"""Files that are either whole under their final name or not there at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
_TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.tmp")


class AtomicFile:
    """A file object for h5py and pyarrow that gets its name by `commit` only.

    An error while writing is kept, the rest of what is written is dropped, and `check` or `commit` raises it: HDF5
    crashes the process when it cannot write its metadata on a full disk (h5py #914), so it must never notice.
    """

    closed = False

    def __init__(self, final: Path, mode: int = 0o444) -> None:
        """Args: mode: the file's permissions from `commit` on; read-only by default."""
        make_folder(final.parent)
        self.final = final
        self._mode = mode
        self.temporary = final.with_name(f".{final.name}.{_HOST}.{os.getpid()}.tmp")
        self._fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._position = 0
        self._error: BaseException | None = None

    def write_at(self, offset: int, data: Any) -> None:
        view = memoryview(data).cast("B")
        try:
            while self._error is None and len(view):
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except BaseException as error:
            self._error = error

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        self.write_at(self._position, data)
        self._position += count
        return count

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._fd, [buffer], self._position)
        self._position += count
        return count

    def read(self, count: int) -> bytes:
        data = os.pread(self._fd, count, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        try:
            if self._error is None:
                os.ftruncate(self._fd, size)
        except BaseException as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered here."""

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def check(self) -> None:
        """Raises what went wrong while writing; an OSError names the final file."""
        if isinstance(self._error, OSError):
            raise OSError(self._error.errno, os.strerror(self._error.errno or 0), str(self.final)) from self._error
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        self.check()
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._error = error
            self.check()

    def commit(self) -> None:
        """Makes the file durable and gives it its final name, replacing what had it."""
        self.sync()
        os.fchmod(self._fd, self._mode)
        os.replace(self.temporary, self.final)
        self.close()
        sync_folder(self.final.parent)

    def discard(self) -> None:
        """Removes the temporary file; nothing happens after `commit`."""
        if not self.closed:
            self.close()
            self.temporary.unlink(missing_ok=True)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Creates `folder` and its parents durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def require_space(folder: Path, count: int, what: str) -> None:
    """Refuses to begin what would not fit.

    Raises:
        UserError: fewer than `count` bytes (and 2 %) are free where `folder` is.
    """
    free, needed = shutil.disk_usage(folder).free, int(count * 1.02) + (1 << 16)
    if free < needed:
        raise UserError(
            f"no space left: {what} needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free at {folder}; "
            "free some and run the same command again: it goes on where it stopped"
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def remove_stale(folder: Path) -> None:
    """Removes the temporary files of processes of this machine that have ended (or had this process's own id)."""
    for file in folder.glob(".*.tmp"):
        name = _TEMPORARY.fullmatch(file.name)
        if name and name["host"] == _HOST and (int(name["pid"]) == os.getpid() or not _alive(int(name["pid"]))):
            file.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """A small file, whole under its name or not there at all; replaces what had the name."""
    file = AtomicFile(path, mode=0o644)
    try:
        file.write(data)
        file.commit()
    finally:
        file.discard()
