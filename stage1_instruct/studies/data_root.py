"""Where a data set lies, where its user names a folder above it or inside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, say, some_of

BELOW = 2  # levels: nnUNet_raw/DatasetXXX from the folder that holds nnUNet_raw
WIDE = 1000  # folders; a place with more of them is no shelf of data sets, and is not searched


def find_root(
    root: Path, holds: Callable[[Path], bool], inside: frozenset[str] = frozenset(), name: str | None = None
) -> Path:
    """The folder of the data set: `root`, the folder that `root` is a part of, or the only one up to two levels below.

    Says so where it is another than `root`. Where there is none it is `root`, whose reader says what it misses.

    Args:
        holds: whether a folder is a data set's.
        inside: names of the folders in a data set, in lower case.
        name: a data set's folder, in any case: it is taken where there are several.

    Raises:
        UserError: several data sets below, which are listed.
    """
    if not root.is_dir() or holds(root):
        return root
    above = root.absolute().parent
    if root.absolute().name.casefold() in inside and holds(above):
        say(f"{root} is part of the data set {above}, which is read")
        return above
    found = next((found for found in _levels(root, holds) if found), [])
    named = [folder for folder in found if name is not None and folder.name.casefold() == name.casefold()]
    if len(named or found) > 1:
        names = [str(folder.relative_to(root)) for folder in found]
        raise UserError(
            f"{root} holds {counted(len(found), 'data set')}: {some_of(names)}; give the folder of one with --data-root"
        )
    if not found:
        return root
    folder = (named or found)[0]
    say(f"the data set is {folder}, in the given {root}")
    return folder


def _levels(root: Path, holds: Callable[[Path], bool]) -> Iterator[list[Path]]:
    """The data sets one level below `root`, then those on the next level; what is in a data set is not searched."""
    folders = [root]
    for _ in range(BELOW):
        folders = [child for folder in folders for child in _children(folder)]
        if len(folders) > WIDE:
            return
        yield [folder for folder in folders if holds(folder)]


def _children(folder: Path) -> list[Path]:
    """Its folders by name, hidden ones left out; none where they cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []
