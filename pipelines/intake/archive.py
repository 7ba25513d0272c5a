"""A .zip of a study, unpacked into a folder of its own, or refused before a byte is written."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.studies.file_formats import ENDINGS, ending_of

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What an archive may hold, by what it declares.

    Attributes:
        total: bytes unpacked. A whole-body CT with all its reconstructions is some 10 GB.
        ratio: bytes unpacked for one packed, of an archive of more than `harmless` bytes; images are packed to a half to a
            tenth, label maps to a hundredth.
        harmless: bytes unpacked below which the ratio is not asked.
        files: how many.
    """

    total: int = 64 << 30
    ratio: float = 200.0
    harmless: int = 256 << 20
    files: int = 200_000


def is_archive(path: Path) -> bool:
    """Whether a file is called .zip; whether it is one, `unpack` says. Or is one by its content, under another name."""
    if not path.is_file() or ending_of(path) in ENDINGS:
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".zip" or file.read(4) == b"PK\x03\x04"


def unpack(archive: Path, into: Path, limits: Limits | None = None) -> None:
    """All files of a .zip below `into`, an empty folder.

    Raises:
        UserError: no zip, damaged or truncated, encrypted; names that lead out of the folder, links, a name twice; more
            than `limits` allow, or than the disk has free.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            _check_names(archive, members)
            _check_sizes(archive, members, limits or Limits(), shutil.disk_usage(into).free)
            for member in members:
                target = into.joinpath(*_parts(member.filename))
                if not target.is_relative_to(into):  # whatever a system takes for a path from its root
                    raise UserError(f"{archive} holds {member.filename!r}, which leads out of its folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{archive} cannot be unpacked ({' '.join(str(error).split())[:120] or type(error).__name__}); it is truncated, "
            "damaged or no zip, copy it again"
        ) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"{archive} holds a file and a folder of one name ({error.filename}); pack it again") from error


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _check_names(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raises a UserError where unpacking would write anywhere but into new files below the folder."""
    names: set[str] = set()
    for member in members:
        name, parts = member.filename, _parts(member.filename)
        if not parts or parts[0].startswith("/") or ".." in parts or ":" in parts[0]:
            raise UserError(f"{archive} holds {name!r}, which leads out of its folder; nothing was unpacked")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind and kind != stat.S_IFREG:
            raise UserError(
                f"{archive} holds {name!r}, a link or device and no file; nothing was unpacked, pack it again"
            )
        if member.flag_bits & 0x1:
            raise UserError(f"{archive} is encrypted ({name!r}); unpack it with its password and give the folder")
        key = "/".join(parts).casefold()  # one file on the systems that do not tell letters' case
        if key in names:
            raise UserError(f"{archive} holds {name!r} twice; nothing was unpacked, pack it again")
        names.add(key)


def _check_sizes(archive: Path, members: list[zipfile.ZipInfo], limits: Limits, free: int) -> None:
    """Raises a UserError where the files would be more than is sound or than fits."""
    total = sum(member.file_size for member in members)
    packed = max(1, archive.stat().st_size)
    if len(members) > limits.files:
        raise UserError(
            f"{archive} holds {len(members)} files, more than {limits.files}; unpack it and give the folder"
        )
    if total > limits.total or (total > limits.harmless and total > limits.ratio * packed):
        raise UserError(
            f"{archive} of {_size(packed)} would become {_size(total)}; that is no study, nothing was unpacked (if it is one, "
            "unpack it and give the folder)"
        )
    if total > free:
        raise UserError(
            f"{archive} needs {_size(total)} unpacked, the folder for temporary files has {_size(free)} free; free some or "
            "set TMPDIR to a folder on another disk"
        )


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "KB", "MB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GB"
