"""The projection: sizes, its untrained form, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cache.errors import UserError
from stage1_instruct.models.connectors import Projection

EMBEDDING = torch.randn(500, 24, generator=torch.Generator().manual_seed(1)) * 0.3


def test_paper_sized_projection_has_3_740_416_parameters() -> None:
    """The two-layer f_vt that makes up Table 2's hybrid total of 8.06M."""
    assert sum(parameter.numel() for parameter in Projection(768, 768, 4096).parameters()) == 3_740_416


def test_untrained_outputs_have_the_spread_of_token_embeddings() -> None:
    projection = Projection.untrained(16, 32, EMBEDDING)
    outputs = projection(torch.randn(1000, 16, generator=torch.Generator().manual_seed(2)))
    assert outputs.std().item() == pytest.approx(0.3, rel=0.15)


def test_untrained_is_the_same_for_one_seed_and_another_for_another() -> None:
    first, again, other = (Projection.untrained(16, 32, EMBEDDING, seed).digest() for seed in (0, 0, 1))
    assert first == again != other


def test_standardising_gives_every_channel_mean_0_and_spread_1() -> None:
    features = torch.randn(50, 4, 16, generator=torch.Generator().manual_seed(0)) * 3 + 7
    projection = Projection(16, 8, 24)
    projection.standardise_by(features)
    standard = (features - projection.mean) / projection.std
    assert standard.flatten(0, 1).mean(0).abs().max() < 1e-4
    assert (standard.flatten(0, 1).std(0) - 1).abs().max() < 1e-4


def test_saved_projection_comes_back_with_its_facts(tmp_path: Path) -> None:
    projection = Projection.untrained(16, 32, EMBEDDING)
    projection.save(tmp_path / "new" / "p.safetensors", {"llm_sha256": "abc"})
    loaded, facts = Projection.load(tmp_path / "new" / "p.safetensors", 16, 24)
    assert loaded.digest() == projection.digest()
    assert facts == {"llm_sha256": "abc", "inputs": 16, "hidden": 32, "outputs": 24}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize(("inputs", "outputs", "what"), [(16, 4096, "language model 24"), (512, 24, "features 16")])
def test_projection_for_other_widths_is_refused(inputs: int, outputs: int, what: str, tmp_path: Path) -> None:
    Projection.untrained(16, 32, EMBEDDING).save(tmp_path / "p.safetensors", {})
    with pytest.raises(UserError, match=what):
        Projection.load(tmp_path / "p.safetensors", inputs, outputs)


def test_other_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a projection that train-projection saved"):
        Projection.load(tmp_path / "other.safetensors", 16, 24)
    (tmp_path / "other.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="not a projection that train-projection saved"):
        Projection.load(tmp_path / "other.safetensors", 16, 24)
