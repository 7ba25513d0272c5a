"""NAME.zeus.zip: one run or the members of an ensemble, in safetensors, JSON and Markdown alone.

    manifest.json                    format, the runs' folders, and size and sha256 of every other file
    MODEL_CARD.md, card.json
    runs/K/config.json               of run K; then as far as the run has them:
    runs/K/profile.json, projection.safetensors, postprocessing.json, measured.json
    runs/K/weights/last.safetensors, best.safetensors

Nothing of a file is believed before it was compared with what is allowed: its names, its sizes, its digests.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zeus_union.cache.atomic import AtomicFile, require_space
from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.checkpoint import CONFIG, UNPACKED_FROM, load_config

ENDING = ".zeus.zip"
FORMAT = 1
MANIFEST, CARD, MODEL_CARD = "manifest.json", "card.json", "MODEL_CARD.md"
FILES = re.compile(
    r"card\.json|MODEL_CARD\.md|"
    r"runs/\d{1,3}/(config\.json|profile\.json|measured\.json|postprocessing\.json|projection\.safetensors"
    r"|weights/(last|best)\.safetensors)"
)
TENSORS = ".safetensors"
LARGEST_TEXT = 1 << 24  # bytes; ten thousand subjects are 1 MB of config.json
LARGEST_TEXTS = 1 << 28
LONGEST = 1 << 20  # bytes at a time


def stem_of(archive: Path) -> str:
    """What a run of the file is called: brats for brats.zeus.zip."""
    return archive.name.removesuffix(ENDING).removesuffix(".zip") or archive.name


def write_archive(out: Path, files: Mapping[str, bytes | Path]) -> None:
    """Writes a file of `files`, name -> content or the file that has it; the same files give the same bytes.

    Raises:
        UserError: the disk has too little space.
        FileExistsError: something is called `out`.
    """
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    require_space(out.parent if out.parent.is_dir() else Path(), sum(sizes.values()), f"the file {out.name}")
    target = AtomicFile(out, mode=0o644)
    try:
        with zipfile.ZipFile(target, "w") as archive:
            listed = {}
            for name, content in sorted(files.items()):
                listed[name] = {"bytes": sizes[name], "sha256": _add(archive, name, content, sizes[name])}
            manifest = json.dumps({"format": FORMAT, "files": listed}, indent=1, sort_keys=True).encode()
            _add(archive, MANIFEST, manifest, len(manifest))
        target.commit(replace=False)
    finally:
        target.discard()


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path, size: int) -> str:
    """Adds a file and returns its sha256; tensors are stored as they are, texts compressed."""
    entry = zipfile.ZipInfo(name)  # of 1980: no time of this machine
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(TENSORS) else zipfile.ZIP_DEFLATED
    entry.create_system = 3
    entry.file_size = size
    digest = hashlib.sha256()
    with archive.open(entry, "w") as written:
        for block in _blocks(content):
            digest.update(block)
            written.write(block)
    return digest.hexdigest()


def _blocks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as file:
        while block := file.read(LONGEST):
            yield block


def unpack(archive: Path, folder: Path) -> tuple[Path, ...]:
    """Unpacks a file into `folder`, which is there and empty; its runs' folders, in their order.

    Raises:
        UserError: no such file; damaged, cut off, of another version, or with something in it that is none of a run's files
            or not as large as it says; `folder` is then not to be used.
    """
    if not archive.is_file():
        raise UserError(f"{archive} does not exist; zeus export writes such a file")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked_entries(archive, opened)
            listed = _manifest(archive, opened, entries)
            require_space(folder, sum(entry.file_size for entry in entries.values()), f"unpacking {archive.name}")
            for name in listed:
                _take(archive, opened, entries[name], listed[name], folder / name)
    except UserError:
        raise
    except Exception as error:  # a flipped byte can lead anywhere in zipfile; only what the system refuses is no damage
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(f"{archive} is damaged or no {ENDING} file ({error}); copy it again") from error
    numbers = sorted({int(name.split("/")[1]) for name in listed if name.startswith("runs/")})
    runs = tuple(folder / "runs" / str(number) for number in numbers)
    if not runs or not all(f"runs/{number}/{CONFIG}" in listed for number in numbers):
        raise UserError(f"{archive} has no run in it, or one without its {CONFIG}; export it again")
    return runs


def unpack_runs(archive: Path, folder: Path) -> tuple[Path, ...]:
    """`unpack`, and what came out are runs of this version.

    Raises:
        UserError: as `unpack`; a description that this version cannot read.
    """
    runs = unpack(archive, folder)
    for run in runs:
        try:
            load_config(run)
        except UserError as error:
            raise UserError(
                f"{archive} holds a run that is damaged or of another version of Zeus ({error.__cause__ or error}); export it "
                "again with this version"
            ) from error
    return runs


def _checked_entries(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name -> entry of a zip in which nothing is but a run's files, each within its limits.

    Raises:
        UserError: naming what is wrong; nothing was unpacked.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    nothing = f"nothing of {archive} was unpacked; take files from zeus export alone"
    for entry in opened.infolist():
        name = entry.orig_filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not (name == MANIFEST or FILES.fullmatch(name)) or kind not in (0, stat.S_IFREG):
            raise UserError(f"{archive} holds {name!a}, which is none of a run's files; {nothing}")
        if name in entries:
            raise UserError(f"{archive} holds {name} twice; {nothing}")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if entry.flag_bits & 1 or not (stored or entry.compress_type == zipfile.ZIP_DEFLATED):
            raise UserError(f"{archive} holds {name} encrypted or in a compression of its own; {nothing}")
        if name.endswith(TENSORS) and not (stored and entry.file_size == entry.compress_size):
            raise UserError(f"{archive} holds {name} compressed, which no export does; {nothing}")
        if not name.endswith(TENSORS) and entry.file_size > LARGEST_TEXT:
            raise UserError(f"{archive} holds {name} of {entry.file_size / 1e6:.0f} MB; {nothing}")
        entries[name] = entry
    texts = sum(entry.file_size for name, entry in entries.items() if not name.endswith(TENSORS))
    if texts > LARGEST_TEXTS or sum(entry.compress_size for entry in entries.values()) > archive.stat().st_size:
        raise UserError(f"{archive} unpacks into more than is in it, or than any run needs; {nothing}")
    if MANIFEST not in entries:
        raise UserError(f"{archive} has no {MANIFEST}; {nothing}")
    return entries


def _manifest(archive: Path, opened: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Name -> bytes and sha256 of every other file.

    Raises:
        UserError: of another version, or it lists other files than there are.
    """
    try:
        manifest = json.loads(_read(opened, entries[MANIFEST]))
        version, listed = manifest["format"], dict(manifest["files"])
        if version == FORMAT and not all(
            isinstance(facts["sha256"], str) and facts["bytes"] == entries[name].file_size
            for name, facts in listed.items()
            if name in entries
        ):
            raise ValueError("a size differs")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{archive}: its {MANIFEST} is damaged ({error}); copy it again") from error
    if version != FORMAT:
        raise UserError(
            f"{archive} is of another version of Zeus: format {version!a}, this one reads {FORMAT}; export it with this one, "
            "or install that version"
        )
    if other := sorted({*listed} ^ ({*entries} - {MANIFEST})):
        raise UserError(f"{archive} has other files than its {MANIFEST} lists: {other[0]!a}; copy it again")
    return listed


def _read(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """At most as much as the entry says; whatever else comes out is damage."""
    with opened.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise EOFError(f"{entry.filename} is not as long as it says")
    return content


def _take(
    archive: Path, opened: zipfile.ZipFile, entry: zipfile.ZipInfo, facts: Mapping[str, Any], target: Path
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry.file_size
    with opened.open(entry) as file, open(target, "xb") as written:
        while left and (block := file.read(min(LONGEST, left))):
            digest.update(block)
            written.write(block)
            left -= len(block)
        if left or file.read(1):
            raise EOFError(f"{entry.filename} is not as long as it says")
    if digest.hexdigest() != facts["sha256"]:
        raise UserError(f"{archive}: {entry.filename} is not what was exported (its digest differs); copy it again")


@contextmanager
def opened_runs(paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """The run folders behind `paths`, which are folders or files of zeus export; unpacked for the time of the block.

    A folder that zeus import made of several runs stands for all of them.

    Raises:
        UserError: as `unpack`.
    """
    with TemporaryDirectory(prefix="zeus-") as temporary:
        folders: list[Path] = []
        for number, path in enumerate(paths):
            if path.is_file():
                inside = Path(temporary) / str(number)
                inside.mkdir()
                unpacked = unpack_runs(path, inside)
                # Called as the file is, for those who read of the run.
                names = [stem_of(path) + (f"-{run.name}" if len(unpacked) > 1 else "") for run in unpacked]
                for run, name in zip(unpacked, names):
                    (run / UNPACKED_FROM).write_text(str(path.with_name(name)), encoding="utf-8")
                    folders.append(run.rename(inside / name))
            elif (path / CARD).is_file() and not (path / CONFIG).is_file():
                folders += sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
            else:
                folders.append(path)
        yield tuple(folders)
