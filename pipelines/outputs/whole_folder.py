"""A folder that is whole under its name or not there, as `cache.atomic` is for files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zeus_union.cache.atomic import make_folder, sync_folder
from zeus_union.cache.descriptors import FLAGS
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import some_of


@contextmanager
def whole_folder(folder: Path, replace: bool, ours: Callable[[str], bool]) -> Iterator[Path]:
    """Gives a folder beside `folder` to write into, which gets its name, durably, when the block ends without an error.

    An error in the block removes what was written. What a killed process left (.NAME.partial) is removed, and what it had
    taken away to put the new one in its place (.NAME.old) is put back.

    Args:
        replace: a folder of that name is replaced once the new one is complete; else it stays.
        ours: whether a file of this name may go with the folder that is replaced.

    Raises:
        UserError: what has the name is no folder, or not `replace`, or holds a file that is not `ours`.
    """
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    make_folder(folder.parent)
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    _check_replaceable(folder, replace, ours)
    for left in (partial, old):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        _check_replaceable(folder, replace, ours)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(partial, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)  # what cannot be removed is left: the new folder is in its place


def _check_replaceable(folder: Path, replace: bool, ours: Callable[[str], bool]) -> None:
    """Raises UserError: something of that name is there that has to stay; an empty folder has not."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} exists and is not a folder of results; choose another --out or remove it")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if names and not replace:
        raise UserError(f"{folder} exists already; give --overwrite to write it again, or another --out")
    strangers = [name for name in names if not ours(name)]
    if strangers:
        raise UserError(
            f"{folder} also holds {some_of(strangers, 3)}, which zeus did not write; it is not replaced, move "
            f"{'it' if len(strangers) == 1 else 'them'} away or choose another --out"
        )


def _sync(folder: Path) -> None:
    """Makes every file in a folder durable, and the folder's own list of them."""
    for file in sorted(folder.iterdir()):
        descriptor = os.open(file, os.O_RDWR | FLAGS)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
