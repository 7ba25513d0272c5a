"""Files that are either whole under their final name or not there at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from zeus_union.cache.descriptors import FLAGS, read_at, write_at
from zeus_union.cache.errors import NoSpaceError

_TEMPORARY = re.compile(r"\.(?P<final>.+)\.[0-9a-f]{8}\.tmp")

RESUMES = "free some and run the same command again: it resumes"

# What a file system answers that has no such operation (exFAT, some network and user-space ones).
NOT_SUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class AtomicFile:
    """A file object for h5py and pyarrow that gets its name by `commit` only.

    An error while writing is kept, the rest of what is written is dropped, and `check` or `commit` raises it: HDF5
    crashes the process when it cannot write its metadata on a full disk (h5py #914), so it must never notice.
    """

    closed = False

    def __init__(self, final: Path, mode: int = 0o444) -> None:
        """Args: mode: the file's permissions from `commit` on, as far as the umask allows; read-only by default."""
        make_folder(final.parent)
        self.final = final
        self._mode = mode
        self.temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        self._fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | FLAGS, 0o666)
        self._position = 0
        self._error: BaseException | None = None

    def write_at(self, offset: int, data: Any) -> None:
        view = memoryview(data).cast("B")
        try:
            while self._error is None and len(view):
                written = write_at(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except BaseException as error:
            self._error = error

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        self.write_at(self._position, data)
        self._position += count
        return count

    def readinto(self, buffer: Any) -> int:
        count = read_at(self._fd, buffer, self._position)
        self._position += count
        return count

    def read(self, count: int) -> bytes:
        data = bytearray(count)
        read = self.readinto(data)
        return bytes(data[:read])

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

    def commit(self, replace: bool = True) -> None:
        """Makes the file durable and gives it its final name.

        Args:
            replace: what has the name; else it stays.

        Raises:
            FileExistsError: not `replace`, and something has the name.
        """
        self.sync()
        self._restrict()
        if os.name == "nt":  # where an open file cannot be renamed
            os.close(self._fd)
            self._fd = -1
        if replace:
            os.replace(self.temporary, self.final)
        else:
            _rename_to_free_name(self.temporary, self.final)
        self.close()
        sync_folder(self.final.parent)

    def _restrict(self) -> None:
        """Permissions of `mode` that the umask left when the file was created; nothing where there are none."""
        if hasattr(os, "fchmod") and os.name != "nt":
            try:
                os.fchmod(self._fd, self._mode & os.fstat(self._fd).st_mode)
            except OSError as error:
                if error.errno not in (*NOT_SUPPORTED, errno.EPERM):
                    raise

    def discard(self) -> None:
        """Removes the temporary file; nothing happens after `commit`."""
        if not self.closed:
            self.close()
            self.temporary.unlink(missing_ok=True)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self._fd >= 0:
                os.close(self._fd)


def _rename_to_free_name(temporary: Path, final: Path) -> None:
    """Renames unless something has the name.

    Raises:
        FileExistsError: something has it.
    """
    if os.name == "nt":
        os.rename(temporary, final)  # refuses there
        return
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.EPERM, errno.EMLINK, errno.EXDEV):
            raise
        # No hard links: whoever creates the name has it.
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o666))
        os.replace(temporary, final)
    else:
        sync_folder(final.parent)
        os.unlink(temporary)


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable, where the system can do that."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY | FLAGS)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Creates `folder` and its parents durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def require_space(folder: Path, count: int, what: str, remedy: str = RESUMES) -> None:
    """Refuses to begin what would not fit.

    Args:
        remedy: what to do about it, as the message ends.

    Raises:
        NoSpaceError: fewer than `count` bytes (and 2 %) are free where `folder` is.
    """
    free, needed = shutil.disk_usage(folder).free, int(count * 1.02) + (1 << 16)
    if free < needed:
        raise NoSpaceError(
            f"no space left: {what} needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free at {folder}; {remedy}"
        )


def find_temporaries(folder: Path) -> Iterator[tuple[str, Path]]:
    """(final name, temporary file) of what is being written in `folder`, or was left there by a process that was killed."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if temporary := _TEMPORARY.fullmatch(entry.name):
                yield temporary["final"], Path(entry.path)


def remove_temporaries(folder: Path, finals: Iterable[str] | None = None) -> None:
    """Removes the temporary files of the final names `finals` (None: of all), which must be nobody else's work."""
    wanted = None if finals is None else set(finals)
    for final, file in list(find_temporaries(folder)):
        if wanted is None or final in wanted:
            file.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """A small file, whole under its name or not there at all; replaces what had the name."""
    file = AtomicFile(path, mode=0o644)
    try:
        file.write(data)
        file.commit()
    finally:
        file.discard()
