"""Unpacking a zip or tar of which nobody here knows who made it: only plain files and folders, only below one folder."""

from __future__ import annotations

import errno
import math
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from zeus_union.cache.atomic import require_space
from zeus_union.cache.errors import UserError, first_line
from zeus_union.cache.terminal import bytes_bar, in_words

BLOCK = 1 << 20
ZIP, ZIP_MARK = ".zip", b"PK\x03\x04"
# What macOS puts beside every file: "._NAME" holds its attributes, and ends like the file itself.
JUNK_PREFIX, JUNK = "._", ("__MACOSX", ".DS_Store")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Limits:
    """What an archive may hold of what is taken, by what it declares.

    Attributes:
        total: bytes unpacked.
        files: how many.
        ratio: bytes unpacked for one packed, where they are more than `harmless`.
        harmless: bytes unpacked below which the ratio is not asked.
    """

    total: int
    files: int = 1_000_000
    ratio: float = math.inf
    harmless: int = 0


@dataclass(frozen=True)
class Remedies:
    """What to do about an archive that is refused: how the message ends.

    Attributes:
        unsound: it has names that lead out, links, devices, a name twice, or nothing to take.
        encrypted: it needs a password.
        too_large: it is more than the limits allow.
        damaged: it is truncated, damaged, or no archive.
        no_space: the disk cannot hold what is in it.
    """

    unsound: str
    encrypted: str
    too_large: str
    damaged: str
    no_space: str


@dataclass(frozen=True, eq=False)
class Member:
    """An entry of an archive.

    Attributes:
        name: as it is written in the archive.
        path: the name's parts.
        size: bytes, unpacked.
        kind: 'other' is a link or a device.
        encrypted: whether its content is.
        entry: what the archive's own library calls it.
    """

    name: str
    path: PurePosixPath
    size: int
    kind: Literal["file", "folder", "other"]
    encrypted: bool
    entry: zipfile.ZipInfo | tarfile.TarInfo

    @property
    def is_junk(self) -> bool:
        return any(part in JUNK or part.startswith(JUNK_PREFIX) for part in self.path.parts)

    @property
    def leads_out(self) -> bool:
        """Whether unpacking it may write elsewhere, on any system."""
        parts = self.path.parts
        return (
            self.path.is_absolute()
            or ".." in parts
            or any(_DRIVE.match(part) or "\\" in part or "\0" in part for part in parts)
            or (self.kind == "file" and not parts)
        )


@dataclass(frozen=True)
class Unpacked:
    """How much was unpacked: files and their bytes."""

    files: int
    bytes: int


def is_zip(path: Path) -> bool:
    """Whether a file is called .zip (if it is one, `unpack` says) or is one by its content, under another name."""
    if path.name.lower().endswith(ZIP):
        return True
    with path.open("rb") as file:
        return file.read(len(ZIP_MARK)) == ZIP_MARK


def unpack(
    archive: Path, folder: Path, limits: Limits, remedies: Remedies, *, take: str = "", backslashes: bool = False
) -> Unpacked:
    """Unpacks what a zip or a tar without compression holds below its folder `take` into `folder`, empty or new.

    Everything is looked at before a byte is written: an archive with a name that leads out of the folder, a link, a
    device or an encrypted file is refused whole, whatever of it would be taken. What macOS adds is left.

    Args:
        take: a folder in the archive, e.g. 'Train_Sets/MR'; '': all of it.
        backslashes: they separate folders, as in what some programs on Windows write; else a name with one is refused.
    Raises:
        UserError: damaged, not an archive, unsafe, encrypted, larger than `limits`, or without anything in `take`.
        NoSpaceError: the disk cannot hold it.
    """
    try:
        with _opened(archive) as opened:
            targets = _targets(archive, _members(opened, backslashes), PurePosixPath(take), remedies)
            total = sum(member.size for member in targets.values())
            _check_limits(archive, len(targets), total, limits, remedies)
            folder.mkdir(parents=True, exist_ok=True)
            require_space(folder, total, f"unpacking {archive}", remedies.no_space)
            with bytes_bar() as bar:
                task = bar.add_task(f"unpacking {archive.name}", total=total)
                for path, member in targets.items():
                    try:
                        _write(opened, member, folder / path)
                    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                        raise UserError(
                            f"{archive} holds {member.name!r} beside a name that this disk takes for the same; "
                            f"{remedies.unsound}"
                        ) from error
                    bar.advance(task, member.size)
    except UserError:
        raise
    except Exception as error:  # a flipped byte can lead anywhere in zipfile; only what the system refuses is no damage
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"{archive} is truncated, damaged or no archive ({first_line(error)}); {remedies.damaged}"
        ) from error
    return Unpacked(len(targets), total)


Opened = zipfile.ZipFile | tarfile.TarFile


@contextmanager
def _opened(archive: Path) -> Iterator[Opened]:
    """A tar without compression, so that no few bytes of it become many."""
    if is_zip(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    else:
        with tarfile.open(archive, "r:") as tar:
            yield tar


def _members(opened: Opened, backslashes: bool) -> Iterator[Member]:
    def path_of(name: str) -> PurePosixPath:
        return PurePosixPath(name.replace("\\", "/") if backslashes else name)

    kind: Literal["file", "folder", "other"]
    if isinstance(opened, tarfile.TarFile):
        for info in opened:
            kind = "file" if info.isfile() else "folder" if info.isdir() else "other"
            yield Member(info.name, path_of(info.name), info.size, kind, False, info)
        return
    for entry in opened.infolist():
        name = entry.filename
        mode = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was made on a system without them
        if entry.is_dir() or (backslashes and name.endswith("\\") and not entry.file_size):
            kind = "folder" if mode in (0, stat.S_IFREG, stat.S_IFDIR) else "other"
        else:
            kind = "file" if mode in (0, stat.S_IFREG) else "other"
        yield Member(name, path_of(name), entry.file_size, kind, bool(entry.flag_bits & 1), entry)


def _targets(
    archive: Path, members: Iterable[Member], take: PurePosixPath, remedies: Remedies
) -> dict[PurePosixPath, Member]:
    """Path below the folder -> the file that belongs there.

    Raises:
        UserError: something that a plain archive of data does not have.
    """
    targets: dict[PurePosixPath, Member] = {}
    keys: dict[str, PurePosixPath] = {}
    for member in members:
        _check(archive, member, remedies)
        path = member.path
        if member.kind != "file" or member.is_junk or not path.is_relative_to(take) or path == take:
            continue
        target = path.relative_to(take)
        if (key := _key(target)) in keys:
            raise UserError(f"{archive} holds {member.name!r} twice; nothing was unpacked: {remedies.unsound}")
        keys[key] = target
        targets[target] = member
    folders = {_key(folder) for target in targets for folder in target.parents}
    both = next((target for key, target in keys.items() if key in folders), None)
    if both is not None:
        raise UserError(f"{archive} holds {both} as a file and as a folder; nothing was unpacked: {remedies.unsound}")
    if not targets:
        inside = f" in {take}/" if take.parts else ""
        raise UserError(f"{archive} holds no file{inside}; {remedies.unsound}")
    return targets


def _check(archive: Path, member: Member, remedies: Remedies) -> None:
    """Raises a UserError where unpacking a member would do anything but write a new file below the folder."""
    if member.leads_out:
        raise UserError(
            f"{archive} holds {member.name!r}, which leads out of the folder it is unpacked into; nothing was unpacked: "
            f"{remedies.unsound}"
        )
    if member.kind == "other":
        raise UserError(
            f"{archive} holds {member.name!r}, which is a link or a device; nothing was unpacked: {remedies.unsound}"
        )
    if member.encrypted:
        raise UserError(f"{archive} is encrypted ({member.name!r}); nothing was unpacked: {remedies.encrypted}")


def _key(path: PurePosixPath) -> str:
    """The same for names that are one on the systems that do not tell letters' case, or how accents are written."""
    return unicodedata.normalize("NFC", path.as_posix().casefold())


def _check_limits(archive: Path, files: int, total: int, limits: Limits, remedies: Remedies) -> None:
    """Raises a UserError where the files would be more than is sound."""
    packed = archive.stat().st_size
    if files > limits.files:
        limit = f"more than {limits.files} files"
    elif total > limits.total:
        limit = f"more than {in_words(limits.total)}"
    elif total > limits.harmless and total > limits.ratio * packed:
        limit = f"more than {limits.ratio:g} times its {in_words(packed)}"
    else:
        return
    raise UserError(
        f"{archive} would unpack to {files} files of {in_words(total)}, {limit}; nothing was unpacked: "
        f"{remedies.too_large}"
    )


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
