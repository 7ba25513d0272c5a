"""Who works on what, where several processes build one cache: locks that end with their process.

Nothing is split beforehand. Whoever is free takes the next subject that is neither finished nor taken, so the load
balances itself by the time that slices really take, and the subject of a process that was lost is taken by another.

A cache has one lock beside it, which is never deleted: whoever has a subject in work shares it, whoever finishes the
cache (packs it, removes shards) has it alone. The lock files of the subjects are opened only under the shared lock, so
the one that is alone may remove them with the shard folder.

A subject's lock file says who has it (`zeus_union.cache.holders` reads it), and is emptied when it is given back: one that is
neither empty nor locked was left by a process that was lost.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zeus_union.cache.atomic import make_folder
from zeus_union.cache.locks import LockFile, NoLocksError, acquire


@dataclass
class _Held:
    """A lock of this process.

    Attributes:
        file: None where the file system has no locks.
        users: how many blocks share it.
    """

    file: LockFile | None
    shared: bool
    users: int = 0


# Record locks belong to a process and end when it closes any descriptor of the file, so no file is opened twice. By
# process id, as a forked child inherits this table but not the locks.
_held: dict[tuple[int, str], _Held] = {}
# Held while a lock is waited for, so whoever waits must have nothing in work in another thread.
_table = threading.RLock()


@contextmanager
def lock(path: Path, shared: bool = False, wait: bool = False, real: bool = True) -> Iterator[bool]:
    """Whether the lock `path` is this process's for the time of the block.

    Args:
        shared: with all others that share it; this process may share it several times.
        wait: until whoever has it is done.
        real: False guards against this process alone, for a file system without locks.

    Raises:
        RuntimeError: this process waits for itself.
        NoLocksError: the file system has no locks.
    """
    key = _key(path)
    with _table:
        held = _take(key, path, shared, wait, real)
    if held is None:
        yield False
        return
    try:
        yield True
    finally:
        with _table:
            held.users -= 1
            if not held.users:
                del _held[key]
                if held.file is not None:
                    held.file.close()


def _take(key: tuple[int, str], path: Path, shared: bool, wait: bool, real: bool) -> _Held | None:
    """The lock with one user more; None where somebody else has it."""
    held = _held.get(key)
    if held is not None and not (shared and held.shared):
        if wait:
            raise RuntimeError(f"this process has {path} already and would wait for itself")
        return None
    if held is None:
        file = acquire(path, shared, wait) if real else None
        if real and file is None:
            return None
        held = _held[key] = _Held(file, shared)
    held.users += 1
    return held


@contextmanager
def claim(
    folder: Path,
    name: str,
    wait: bool = False,
    real: bool = True,
    mark: bytes = b"-",
    take_over: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Whether `name` is this process's for the time of the block; a nested claim of the same name is refused.

    Args:
        folder: where the lock files are; one that all processes see.
        wait, real: as for `lock`.
        mark: who this is, written into the lock file for the time of the block.
        take_over: called before the block where whoever had the name last was lost.
    """
    if real:
        make_folder(folder)
    path = folder / f"{name}.lock"
    with lock(path, wait=wait, real=real) as ours:
        file = _held[_key(path)].file if ours else None
        if file is None:
            yield ours
            return
        if file.mark:
            take_over()
        with suppress(OSError):  # on a full disk: what only tells people is no reason to end
            file.mark = mark
        try:
            yield True
        finally:
            with suppress(OSError):
                file.mark = b""


def held_here(path: Path) -> bool:
    """Whether this process has the lock `path`."""
    return _key(path) in _held


def _key(path: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(path)


@contextmanager
def lock_if_possible(path: Path, shared: bool = False, wait: bool = False) -> Iterator[bool]:
    """As `lock`; also True where the file system has no locks or cannot be written, so that nobody builds there."""
    with ExitStack() as stack:
        try:
            ours = stack.enter_context(lock(path, shared, wait))
        except (NoLocksError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            ours = True
        yield ours


def has_locks(path: Path) -> bool:
    """Whether the file system of the lock file `path` has locks; takes and gives back a shared one.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        with lock(path, shared=True):
            return True
    except NoLocksError:
        return False
