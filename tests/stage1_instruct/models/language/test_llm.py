"""Generation: batched equals single, stops per row, and the image drives the text."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.language.library import Serving
from zeus_union.stage1_instruct.models.language.llm import Decoding, Generation, InstructionLLM, Loading
from zeus_union.stage1_instruct.models.language.prompts import question, template
from zeus_union.stage1_instruct.profiles.profile import Profile

QUESTIONS = ["Why?", "What is to be seen in this slice?", "Name the organs.", "How large is the liver here, and where?"]


def tiny(folder: Path, **decoding: float) -> InstructionLLM:
    return InstructionLLM(str(folder), template("xraygpt"), Decoding(**{"max_new_tokens": 12, **decoding}))  # type: ignore[arg-type]


@pytest.fixture
def wide_enough(tiny_llama: Path, tmp_path: Path) -> Path:
    """64 wide: bitsandbytes' 4-bit layers count in blocks of 64."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "wide"))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "initializer_range": 0.02})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def image_tokens(llm: InstructionLLM, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, llm.width, generator=generator) * llm.embedding.weight.std()


def oracle(llm: InstructionLLM, asked: str, tokens: torch.Tensor) -> Generation:
    """transformers' generate, one prompt at a time, stopped by its own `stop_strings`."""
    prompt = llm.embed_prompt(asked, tokens)
    config = transformers.GenerationConfig(
        max_new_tokens=llm.decoding.max_new_tokens,
        do_sample=False,
        repetition_penalty=llm.decoding.repetition_penalty,
        no_repeat_ngram_size=llm.decoding.no_repeat_ngram_size,
        eos_token_id=llm.model.generation_config.eos_token_id,
        pad_token_id=llm.model.generation_config.eos_token_id,
        stop_strings=[llm.template.marker],
    )
    ids = llm.model.generate(
        inputs_embeds=prompt[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=config,
        tokenizer=llm.tokenizer,
    )[0].tolist()
    text = llm.tokenizer.decode(ids, skip_special_tokens=True)
    reason = "stop" if llm.template.marker in text else "length"
    if ids[-1] == config.eos_token_id:
        reason = "eos"
    return Generation(" ".join(text.split(llm.template.marker)[0].split()), len(prompt), len(ids), reason)


def test_answers_are_those_of_transformers_generate(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama, max_new_tokens=30, repetition_penalty=1.2, no_repeat_ngram_size=3)
    tokens = image_tokens(llm, 4)
    assert llm.generate(QUESTIONS, tokens) == [oracle(llm, text, tokens[i]) for i, text in enumerate(QUESTIONS)]


def test_batched_generation_equals_single_token_for_token(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    tokens = image_tokens(llm, 4)
    together = llm.generate(QUESTIONS, tokens)
    alone = [llm.generate([text], tokens[i : i + 1])[0] for i, text in enumerate(QUESTIONS)]
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


def test_only_the_row_with_the_marker_stops_however_it_is_cut_into_tokens(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama, max_new_tokens=20)
    tokens = image_tokens(llm, 4)
    free = llm.generate(QUESTIONS, tokens)
    row, letters = next((i, re.findall("[!-~]{2}", answer.text)[0]) for i, answer in enumerate(free) if i > 0)
    llm.template = replace(llm.template, marker=letters)  # two tokens: this tokenizer has one for each byte
    stopped = llm.generate(QUESTIONS, tokens)
    assert (stopped[row].text, stopped[row].stop_reason) == (free[row].text.split(letters)[0].strip(), "stop")
    assert [answer for i, answer in enumerate(stopped) if i != row] == [a for i, a in enumerate(free) if i != row]


def test_seeds_decide_what_is_sampled_whatever_the_batch(tiny_llama: Path) -> None:
    one, four = (tiny(tiny_llama, temperature=1.0, top_p=0.9, batch_size=size) for size in (1, 4))
    tokens = image_tokens(one, 4)
    together = four.generate(QUESTIONS, tokens, seeds=[7, 8, 9, 2**63 - 1])
    assert one.generate(QUESTIONS, tokens, seeds=[7, 8, 9, 2**63 - 1]) == together
    others = four.generate(QUESTIONS, tokens, seeds=[1, 2, 3, 4])
    assert [answer.text for answer in others] != [answer.text for answer in together]


def test_states_come_with_the_answer_where_they_are_kept(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama, keep_states=True)
    tokens = image_tokens(llm, 4)
    answers = llm.generate(QUESTIONS, tokens)
    plain = tiny(tiny_llama).generate(QUESTIONS, tokens)
    assert answers == plain and plain[0].states is None
    assert [tuple(a.states.shape) for a in answers if a.states is not None] == [(a.output_tokens, 32) for a in plain]


def test_half_precision_and_quantised_models_answer(wide_enough: Path) -> None:
    pytest.importorskip("bitsandbytes")
    for loading in (Loading("bf16"), Loading("fp16"), Loading("bf16", "8bit"), Loading("fp32", "4bit")):
        llm = InstructionLLM(str(wide_enough), template("zeus"), Decoding(max_new_tokens=5), loading=loading)
        answers = llm.generate(QUESTIONS[:2], image_tokens(llm, 2).float())
        assert [answer.output_tokens for answer in answers] == [5, 5]


def test_prompt_and_answer_beyond_the_context_are_one_clear_error(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama, max_new_tokens=480)
    with pytest.raises(UserError, match=r"answer of up to 480 do not fit the language model's context of 512"):
        llm.generate(["Why?"], image_tokens(llm, 1))


def test_no_question_is_no_answer(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    assert llm.generate([], image_tokens(llm, 0)) == []


def test_answer_stops_at_the_models_end_of_text(tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    llm.model.model.norm.weight.data.zero_()
    llm.model.generation_config.eos_token_id = 0
    answer = llm.generate(["Why?"], image_tokens(llm, 1))[0]
    assert (answer.output_tokens, answer.stop_reason) == (1, "eos")


@pytest.mark.parametrize("by_library", [False, True])
def test_each_of_several_ends_of_text_ends_an_answer(by_library: bool, tiny_llama: Path) -> None:
    llm = tiny(tiny_llama)
    llm.__dict__["serving"] = Serving(by_library, "")
    llm.model.model.norm.weight.data.zero_()  # the token is always 0
    llm.model.generation_config.eos_token_id = [7, 0]
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
    with pytest.raises(ValueError, match="1 questions, 2 seeds"):
        llm.generate(["a"], image_tokens(llm, 1), seeds=[1, 2])
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


def test_recipe_says_how_it_decodes_and_in_which_precision(tiny_llama: Path) -> None:
    greedy, sampled = tiny(tiny_llama).recipe(), tiny(tiny_llama, temperature=0.7, top_p=0.9).recipe()
    assert (greedy["decoding"]["method"], greedy["precision"], greedy["quantize"]) == ("greedy", "fp32", "none")
    assert [sampled["decoding"][key] for key in ("method", "temperature", "top_p")] == ["sampled", 0.7, 0.9]
    assert "states" in tiny(tiny_llama, keep_states=True).recipe() and "states" not in greedy


@pytest.mark.slow
def test_smollm2_answers_are_those_of_transformers_generate(lite: Profile) -> None:
    decoding = Decoding(12, lite.repetition_penalty, lite.no_repeat_ngram_size, batch_size=2)
    llm = InstructionLLM(lite.llm, template("zeus"), decoding)
    questions = [question("liver", "MRI-T2"), question("prostate", "MRI-ADC"), "Why?"]
    tokens = image_tokens(llm, 3)
    assert llm.generate(questions, tokens) == [oracle(llm, text, tokens[i]) for i, text in enumerate(questions)]


@pytest.mark.slow
def test_smollm2_batched_equals_single_for_four_prompts_of_different_length(lite: Profile) -> None:
    decoding = Decoding(12, lite.repetition_penalty, lite.no_repeat_ngram_size, batch_size=4)
    llm = InstructionLLM(lite.llm, template("zeus"), decoding)
    instances = ("liver", "liver, kidneys and spleen")
    questions = [question(instance, term) for instance in instances for term in ("MRI-T2", "MRI-T1-DUAL in-phase")]
    tokens = image_tokens(llm, 4)
    together = llm.generate(questions, tokens)
    assert together == [llm.generate([text], tokens[i : i + 1])[0] for i, text in enumerate(questions)]
    assert all("###" not in answer.text for answer in together)


@pytest.mark.slow
def test_smollm2_is_135_million_parameters_wide_576(lite: Profile) -> None:
    llm = InstructionLLM(lite.llm, template("zeus"), Decoding())
    assert llm.width == 576
    assert sum(parameter.numel() for parameter in llm.model.parameters()) == 134_515_008
    assert llm.token_ids("###") == [3757]
