"""What a release is made of: versions, constraints, the source archive, the container, the workflow."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import zeus_union

ROOT = Path(__file__).resolve().parents[1]
LOWER_BOUND = re.compile(r"([\w.-]+)>=([\d.]+)")


def settings() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_version_is_written_once() -> None:
    assert zeus_union.__version__ == version("zeus-union") == settings()["metadata"]["version"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_lowest_constraints_are_the_lower_bounds_of_setup_cfg() -> None:
    parser = settings()
    wanted = parser["options"]["install_requires"] + parser["options.extras_require"]["dev"]
    bounds = {f"{name}=={bound}" for name, bound in LOWER_BOUND.findall(wanted)}
    lines = (ROOT / "tests" / "constraints-lowest.txt").read_text().splitlines()
    direct = {line for line in lines if line and not line.startswith("#") and "#" not in line}
    assert direct == bounds


def test_the_workflow_tests_every_python_that_is_promised() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    tested = set(jobs["fast"]["strategy"]["matrix"]["python"])
    assert set(re.findall(r"Python :: (3\.\d+)", settings()["metadata"]["classifiers"])) <= tested
    for entry in jobs["fast"]["strategy"]["matrix"]["include"]:
        assert (ROOT / entry["constraints"]).is_file()


def test_every_extra_that_the_container_installs_is_there() -> None:
    named = re.findall(r"zeus-union\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert named and {extra for names in named for extra in names.split(",")} <= set(
        settings()["options.extras_require"]
    )


@pytest.mark.skipif(shutil.which("hadolint", path=Path(sys.executable).parent) is None, reason="needs hadolint")
def test_the_container_file_has_no_lint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.slow
def test_the_source_archive_holds_all_that_a_wheel_is_built_from(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns("__pycache__", "*.h5", "*.h5.d", "*.parquet", "*.egg-info")
    for room in ("cache", "stage1_instruct", "stage2_segment", "pipelines", "src"):
        shutil.copytree(ROOT / room, clone / room, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=clone, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    sources = {
        path.relative_to(clone).as_posix()
        for path in clone.rglob("*")
        if path.suffix in {".py", ".yaml"} or path.name == "py.typed"
    }
    missing = {name for name in sources if not name.startswith(("build/",))} - names
    assert not missing
    assert "LICENSE" in names
