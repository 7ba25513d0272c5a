"""Generation: batched equals single, stops per row, and the image drives the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache.errors import UserError
from stage1_instruct.models.llm import Decoding, InstructionLLM
from stage1_instruct.profiles import Profile
from stage1_instruct.prompts import question, template

QUESTIONS = ["Why?", "What is to be seen in this slice?", "Name the organs.", "How large is the liver here, and where?"]


def tiny(folder: Path, **decoding: float) -> InstructionLLM:
    return InstructionLLM(str(folder), template("xraygpt"), Decoding(**{"max_new_tokens": 12, **decoding}))  # type: ignore[arg-type]


def image_tokens(llm: InstructionLLM, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, llm.width, generator=generator) * llm.embedding.weight.std()


def test_batched_generation_equals_single_token_for_token(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    tokens = image_tokens(llm, 4)
    together = llm.generate(QUESTIONS, tokens)
    alone = [llm.generate([asked], tokens[i : i + 1])[0] for i, asked in enumerate(QUESTIONS)]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_batch_size_does_not_change_text_or_order(tiny_llama: Path) -> None:
    one, three = tiny(tiny_llama, batch_size=1), tiny(tiny_llama, batch_size=3)
    tokens = image_tokens(one, 4)
    assert one.generate(QUESTIONS, tokens) == three.generate(QUESTIONS, tokens)


def test_another_image_gives_another_text(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    texts = [llm.generate(["Why?"], image_tokens(llm, 1, seed))[0].text for seed in range(3)]
    assert len(set(texts)) > 1


def test_prompt_tokens_count_text_and_image(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    answer = llm.generate(["Why?"], image_tokens(llm, 1))[0]
    assert answer.prompt_tokens == len("###Patient: <Img>") + 4 + len("</Img> Why? ###Doctor:")
    assert (answer.stop_reason, answer.output_tokens) == ("length", 12)


def test_beginning_token_is_put_in_front_once_where_the_tokenizer_does(tiny_llama: Path, beginning_llama: Path) -> None:
    plain, begins = tiny(tiny_llama), tiny(beginning_llama)
    counts = [llm.embed_prompt("Why?", image_tokens(llm, 1)[0]).shape[0] for llm in (plain, begins)]
    assert counts[1] == counts[0] + 1


def test_answer_stops_at_the_marker_and_is_cut_there(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    llm.model.model.norm.weight.data.zero_()  # all logits equal: token 0, which is '#', again and again
    answer = llm.generate(["Why?"], image_tokens(llm, 1))[0]
    assert (answer.text, answer.output_tokens, answer.stop_reason) == ("", 3, "stop")


def test_answer_stops_at_the_models_end_of_text(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    llm.model.model.norm.weight.data.zero_()
    llm.model.generation_config.eos_token_id = 0
    answer = llm.generate(["Why?"], image_tokens(llm, 1))[0]
    assert (answer.output_tokens, answer.stop_reason) == (1, "eos")


def test_ngrams_are_not_repeated_where_the_profile_says_so(tiny_llama: Path) -> None:
    free = tiny(tiny_llama, max_new_tokens=40)
    free.model.model.norm.weight.data.zero_()
    free.template = template("zeus").__class__("none", "{image}{question}", "@@@", "")
    guarded = tiny(tiny_llama, max_new_tokens=40, no_repeat_ngram_size=2)
    guarded.model.model.norm.weight.data.zero_()
    guarded.template = free.template
    tokens = image_tokens(free, 1)
    assert free.generate(["a"], tokens)[0].text == "#" * 40
    assert guarded.generate(["a"], tokens)[0].text.count("##") == 1


def test_wrong_number_of_images_or_width_is_refused(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    with pytest.raises(ValueError, match="2 questions"):
        llm.generate(["a", "b"], image_tokens(llm, 1))
    with pytest.raises(ValueError, match="width 32"):
        llm.generate(["a"], torch.zeros(1, 4, 33))


def test_folder_without_tokenizer_is_one_clear_error(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    with pytest.raises(UserError, match="tokenizer"):
        tiny(tmp_path)


def test_folder_without_model_is_one_clear_error(tiny_llama: Path, tmp_path: Path) -> None:
    for file in tiny_llama.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="not a language model that transformers can read"):
        tiny(tmp_path)


def test_recipe_leaves_out_paths_and_batch_size(tiny_llama: Path) -> None:
    assert tiny(tiny_llama, batch_size=1).recipe() == tiny(tiny_llama, batch_size=9).recipe()
    assert str(tiny_llama) not in str(tiny(tiny_llama).recipe())


@pytest.mark.slow
def test_smollm2_batched_equals_single_for_eight_prompts_of_different_length(lite: Profile) -> None:
    decoding = Decoding(24, lite.repetition_penalty, lite.no_repeat_ngram_size, batch_size=8)
    llm = InstructionLLM(lite.llm, template("zeus"), decoding)
    instances = ("liver", "brain tumour", "prostate", "liver, kidneys and spleen")
    asked = [question(instance, term) for instance in instances for term in ("MRI-T2", "MRI-T1-DUAL in-phase")]
    tokens = image_tokens(llm, 8)
    together = llm.generate(asked, tokens)
    assert together == [llm.generate([one], tokens[i : i + 1])[0] for i, one in enumerate(asked)]
    assert all("###" not in answer.text for answer in together)


@pytest.mark.slow
def test_smollm2_is_135_million_parameters_wide_576(lite: Profile) -> None:
    llm = InstructionLLM(lite.llm, template("zeus"), Decoding())
    assert llm.width == 576
    assert sum(parameter.numel() for parameter in llm.model.parameters()) == 134_515_008
    assert llm.token_ids("###") == [3757]
