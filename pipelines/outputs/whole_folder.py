"""A folder that is whole under its name or not there, as `cache.atomic` is for files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zeus_union.cache.atomic import make_folder, sync_folder
from zeus_union.cache.descriptors import FLAGS
from zeus_union.cache.errors import UserError


@contextmanager
def whole_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Gives a folder beside `folder` to write into, which gets its name, durably, when the block ends without an error.

    An error in the block removes what was written. What a killed process left (.NAME.partial) is removed, and what it had
    taken away to put the new one in its place (.NAME.old) is put back.

    Args:
        replace: what has the name is replaced once the new folder is complete; else it stays.

    Raises:
        UserError: not `replace`, and something has the name.
    """
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    make_folder(folder.parent)
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    if not replace:
        _check_free(folder)
    for left in (partial, old):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        if replace and folder.exists():
            os.rename(folder, old)
        elif folder.exists():
            _check_free(folder)
            folder.rmdir()  # an empty one, which Windows does not rename over
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
    if old.exists():
        _remove(old)


def _check_free(folder: Path) -> None:
    """Raises UserError: something of that name is there, other than an empty folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} exists and is no folder; choose another name or remove it")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists already; give --overwrite to write it again, or another --out")


def _sync(folder: Path) -> None:
    """Makes every file in a folder durable, and the folder's own list of them."""
    for file in sorted(folder.iterdir()):
        descriptor = os.open(file, os.O_RDWR | FLAGS)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def _remove(path: Path) -> None:
    """Removes what has been replaced; what cannot be is left, the new folder is in its place."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
