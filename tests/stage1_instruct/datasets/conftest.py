"""Phantoms on disk, two subjects in each layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from zeus_union.stage1_instruct.datasets.write_demo import write_demo


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with chaos/, msd/ and nnunet/; only for reading."""
    folder = tmp_path_factory.mktemp("phantoms")
    for layout in ("chaos", "msd", "nnunet"):
        write_demo(layout, folder / layout, subjects=2, seed=3)
    return folder


@pytest.fixture
def chaos(phantoms: Path, tmp_path: Path) -> Path:
    """A CHAOS folder of one's own."""
    return Path(shutil.copytree(phantoms / "chaos", tmp_path / "chaos"))


@pytest.fixture
def msd(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms / "msd", tmp_path / "msd"))


@pytest.fixture
def nnunet(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms / "nnunet", tmp_path / "nnunet"))
