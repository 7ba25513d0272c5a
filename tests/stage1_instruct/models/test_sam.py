"""SAM's own encoders: normalisation, and what is said where they cannot run."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import UserError
from stage1_instruct.models.sam import SamEncoder, normalise


def test_without_torchvision_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_torchvision(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("segment_anything"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torchvision)
    with pytest.raises(UserError, match=r"torchvision::nms does not exist.*pip install torchvision"):
        SamEncoder("sam_vit_b", "sam_vit_b_01ec64.pth")


def test_module_imports_without_torchvision() -> None:
    assert "stage1_instruct.models.sam" in sys.modules
    assert "torchvision" not in vars(sys.modules["stage1_instruct.models.sam"])


def test_sam_takes_its_own_mean_and_standard_deviation() -> None:
    x = normalise(torch.full((1, 4, 4), 116.28), "sam_vit_h")
    assert x.shape == (1, 3, 4, 4)
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(116.28 - 123.675) / 58.395, 0.0, (116.28 - 103.53) / 57.375]))


def test_medsam_stretches_each_slice_to_0_1() -> None:
    x = normalise(torch.arange(16.0).reshape(1, 4, 4) + 100, "medsam")
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.slow
def test_random_vit_b_checkpoint_loads_strictly_and_embeds(tmp_path: Any) -> None:
    """Needs a torchvision that imports, as SAM itself does; the numbers are compared with SAM's own preprocessing."""
    try:
        from segment_anything import sam_model_registry
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"segment_anything cannot be imported: {error}")
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024), dtype=np.uint8)
    with torch.no_grad():
        rgb = torch.from_numpy(image)[:, None].repeat(1, 3, 1, 1).float()
        expected = sam.image_encoder(torch.stack([sam.preprocess(picture) for picture in rgb]))
    encoder = SamEncoder("sam_vit_b", str(tmp_path / "sam.pth"))
    assert (encoder.encode(image) - expected).abs().max() < 1e-5
    assert encoder.constants()["dense_pe"].shape == (256, 64, 64)
