"""A LoRA: nothing changes before training, nothing but it is trained, and it comes back from its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.models.language.lora import add_lora, load_lora, lora_state, save_lora
from zeus_union.stage1_instruct.profiles.profile import load_profile

pytest.importorskip("peft")
IDS = torch.arange(10)[None]


def llama(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


def test_a_new_lora_changes_nothing_and_alone_is_trained(tiny_llama: Path) -> None:
    model = llama(tiny_llama)
    before = model(IDS).logits
    trained = add_lora(model, rank=4)
    assert torch.equal(model(IDS).logits, before)
    # Two layers; queries 32 -> 32, values 32 -> 16.
    assert sum(parameter.numel() for parameter in trained) == 2 * 4 * ((32 + 32) + (32 + 16))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}


def test_one_seed_gives_one_lora(tiny_llama: Path) -> None:
    states = []
    for seed in (0, 0, 1):
        model = llama(tiny_llama)
        add_lora(model, rank=4, seed=seed)
        states.append(torch.cat([tensor.flatten() for tensor in lora_state(model).values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_saved_lora_comes_back_frozen_and_gives_the_same_logits(tiny_llama: Path, tmp_path: Path) -> None:
    model = llama(tiny_llama)
    for parameter in add_lora(model, rank=4):
        torch.nn.init.normal_(parameter, std=0.2)
    save_lora(model, tmp_path / "lora.safetensors", 4, {})
    again = llama(tiny_llama)
    before = again(IDS).logits
    load_lora(again, tmp_path / "lora.safetensors")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not torch.equal(again(IDS).logits, before)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_it_is_part_of_the_profile_and_of_the_recipe(
    tiny_llama: Path, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    model = llama(tiny_llama)
    for parameter in add_lora(model, rank=4):
        torch.nn.init.normal_(parameter, std=0.5)
    save_lora(model, tmp_path / "lora.safetensors", 4, {})
    parts = {**tiny_parts, "projection": "untrained"}
    plain = load_models(load_profile("lite", parts))
    tuned = load_models(load_profile("lite", {**parts, "lora": str(tmp_path / "lora.safetensors")}))
    embeddings = torch.randn(2, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    assert plain.instructor.answer(["Where?"] * 2, embeddings) != tuned.instructor.answer(["Where?"] * 2, embeddings)
    assert "lora" in tuned.instruction_recipe() and "lora" not in plain.instruction_recipe()


def test_other_files_and_loras_of_other_models_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not a LoRA that train-projection saved"):
        load_lora(llama(tiny_llama), tmp_path / "other.safetensors")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    other = transformers.LlamaForCausalLM(config)
    add_lora(other, rank=4)
    save_lora(other, tmp_path / "lora.safetensors", 4, {})
    with pytest.raises(UserError, match="trained on another language model"):
        load_lora(llama(tiny_llama), tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="no q_proj or v_proj"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), rank=4)
