"""Language models of every kind answer as transformers' generate does, by whichever way serves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.stage1_instruct.models.language.test_decoding import LENGTHS, SIZES, oracle, prompts, stop, tokens
from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.language.decoding import Answer, Decoder, Decoding, Prompts
from zeus_union.stage1_instruct.models.language.library import LibraryDecoder, other_memory, serving

KEYS_AND_VALUES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Qwen2": {},
    "Gemma2": {"sliding_window": 16, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"sliding_window": 16, "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "Mistral": {"sliding_window": 16},
    "Bloom": {"n_layer": 2, "n_head": 4},
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
OTHER_MEMORY: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 4},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 2},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "RecurrentGemma": {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3, "head_dim": 8},
    "Qwen3Next": {
        "head_dim": 8,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "GraniteMoeHybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "Rwkv": {"attention_hidden_size": 32},
}


def tiny(name: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


def decode(model: Any, rows: Sequence[Tensor], by_library: bool, **decoding: Any) -> list[Answer]:
    wanted = Decoding(**{"max_new_tokens": 12, **decoding})
    kind = LibraryDecoder if by_library else Decoder
    waiting = Prompts([len(row) for row in rows], lambda i: rows[i], 5)
    return kind(model, wanted, 3, stop, print).run(waiting, list(range(len(rows))))


@pytest.mark.parametrize("name", KEYS_AND_VALUES)
def test_models_of_keys_and_values_alone_are_served_by_the_loop_with_the_tokens_of_generate(name: str) -> None:
    model, rows = tiny(name, KEYS_AND_VALUES[name]), prompts(LENGTHS[:5])
    served = serving(model)
    assert not served.by_library and "are those of transformers' generate" in served.report
    assert tokens(decode(model, rows, by_library=False)) == [oracle(model, row, 12) for row in rows]


@pytest.mark.parametrize("name", OTHER_MEMORY)
def test_models_with_another_memory_are_generated_by_the_library(name: str) -> None:
    model, rows = tiny(name, OTHER_MEMORY[name]), prompts(LENGTHS[:3])
    served = serving(model)
    assert served.by_library and type(model).__name__ in served.report
    expected = [oracle(model, row, 12) for row in rows]
    assert tokens(decode(model, rows, by_library=True)) == expected
    assert len({tuple(row) for row in expected}) > 1


def test_a_model_that_generate_cannot_give_embeddings_is_one_clear_error() -> None:
    bamba = tiny("Bamba", {**MAMBA, "attn_layer_indices": [1]})
    assert serving(bamba).by_library
    with pytest.raises(UserError, match=r"cannot answer with BambaForCausalLM from embeddings.*another language model"):
        decode(bamba, prompts(LENGTHS[:1]), by_library=True)


@pytest.mark.parametrize(
    "decoding",
    [
        {},
        {"temperature": 0.9, "top_p": 0.9},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"keep_states": True},
    ],
)
def test_both_ways_choose_end_and_keep_the_same(decoding: dict[str, Any]) -> None:
    model, rows = tiny("Llama", {}), prompts()
    # What a checkpoint's own settings ask for does not count.
    model.generation_config = transformers.GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=2.0)
    by_loop, by_library = (decode(model, rows, way, **decoding) for way in (False, True))
    assert tokens(by_loop) == tokens(by_library)
    assert [answer.stop_reason for answer in by_loop] == [answer.stop_reason for answer in by_library]
    for one, other in zip(by_loop, by_library):
        assert (one.states is None) == (other.states is None) == (not decoding.get("keep_states"))
        if one.states is not None and other.states is not None:
            assert torch.allclose(one.states.float(), other.states.float(), atol=5e-3)
    assert model.generation_config.do_sample


def test_a_fault_that_no_attribute_tells_of_shows_in_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama", {})
    assert other_memory(model) is None

    def forgets(self: Decoder, *arguments: Any) -> None:
        raise IndexError("list index out of range")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "_step", forgets)
        served = serving(model)
        assert served.by_library and "IndexError: list index out of range" in served.report
    step = Decoder._step

    def shifted(self: Decoder, rows: Any, cache: Any) -> None:
        for row in rows:
            row.tokens[-1] = (row.tokens[-1] + 1) % 97
        step(self, rows, cache)

    monkeypatch.setattr(Decoder, "_step", shifted)
    served = serving(model)
    assert served.by_library and "not those of transformers' generate" in served.report
