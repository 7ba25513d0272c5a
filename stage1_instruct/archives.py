"""Unpacking a zip or tar of which nobody here knows who made it: only plain files and folders, only below one folder."""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from zeus_union.cache.atomic import require_space
from zeus_union.cache.errors import UserError, first_line
from zeus_union.cache.terminal import bytes_bar

BLOCK = 1 << 20
MOST_FILES = 1_000_000
# What macOS puts beside every file: "._NAME" holds its attributes, and ends like the file itself.
JUNK_PREFIX, JUNK = "._", ("__MACOSX", ".DS_Store")
_DRIVE = re.compile(r"[A-Za-z]:")
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, eq=False)
class Member:
    """An entry of an archive.

    Attributes:
        name: as it is written in the archive.
        size: bytes, unpacked.
        kind: 'other' is a link or a device.
        entry: what the archive's own library calls it.
    """

    name: str
    size: int
    kind: Literal["file", "folder", "other"]
    entry: zipfile.ZipInfo | tarfile.TarInfo

    @property
    def is_junk(self) -> bool:
        parts = PurePosixPath(self.name).parts
        return any(part in JUNK or part.startswith(JUNK_PREFIX) for part in parts)


@dataclass(frozen=True)
class Unpacked:
    """How much was unpacked: files and their bytes."""

    files: int
    bytes: int


def unpack(archive: Path, folder: Path, take: str, most_bytes: int) -> Unpacked:
    """Unpacks what an archive (.zip or .tar) holds below its folder `take` into `folder`, which must be empty or new.

    Everything is looked at before a byte is written: an archive with a name that leads out of the folder, a link or a
    device is refused whole, whatever of it would be taken. What macOS adds is left.

    Args:
        take: a folder in the archive, e.g. 'Train_Sets/MR'; '': all of it.
        most_bytes: the files may have together.
    Raises:
        UserError: damaged, not an archive, unsafe, larger than `most_bytes`, or without anything in `take`.
        NoSpaceError: the disk cannot hold it.
    """
    try:
        with _opened(archive) as opened:
            members = list(_members(opened))
            targets = _targets(archive, members, PurePosixPath(take))
            total = sum(member.size for member in targets.values())
            if total > most_bytes or len(targets) > MOST_FILES:
                raise UserError(
                    f"{archive} would unpack to {len(targets)} files of {total / 1e6:.0f} MB, expected at most "
                    f"{most_bytes / 1e6:.0f} MB; nothing was unpacked: it is not the archive that it should be, delete it"
                )
            folder.mkdir(parents=True, exist_ok=True)
            require_space(folder, total, f"unpacking {archive.name}")
            with bytes_bar() as bar:
                task = bar.add_task(f"unpacking {archive.name}", total=total)
                for path, member in targets.items():
                    _write(opened, member, folder / path)
                    bar.advance(task, member.size)
    except _BROKEN as error:
        raise UserError(
            f"{archive} is damaged or no archive ({first_line(error)}); delete it and run the same command again"
        ) from error
    return Unpacked(len(targets), total)


Opened = zipfile.ZipFile | tarfile.TarFile


@contextmanager
def _opened(archive: Path) -> Iterator[Opened]:
    """By its name; a tar without compression, so that no few bytes of it become many."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    else:
        with tarfile.open(archive, "r:") as tar:
            yield tar


def _members(opened: Opened) -> Iterator[Member]:
    if isinstance(opened, tarfile.TarFile):
        for info in opened:
            yield Member(info.name, info.size, "file" if info.isfile() else "folder" if info.isdir() else "other", info)
        return
    for entry in opened.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was made on a system without them
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        yield Member(
            entry.filename, entry.file_size, "other" if not plain else "folder" if entry.is_dir() else "file", entry
        )


def _targets(archive: Path, members: list[Member], take: PurePosixPath) -> dict[PurePosixPath, Member]:
    """Path below the folder -> the file that belongs there.

    Raises:
        UserError: something that a plain archive of data does not have.
    """
    targets: dict[PurePosixPath, Member] = {}
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\\0]", member.name) or _DRIVE.match(member.name):
            raise UserError(
                f"{archive} holds {member.name!r}, which leads out of the folder it is unpacked into; nothing was unpacked: "
                "it is not the archive that it should be, delete it"
            )
        if member.kind == "other":
            raise UserError(
                f"{archive} holds {member.name!r}, which is a link or a device; nothing was unpacked: it is not the archive "
                "that it should be, delete it"
            )
        if member.kind != "file" or member.is_junk or not path.is_relative_to(take) or path == take:
            continue
        target = path.relative_to(take)
        if target in targets:
            raise UserError(
                f"{archive} holds {member.name!r} twice; it is not the archive that it should be, delete it"
            )
        targets[target] = member
    folders = {folder for target in targets for folder in target.parents}
    both = next((target for target in targets if target in folders), None)
    if both is not None:
        raise UserError(
            f"{archive} holds {both} as a file and as a folder; it is not the archive that it should be, delete it"
        )
    if not targets:
        raise UserError(f"{archive} holds no file in {take}/; it is not the archive that it should be, delete it")
    return targets


def _write(opened: Opened, member: Member, path: Path) -> None:
    """One file with the permissions of a new one, whatever the archive says.

    Raises:
        EOFError: it does not have the length that the archive says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    source: IO[bytes] | None
    if isinstance(opened, tarfile.TarFile):
        source = opened.extractfile(member.entry)  # type: ignore[arg-type]
    else:
        source = opened.open(member.entry)  # type: ignore[arg-type]
    if source is None:
        raise EOFError(f"{member.name} cannot be read")
    count = 0
    with source, path.open("xb") as file:
        while count <= member.size and (block := source.read(BLOCK)):
            file.write(block)
            count += len(block)
    if count != member.size:
        raise EOFError(f"{member.name} has {count} bytes, expected {member.size}")
