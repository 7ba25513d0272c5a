"""Which files below a folder are DICOM: by what is in them, not by what they are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pydicom

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import warn

# A file that is called so has to be DICOM: one that is none is damaged, not a stranger.
SUFFIXES = (".dcm", ".dicom", ".ima")
# What systems leave in folders, besides hidden files.
LEFTOVERS = ("thumbs.db", "desktop.ini", "dicomdir", "lockfile", "version")
LEFTOVER_FOLDERS = ("__MACOSX", "@eaDir")
_MAGIC_AT, _MAGIC = 128, b"DICM"
# The class of a DICOMDIR, as the file's meta information gives it, whatever the file is called.
_DIRECTORY_CLASS = b"UI\x14\x001.2.840.10008.1.3.10"
# Files without preamble begin with group 0002 or 0008, in either byte order.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def dicom_files(folder: Path) -> list[Path]:
    """All DICOM files below `folder`, in natural order; links to folders are followed, each folder once.

    Passed by: hidden files, DICOMDIR and what systems leave behind, without a word; anything else that is not DICOM with a
    line that names it.

    Raises:
        UserError: a link that leads nowhere, or a file that is called like the DICOM files beside it and is none.
    """
    files: list[Path] = []
    strangers: list[Path] = []
    for path in _walk(folder):
        (files if path.suffix.lower() in SUFFIXES or is_dicom(path) else strangers).append(path)
    _check_strangers(folder, files, [path for path in strangers if path.name.lower() not in LEFTOVERS])
    return sorted(files, key=lambda path: natural_key(path.as_posix()))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content: with the preamble and its magic word, or a bare data set; no DICOMDIR.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it again") from error
    if head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC:
        return _DIRECTORY_CLASS not in head
    return is_bare(path, head)


def is_bare(path: Path, head: bytes) -> bool:
    """Whether a file without the magic word is a DICOM data set all the same.

    Args:
        head: its first bytes.
    """
    if head[:2] not in _FIRST_GROUPS:
        return False
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID", "Rows"])
        return bool(header.get("SOPClassUID") or header.get("Rows"))
    except Exception:
        return False


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts 'slice2' before 'slice10'; names that differ in zeros or case alone keep an order of their own."""
    parts = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]
    return (*parts, (2, 0, name))


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below `folder` that is not hidden, through links to folders, each real folder once."""
    if not folder.is_dir():
        return
    visited = set()
    for base, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(base)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in LEFTOVER_FOLDERS)
        for name in names:
            path = Path(base) / name
            if name.startswith("."):
                continue
            if not path.exists():
                raise UserError(f"{path} is a link to a file that is not there; restore the file or remove the link")
            if path.is_file():
                yield path


def _raise(error: OSError) -> None:
    raise error


def _check_strangers(folder: Path, files: Iterable[Path], strangers: Sequence[Path]) -> None:
    """Says which files are passed by; raises a UserError where one is called like the DICOM files beside it."""
    patterns = {(path.parent, re.sub(r"[0-9]+", "#", path.name)) for path in files}
    for path in strangers:
        if (path.parent, re.sub(r"[0-9]+", "#", path.name)) in patterns:
            raise UserError(
                f"{path} cannot be read as DICOM, although its name is like those of the DICOM files next "
                f"to it; copy it again or remove it"
            )
    if strangers and patterns:
        named = ", ".join(path.relative_to(folder).as_posix() for path in strangers[:3])
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        warn(f"{folder}: {named}{more} skipped, not DICOM")
