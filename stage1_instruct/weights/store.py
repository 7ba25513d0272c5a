"""Where the frozen models' weights lie: a per-user folder, what is in it, and the digest that stands for each model."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.stage1_instruct.weights.sources import HUB_PREFIX, ByHand, Link, advice_on, source_of

REMEMBER_ABOVE = 1 << 26  # bytes; what is smaller is read again each time
_WEIGHTS = {".safetensors", ".bin", ".pth", ".gguf"}
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
        if not is_sound(part, check_digests=False):
            what = "lie behind a share link" if isinstance(source, ByHand) else "are not there"
            raise UserError(
                f"the weights of {part} {what}; zeus-instruct fetch with the same --models (and --set) "
                f"gets them into {zeus_home()}, or says what to do"
            )
        return folder_of(part) / source.weights if isinstance(source, Link) else folder_of(part)
    return existing_path(part)


def existing_path(part: str) -> Path:
    """A part that is a path.

    Raises:
        UserError: there is nothing there.
    """
    path = Path(part).expanduser()
    if not path.exists():
        raise UserError(f"no weights at {part}: {advice_on(part)}")
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
        return str(json.loads((folder_of(part) / "source.json").read_text())["weights_sha256"])
    return _remembered_sha256(path) if path.is_file() else folder_digest(path)


def weights_bytes(part: str) -> int:
    """How large a part's weight files are.

    Raises:
        UserError: as `path_of`.
    """
    path = path_of(part)
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in _WEIGHTS]
    return sum(file.stat().st_size for file in files)


def is_present(profile: HasNeeds) -> bool:
    """Whether everything the profile needs has been fetched (files there and of the right size; reads no weights)."""
    return all(is_sound(name, check_digests=False) for name in profile.needs)


def folder_of(name: str) -> Path:
    return zeus_home() / "weights" / name.removeprefix(HUB_PREFIX).replace("/", "--")


def is_sound(name: str, check_digests: bool) -> bool:
    """Whether `name` was fetched from what is pinned and its files are as they were written."""
    folder, source = folder_of(name), source_of(name)
    if isinstance(source, ByHand):
        return (folder / source.file).is_file()
    try:
        record = json.loads((folder / "source.json").read_text())
        files = record["files"].items()
        if source is None or record["pin"] != source.pin:
            return False
        if any((folder / file).stat().st_size != facts["bytes"] for file, facts in files):
            return False
        return not check_digests or all(sha256_file(folder / file) == facts["sha256"] for file, facts in files)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def folder_digest(folder: Path) -> str:
    files = [file for file in files_in(folder) if file.suffix in _KINDS and file.name != "source.json"]
    lines = "".join(f"{file.name} {_remembered_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _remembered_sha256(path: Path) -> str:
    """sha256 of a file; of a large one remembered, as a 13 GB folder takes minutes."""
    stat = path.stat()
    if stat.st_size < REMEMBER_ABOVE:
        return sha256_file(path)
    memory = zeus_home() / "digests.json"
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = sha256_file(path)
        write_atomically(memory, json.dumps(known, indent=1).encode())
    return str(known[key])


def files_in(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())
