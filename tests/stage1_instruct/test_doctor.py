"""The doctor finds what is wrong before the night is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner

from tests.stage1_instruct.conftest import byte_tokenizer
from zeus_union.stage1_instruct.cli import main


def doctor(parts: dict[str, str], **overrides: str) -> tuple[int, str]:
    command = ["doctor"]
    for part, value in {**parts, "projection": "untrained", **overrides}.items():
        command += ["--set", f"{part}={value}"]
    done = CliRunner().invoke(main, command)
    return done.exit_code, done.output


def test_sound_profile_is_loaded_used_and_found_ready(tiny_parts: dict[str, str]) -> None:
    code, said = doctor(tiny_parts)
    assert code == 0, said
    for line in (
        "(1, 256, 64, 64)",
        "regions: 16 tokens, 256 wide",
        "16 image tokens, 32 wide",
        "memory",
        "decoding: by the decode loop, many prompts together: 6 tokens of 2 prompts are those of transformers' generate",
        "bert: 32 wide",
    ):
        assert line in said
    assert "UNTRAINED" in said and "lite is ready" in said


def test_bare_prompt_is_ready_without_a_language_model(tiny_parts: dict[str, str]) -> None:
    code, said = doctor(tiny_parts, instructor="prompt", llm="none")
    assert code == 0, said
    assert "instruction: no language model, the text is the question: 'Please analyze the given liver MRI-T2" in said
    assert "projection" not in said and "vision features" not in said and "UNTRAINED" not in said


def test_llm_that_the_decode_loop_cannot_serve_is_generated_by_the_library_and_said(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    code, said = doctor(tiny_parts, llm=str(tmp_path / "mamba"))
    assert code == 0, said
    assert "decoding: by transformers' generate, one prompt at a time, slower: MambaForCausalLM keeps a state" in said


def test_everything_that_is_missing_is_listed_at_once(tiny_parts: dict[str, str]) -> None:
    code, said = doctor(tiny_parts, llm="no-such-llm", text_encoder="no-such-encoder")
    assert code == 2
    assert said.count("WRONG") == 2 and "no-such-llm" in said and "no-such-encoder" in said


def test_one_broken_part_does_not_hide_the_others(tiny_parts: dict[str, str], tiny_bert: Path) -> None:
    code, said = doctor(tiny_parts, llm=str(tiny_bert), text_encoder=tiny_parts["llm"])
    assert code == 2
    assert "image encoder: litemedsam" in said
    assert "WRONG  instruction" in said


@pytest.mark.parametrize("profile", ["paper", "medsam"])
def test_unfetched_profile_says_what_to_fetch(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path))
    done = CliRunner().invoke(main, ["doctor", "--models", profile])
    assert done.exit_code == 2
    assert "zeus-instruct fetch" in done.output and "WRONG  vicuna-rad" in done.output
