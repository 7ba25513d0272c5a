"""Vision-language models of transformers as they come: the words of the library's own generate, in any batch."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image
from tiny_vlms import KINDS, NEEDS_TORCHVISION, write_vlm

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.models.language.prompts import QUESTION, question
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.weights.sources import MODEL_FILES

PICTURES = torch.randint(0, 256, (6, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
QUESTIONS = ["What is this?", "And where in it is the liver?", "What is this?", "Why?", "What is this?", "Why?"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model, written once."""
    written: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind in NEEDS_TORCHVISION and importlib.util.find_spec("torchvision") is None:
            pytest.skip("its processor needs torchvision")
        if kind not in written:
            written[kind] = write_vlm(kind, tmp_path_factory.mktemp(kind))
        return written[kind]

    return folder


@pytest.fixture
def copied(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LLaVA of one's own."""
    return Path(shutil.copytree(folder_of("llava"), tmp_path / "llava"))


def models(parts: dict[str, str], folder: Path, said: list[str] | None = None, **overrides: str) -> Models:
    settings = {"instructor": "vlm", "model": str(folder), "llm": "none", "no_repeat_ngram_size": "0"}
    profile = load_profile("lite", {**parts, **settings, **overrides})
    return load_models(profile, "cpu", (said if said is not None else []).append)


def texts(parts: dict[str, str], folder: Path, **overrides: str) -> list[str]:
    return [answer.text for answer in models(parts, folder, **overrides).instructor.answer(QUESTIONS, PICTURES)]


def generated(folder: Path, question: str, picture: torch.Tensor, **settings: Any) -> str:
    """What transformers' own generate says, as a model's page shows it."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    image = Image.fromarray(picture.numpy()).convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, **settings)[0, inputs["input_ids"].shape[1] :]
    return " ".join(processor.decode(ids, skip_special_tokens=True).split())


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_transformers_generate_one_by_one(
    kind: str, folder_of: Callable[[str], Path], tiny_parts: dict[str, str]
) -> None:
    folder = folder_of(kind)
    expected = [generated(folder, asked, picture) for asked, picture in zip(QUESTIONS, PICTURES)]
    assert texts(tiny_parts, folder) == expected
    assert len(set(expected)) >= len(expected) - 1  # a Gemma of random weights says one thing twice with torch 2.6


@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_says_what_one_by_one_says(
    kind: str, folder_of: Callable[[str], Path], tiny_parts: dict[str, str]
) -> None:
    for settings in ({}, {"temperature": "0.9"}, {"repetition_penalty": "1.3", "no_repeat_ngram_size": "2"}):
        instructors = [
            models(tiny_parts, folder_of(kind), **settings, llm_batch=rows).instructor for rows in ("1", "2", "auto")
        ]
        seeds = [3, 1, 4, 1, 5, 9]
        single, pairs, batch = (instructor.answer(QUESTIONS, PICTURES, seeds) for instructor in instructors)
        assert single == pairs == batch


def test_rows_that_end_early_keep_their_text(copied: Path, tiny_parts: dict[str, str]) -> None:
    """A token that comes early in some answers is made the end of text."""
    instructor = models(tiny_parts, copied).instructor
    processor = transformers.AutoProcessor.from_pretrained(copied)
    whole = [answer.text for answer in instructor.answer(QUESTIONS, PICTURES)]
    settings = json.loads((copied / "generation_config.json").read_text())
    letters = sorted({letter for text in whole for letter in text if letter.isascii() and letter.isalnum()})
    settings["eos_token_id"] = [settings["eos_token_id"], *processor.tokenizer.convert_tokens_to_ids(letters[:8])]
    (copied / "generation_config.json").write_text(json.dumps(settings))
    single, batch = (
        models(tiny_parts, copied, llm_batch=rows).instructor.answer(QUESTIONS, PICTURES) for rows in ("1", "6")
    )
    assert single == batch
    assert len({answer.output_tokens for answer in batch}) > 1 and {answer.stop_reason for answer in batch} >= {"eos"}


def test_seed_decides_what_is_sampled(folder_of: Callable[[str], Path], tiny_parts: dict[str, str]) -> None:
    instructor = models(tiny_parts, folder_of("llava"), temperature="1.5").instructor
    assert instructor.samples
    first, again, other = (
        [answer.text for answer in instructor.answer(QUESTIONS[:2], PICTURES[:2], seeds)]
        for seeds in ([1, 2], [1, 2], [2, 1])
    )
    assert first == again and first != other


@pytest.mark.parametrize("kind", ["llava", "idefics3", "gemma3"])
def test_another_picture_gives_another_text(
    kind: str, folder_of: Callable[[str], Path], tiny_parts: dict[str, str]
) -> None:
    instructor = models(tiny_parts, folder_of(kind)).instructor
    assert len({answer.text for answer in instructor.answer(["Why?"] * 6, PICTURES)}) > 1


def test_states_come_with_the_answer_where_they_are_kept(
    folder_of: Callable[[str], Path], tiny_parts: dict[str, str]
) -> None:
    kept = models(tiny_parts, folder_of("llava"), keep_states="yes").instructor.answer(QUESTIONS, PICTURES)
    alone = models(tiny_parts, folder_of("llava"), keep_states="yes", llm_batch="1").instructor
    for row, (answer, single) in enumerate(zip(kept, alone.answer(QUESTIONS, PICTURES))):
        assert answer.states is not None and single.states is not None
        assert answer.states.shape == (answer.output_tokens, 32), row
        assert torch.allclose(answer.states.float(), single.states.float(), atol=5e-3)


def test_half_precision_and_quantised_models_answer(
    folder_of: Callable[[str], Path], tiny_parts: dict[str, str]
) -> None:
    for settings in ({"llm_precision": "bf16"}, {"llm_precision": "bf16", "llm_device_map": "auto"}):
        assert all(texts(tiny_parts, folder_of("llava"), **settings))
    if importlib.util.find_spec("bitsandbytes") is not None:
        assert all(texts(tiny_parts, folder_of("llava"), llm_quantize="8bit"))


def test_quantised_model_without_bitsandbytes_is_one_clear_error(
    folder_of: Callable[[str], Path], tiny_parts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(UserError, match="needs bitsandbytes, which is not installed"):
        models(tiny_parts, folder_of("llava"), llm_quantize="4bit").instructor.load()


def test_out_of_memory_halves_the_rows_and_changes_no_word(
    folder_of: Callable[[str], Path], tiny_parts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    expected = texts(tiny_parts, folder_of("llava"))
    used = models(tiny_parts, folder_of("llava"), said)
    used.instructor.load()
    rows: list[int] = []

    def refuse(_: Any, __: Any, given: dict[str, Any]) -> None:
        rows.append(len(given["input_ids"]))
        if rows[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    used.instructor._model.register_forward_pre_hook(refuse, with_kwargs=True)  # type: ignore[attr-defined]
    assert [answer.text for answer in used.instructor.answer(QUESTIONS, PICTURES)] == expected
    assert said and all("the vision-language model: out of memory" in line for line in said)
    assert max(rows) > 1 and rows[-1] == 1


def test_recipe_has_model_prompt_and_decoding_and_loads_no_weights(copied: Path, tiny_parts: dict[str, str]) -> None:
    def recipe(**overrides: str) -> str:
        return json.dumps(models(tiny_parts, copied, **overrides).instruction_recipe(), sort_keys=True)

    base = recipe()
    assert json.loads(base)["prompt"] == f"<|user|><image>\n{QUESTION}<|end|><|assistant|>"
    assert json.loads(base)["image_processor"] == "CLIPImageProcessorPil" and str(copied) not in base
    changes = ({"max_new_tokens": "9"}, {"llm_precision": "bf16"}, {"temperature": "1"}, {"repetition_penalty": "2"})
    assert len({base, *(recipe(**change) for change in changes)}) == 5
    assert recipe(llm_batch="3") == base
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|>", "<|user|>Doctor: "))
    assert recipe() != base
    (copied / "model.safetensors").write_bytes(b"other")
    assert "Doctor: " in recipe()


def test_hub_brings_the_chat_template() -> None:
    assert "*.jinja" in MODEL_FILES
    needs = load_profile("lite", {"instructor": "vlm", "model": "hf:owner/name"}).needs
    assert set(needs) == {"litemedsam", "hf:owner/name", "all-minilm-l6-v2"}


def test_build_asks_the_model_of_every_picture(copied: Path, tiny_parts: dict[str, str], nnunet: Path, tmp_path: Path):
    dataset = open_dataset("nnunet", nnunet, modalities=("T2-SPIR",))
    used = models(tiny_parts, copied)
    build_cache(dataset, used, BuildOptions(tmp_path / "a.h5", layers=("slices", "instructions"), slice_step=6))
    with Cache(tmp_path / "a.h5") as cache:
        rows = cache.instructions("lite").to_pylist()
        images = cache.images(np.arange(len(cache.rows)))[:, 0]
    asked = question(dataset.card.instance, dataset.card.terms["T2-SPIR"])
    expected = used.instructor.answer([asked] * len(images), torch.from_numpy(images))
    assert [row["text"] for row in rows] == [answer.text for answer in expected]
    assert {row["prompt"] for row in rows} == {f"<|user|><image>\n{asked}<|end|><|assistant|>"}


def test_doctor_loads_and_asks_it(copied: Path, tiny_parts: dict[str, str]) -> None:
    def doctor() -> Any:
        command = ["doctor"]
        for part, value in {**tiny_parts, "instructor": "vlm", "model": str(copied), "llm": "none"}.items():
            command += ["--set", f"{part}={value}"]
        return CliRunner().invoke(main, command)

    done = doctor()
    assert done.exit_code == 0 and "instruction: " in done.output, done.output
    (copied / "chat_template.jinja").unlink()
    done = doctor()
    assert done.exit_code == 2 and "WRONG  instruction: the vision-language model" in done.output
    assert "has no chat template: expected chat_template.jinja" in done.output


def test_folder_without_processor_is_one_clear_error(copied: Path, tiny_parts: dict[str, str]) -> None:
    (copied / "processor_config.json").unlink()
    with pytest.raises(
        UserError, match=r"has no processor that transformers can read: expected processor_config\.json"
    ):
        models(tiny_parts, copied).instructor.load()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_processor_that_needs_torchvision_says_so(copied: Path, tiny_parts: dict[str, str]) -> None:
    path = copied / "processor_config.json"
    settings = json.loads(path.read_text())
    settings |= {
        "processor_class": "Qwen2VLProcessor",
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    path.write_text(json.dumps(settings))
    config = copied / "tokenizer_config.json"
    config.write_text(config.read_text().replace("LlavaProcessor", "Qwen2VLProcessor"))
    with pytest.raises(UserError, match="needs torchvision: pip install torchvision") as raised:
        models(tiny_parts, copied).instructor.load()
    assert "\n" not in str(raised.value)


def test_folder_of_a_language_model_is_one_clear_error(tiny_parts: dict[str, str], tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="has no processor that transformers can read"):
        models(tiny_parts, tiny_llama).instructor.load()


def test_folder_whose_weights_are_a_language_models_is_one_clear_error(
    copied: Path, tiny_parts: dict[str, str], tiny_llama: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_llama / name, copied / name)
    with pytest.raises(UserError, match="is not a vision-language model that transformers can read"):
        models(tiny_parts, copied).instructor.load()


def test_damaged_processor_is_one_clear_error(copied: Path, tiny_parts: dict[str, str]) -> None:
    (copied / "processor_config.json").write_text("{")
    with pytest.raises(UserError, match="has no processor that transformers can read") as raised:
        models(tiny_parts, copied).instructor.load()
    assert "\n" not in str(raised.value)


NO_TEMPLATE = "cannot read a picture with a question by its chat template"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        # With some versions a picture that the prompt has no token for is refused, with others it is dropped.
        ("<image>\n", "", f"{NO_TEMPLATE}|chat template of .* has no place for a picture"),
        ("<|user|>", "{{ raise_exception('no user here') }}", NO_TEMPLATE),
        ("<|user|>", "{% if %}", NO_TEMPLATE),
        ("message['content']", "message['words'].letters", NO_TEMPLATE),
    ],
)
def test_template_that_takes_no_picture_is_one_clear_error(
    before: str, after: str, message: str, copied: Path, tiny_parts: dict[str, str]
) -> None:
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().replace(before, after))
    with pytest.raises(UserError, match=message) as raised:
        models(tiny_parts, copied).instructor.load()
    assert "\n" not in str(raised.value)


def test_python_code_that_comes_with_a_processor_is_never_run(copied: Path, tiny_parts: dict[str, str]) -> None:
    path = copied / "processor_config.json"
    settings = {**json.loads(path.read_text()), "auto_map": {"AutoProcessor": "evil.Evil"}, "processor_class": "Evil"}
    path.write_text(json.dumps(settings))
    (copied / "evil.py").write_text(f"open({str(copied / 'run')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UserError, match="comes with Python code of its own"):
        models(tiny_parts, copied).instructor.load()
    assert not (copied / "run").exists()


def test_prompt_and_answer_beyond_the_context_are_one_clear_error(copied: Path, tiny_parts: dict[str, str]) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not fit the language model's context of 40"):
        models(tiny_parts, copied).instructor.answer(QUESTIONS, PICTURES)


def test_no_question_is_no_answer(copied: Path, tiny_parts: dict[str, str]) -> None:
    assert models(tiny_parts, copied).instructor.answer([], PICTURES[:0]) == []
