"""What a wheel holds, and that both ways of installing it work wherever the interpreter is started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "stage1_instruct", "stage2_segment", "pipelines")
HOMES = {"src/zeus_union": "zeus_union", **{room: f"zeus_union/{room}" for room in ROOMS}}
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.h5", "*.h5.d", "*.parquet")
PATHS = "packages_of_the_tests.pth"
SCRIPTS = ("zeus", "zeus-instruct", "zeus-segment")


def sources(root: Path, *endings: str) -> dict[str, Path]:
    """Path in the package -> file, of the four rooms and the face."""
    return {
        (Path(inside) / path.relative_to(root / home)).as_posix(): path
        for home, inside in HOMES.items()
        for path in (root / home).rglob("*")
        if path.name.endswith(endings)
    }


def run(command: Iterable[str | Path], folder: Path) -> str:
    """Standard output of a command that has to succeed; what this process was told of imports is not handed on."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own that sees the packages of this one.

    A .pth file that names a folder puts it on the path without reading the .pth files in it, so that an editable
    zeus_union of this environment is not seen.
    """

    folder: Path

    def make(self) -> Environment:
        venv.create(self.folder, with_pip=False, symlinks=True)
        seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (self.site_packages / PATHS).write_text("\n".join(seen))
        return self

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def install(self, *what: str | Path) -> None:
        """--ignore-installed: what the environment of the tests has of zeus_union stays as it is."""
        run([self.python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", *what], ROOT)


@dataclass(frozen=True)
class Installed:
    """An installation, and where the face and the reader of caches have to come from."""

    environment: Environment
    face: Path
    reader: Path


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, in which an earlier build left a module that is no longer there."""
    folder = tmp_path_factory.mktemp("clone")
    for room in (*ROOMS, "src"):
        shutil.copytree(ROOT / room, folder / room, ignore=NOT_SOURCE)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    left = folder / "build" / "lib" / "zeus_union" / "stale.py"
    left.parent.mkdir(parents=True)
    left.touch()
    return folder


@pytest.fixture(scope="session")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, "--wheel-dir", folder, clone], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment = Environment(tmp_path_factory.mktemp("plain")).make()
    environment.install(wheel)
    package = environment.site_packages / "zeus_union"
    return Installed(environment, package / "__init__.py", package / "cache" / "reader.py")


@pytest.fixture(scope="session")
def editable(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment = Environment(tmp_path_factory.mktemp("editable")).make()
    environment.install("--no-build-isolation", "-e", clone)
    return Installed(environment, clone / "src" / "zeus_union" / "__init__.py", clone / "cache" / "reader.py")


@pytest.fixture(params=["plain", "editable"])
def installed(request: pytest.FixtureRequest) -> Installed:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's own files that are called like our rooms, and are not to be imported."""
    folder = tmp_path_factory.mktemp("traps")
    for name in ("cache.py", "pipelines.py", "stage1_instruct/__init__.py", "stage2_segment/__init__.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise RuntimeError('imported {name}')\n")
    return folder


def test_every_package_folder_is_in_setup_cfg() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = settings["options"]["packages"].split()
    folders = {Path(inside).parent.as_posix().replace("/", ".") for inside in sources(ROOT, ".py")}
    assert sorted(listed) == sorted(folders)
    assert {f"{name.replace('.', '/')}/__init__.py" for name in listed} <= sources(ROOT, ".py").keys()


@pytest.mark.slow
def test_wheel_has_one_name_at_its_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert len(tops) == 2
    assert all(re.fullmatch(r"zeus_union(-[^/]+\.dist-info)?", top) for top in tops)


@pytest.mark.slow
def test_wheel_holds_every_module_yaml_file_and_template_as_it_is_and_nothing_of_an_earlier_build(wheel: Path) -> None:
    expected = sources(ROOT, ".py", ".yaml", ".j2", ".css", ".js", "py.typed")
    assert {"zeus_union/py.typed", "zeus_union/pipelines/grids/table2.yaml"} <= expected.keys()
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("zeus_union/")}
        assert held == expected.keys()
        assert [name for name, path in expected.items() if archive.read(name) != path.read_bytes()] == []


@pytest.mark.slow
def test_imports_are_ours_beside_files_of_the_same_names(installed: Installed, traps: Path, clone: Path) -> None:
    code = (
        "from zeus_union.cache import reader; reader.Cache; import zeus_union as z; print(z.__file__, reader.__file__)"
    )
    for folder in (traps, clone):
        files = run([installed.environment.python, "-c", code], folder).split()
        assert files == [str(installed.face), str(installed.reader)]


@pytest.mark.slow
def test_no_other_name_can_be_imported(installed: Installed, tmp_path: Path) -> None:
    code = f"from importlib.util import find_spec; print(*(name for name in {ROOMS} if find_spec(name)))"
    assert run([installed.environment.python, "-c", code], tmp_path).split() == []
    written = {path.name for path in installed.environment.site_packages.iterdir()} - {PATHS, "__pycache__"}
    assert [name for name in written if "zeus_union" not in name] == []


@pytest.mark.slow
@pytest.mark.parametrize("room", ["stage1_instruct", "stage2_segment", "pipelines"])
def test_commands_start_as_modules(installed: Installed, traps: Path, room: str) -> None:
    command = [installed.environment.python, "-m", f"zeus_union.{room}.cli", "--help"]
    assert run(command, traps).startswith("Usage: ")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_start_as_scripts(installed: Installed, traps: Path, script: str) -> None:
    assert run([installed.environment.folder / "bin" / script, "--help"], traps).startswith(f"Usage: {script} ")


@pytest.mark.slow
def test_commands_start_under_accelerate(installed: Installed, traps: Path) -> None:
    launch = [installed.environment.python, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert "Usage: " in run([*launch, *options, "-m", "zeus_union.stage1_instruct.cli", "--help"], traps)
