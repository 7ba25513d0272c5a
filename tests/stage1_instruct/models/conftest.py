"""MedCLIP's checkpoints at random weights; lets the tests of these folders import `medclip_shapes`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from medclip_shapes import (
    SCALE,
    SMALL_BERT,
    WORDS,
    hollow_state,
    random_state,
    resnet_shapes,
    swin_shapes,
    write_words,
)


@pytest.fixture(scope="session")
def medclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("medclip")


@pytest.fixture(scope="session")
def vit_state() -> dict[str, Tensor]:
    return random_state(swin_shapes()) | hollow_state(SMALL_BERT) | SCALE


@pytest.fixture(scope="session")
def vit(medclip_folder: Path, vit_state: dict[str, Tensor]) -> str:
    """A checkpoint of the ViT variant under its released names, in the folder its zip would make."""
    (medclip_folder / "vit").mkdir()
    torch.save(vit_state, medclip_folder / "vit" / "pytorch_model.bin")
    return str(medclip_folder / "vit")


@pytest.fixture(scope="session")
def resnet(medclip_folder: Path) -> str:
    torch.save(random_state(resnet_shapes()) | hollow_state(SMALL_BERT) | SCALE, medclip_folder / "resnet.bin")
    return str(medclip_folder / "resnet.bin")


@pytest.fixture(scope="session")
def text(medclip_folder: Path) -> str:
    torch.save(hollow_state(resnet_shapes()) | random_state(SMALL_BERT) | SCALE, medclip_folder / "text.bin")
    return str(medclip_folder / "text.bin")


@pytest.fixture(scope="session")
def words(medclip_folder: Path) -> str:
    return str(write_words(medclip_folder / "words", WORDS))
