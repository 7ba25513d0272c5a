"""A .zip of a study, unpacked into a folder of its own, or refused before a byte is written."""

from __future__ import annotations

from pathlib import Path

from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.stage1_instruct import archives
from zeus_union.stage1_instruct.archives import Limits, Remedies, is_zip
from zeus_union.stage1_instruct.studies.file_formats import ENDINGS, ending_of

# A whole-body CT with all its reconstructions is some 10 GB; images are packed to a half to a tenth, label maps to a
# hundredth.
LIMITS = Limits(total=64 << 30, files=200_000, ratio=200.0, harmless=256 << 20)
REMEDIES = Remedies(
    unsound="pack it again",
    encrypted="unpack it with its password and give the folder",
    too_large="if it is a study, unpack it and give the folder",
    damaged="copy it again",
    no_space="free some or set TMPDIR to a folder on another disk",
)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip and no volume file."""
    return path.is_file() and ending_of(path) not in ENDINGS and is_zip(path)


def unpack(archive: Path, into: Path, limits: Limits = LIMITS) -> None:
    """All files of a .zip below `into`, an empty folder; backslashes in names separate folders.

    Raises:
        UserError: as `archives.unpack`; the disk cannot hold it, which is this study's own failure: others may fit.
    """
    try:
        archives.unpack(archive, into, limits, REMEDIES, backslashes=True)
    except NoSpaceError as error:
        raise UserError(str(error)) from error
