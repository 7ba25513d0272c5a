"""The connectors: sizes, their untrained forms, their file, and what others publish."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.bridge.connectors import (
    Connector,
    load_connector,
    new_connector,
    read_llama_proj,
    save_connector,
)

EMBEDDING = torch.randn(500, 24, generator=torch.Generator().manual_seed(1)) * 0.3
KINDS = ("mlp", "linear", "qformer")


def features(count: int) -> torch.Tensor:
    return torch.randn(count, 49, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("kind", "inputs", "parameters"),
    [
        ("mlp", 768, 3_740_416),  # the two-layer f_vt that makes up Table 2's hybrid total of 8.06M
        ("linear", 768, 3_149_824),  # XrayGPT's llama_proj
        # Blip2QFormerModel on 768 wide features, 32 queries of 768, and the layer to the LLM's width.
        ("qformer", 768, 99_239_424 + 32 * 768 + 3_149_824),
    ],
)
def test_published_sizes(kind: str, inputs: int, parameters: int) -> None:
    with torch.device("meta"):
        connector = Connector(kind, inputs, 768, 4096)
    assert sum(parameter.numel() for parameter in connector.parameters()) == parameters


@pytest.mark.parametrize(("kind", "tokens"), [("mlp", 49), ("linear", 49), ("qformer", 32)])
def test_untrained_outputs_have_the_spread_of_token_embeddings(kind: str, tokens: int) -> None:
    with torch.no_grad():
        outputs = new_connector(kind, 16, 32, EMBEDDING)(features(20))
    assert outputs.shape == (20, tokens, 24)
    assert outputs.std().item() == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_is_the_same_for_one_seed_and_another_for_another(kind: str) -> None:
    first, again, other = (new_connector(kind, 16, 32, EMBEDDING, seed).digest() for seed in (0, 0, 1))
    assert first == again != other


def test_queries_look_at_every_feature_of_the_picture() -> None:
    connector = new_connector("qformer", 16, 0, EMBEDDING)
    inputs = features(1).requires_grad_()
    connector(inputs).square().sum().backward()
    assert inputs.grad is not None and (inputs.grad.abs().sum(-1) > 0).all()


def test_standardising_gives_every_channel_mean_0_and_spread_1() -> None:
    inputs = features(50) * 3 + 7
    connector = Connector("mlp", 16, 8, 24)
    connector.standardise_by(inputs)
    standard = (inputs - connector.mean) / connector.std
    assert standard.flatten(0, 1).mean(0).abs().max() < 1e-4
    assert (standard.flatten(0, 1).std(0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_saved_connector_comes_back_with_its_facts(kind: str, tmp_path: Path) -> None:
    connector = new_connector(kind, 16, 32, EMBEDDING)
    save_connector(connector, tmp_path / "new" / "p.safetensors", {"llm_sha256": "abc"})
    loaded, facts = load_connector(tmp_path / "new" / "p.safetensors", 16, 24)
    assert loaded.digest() == connector.digest()
    assert facts == {"llm_sha256": "abc", "kind": kind, "inputs": 16, "hidden": 32, "outputs": 24}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize(("inputs", "outputs", "what"), [(16, 4096, "language model 24"), (512, 24, "features 16")])
def test_connector_for_other_widths_is_refused(inputs: int, outputs: int, what: str, tmp_path: Path) -> None:
    save_connector(new_connector("mlp", 16, 32, EMBEDDING), tmp_path / "p.safetensors", {})
    with pytest.raises(UserError, match=what):
        load_connector(tmp_path / "p.safetensors", inputs, outputs)


def test_other_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a projection that train-projection saved"):
        load_connector(tmp_path / "other.safetensors", 16, 24)
    (tmp_path / "other.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="not a projection that train-projection saved"):
        load_connector(tmp_path / "other.safetensors", 16, 24)


def test_llama_proj_of_an_xraygpt_checkpoint_is_read_and_its_buffers_are_left(tmp_path: Path) -> None:
    weight, bias = torch.randn(24, 768), torch.randn(24)
    state = {
        "llama_proj.weight": weight,
        "llama_proj.bias": bias,
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
    }
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint_3.pth")
    connector = read_llama_proj(tmp_path / "checkpoint_3.pth")
    inputs = torch.randn(2, 1, 768)
    assert torch.allclose(connector(inputs), inputs @ weight.T + bias, atol=1e-4)
    torch.save({"model": {"a": bias}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"holds no llama_proj\.weight"):
        read_llama_proj(tmp_path / "other.pth")
