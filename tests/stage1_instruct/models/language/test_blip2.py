"""BLIP-2 through the same doors as every other model, against transformers' own way of using it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.models.language.blip2 import Blip2, preprocess
from zeus_union.stage1_instruct.profiles.profile import load_profile

# Black, white, and a gradient: noise would be the same to a vision tower of random weights.
IMAGES = torch.stack([torch.zeros(256, 256), torch.full((256, 256), 255), torch.arange(256).expand(256, -1)]).byte()
QUESTIONS = ("What is it?", "Where is the liver in this rather long question?", "And now?")


def profile(folder: Path, tiny_parts: dict[str, str], **more: str) -> dict[str, str]:
    return {**tiny_parts, "instructor": "blip2", "blip2": str(folder), "no_repeat_ngram_size": "0", **more}


def test_pictures_are_prepared_as_transformers_does() -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 256, 256), dtype=np.uint8)
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224})
    theirs = processor([Image.fromarray(image).convert("RGB") for image in images], return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocess(images, 224), theirs, atol=1e-5, rtol=0)


def test_answers_equal_those_of_transformers_generate(tiny_blip2: Path, tiny_parts: dict[str, str]) -> None:
    used = load_models(load_profile("lite", profile(tiny_blip2, tiny_parts, max_new_tokens="12")))
    answers = used.instructor.answer(QUESTIONS, IMAGES)
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(tiny_blip2, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_blip2)
    for question, image, answer in zip(QUESTIONS, IMAGES, answers):
        text = tokenizer(f"Question: {question} Answer:").input_ids
        ids = torch.tensor([[model.config.image_token_id] * 5 + text])
        pixels = preprocess(image[None].numpy(), 28)
        out = model.generate(pixel_values=pixels, input_ids=ids, max_new_tokens=12, do_sample=False)
        new = out[0, ids.shape[1] :] if out.shape[1] > ids.shape[1] else out[0]
        said = tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]
        assert answer.text == " ".join(said.split())
        assert answer.prompt_tokens == ids.shape[1]


def test_image_decides_the_answer_and_the_batch_does_not(tiny_blip2: Path, tiny_parts: dict[str, str]) -> None:
    used = load_models(load_profile("lite", profile(tiny_blip2, tiny_parts)))
    together = used.instructor.answer(QUESTIONS[:1] * 3, IMAGES)
    assert [used.instructor.answer(QUESTIONS[:1], image[None])[0] for image in IMAGES] == together
    # What the language model is shown differs from image to image; greedy words of random weights need not.
    shown = used.projected_llm.image_tokens(IMAGES)
    assert all((shown[i] - shown[j]).abs().max() > 0.01 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_recipe_holds_the_model_and_the_prompt_and_no_projection_of_ours(
    tiny_blip2: Path, tiny_parts: dict[str, str]
) -> None:
    recipe = load_models(load_profile("lite", profile(tiny_blip2, tiny_parts))).instruction_recipe()
    json.dumps(recipe)
    assert recipe["vision"]["source"] == "BLIP-2"
    assert recipe["connector"] == "none"
    assert recipe["llm"]["template"]["text"] == "{image}Question: {question} Answer:"


def test_other_folders_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a BLIP-2 folder"):
        Blip2(str(tiny_llama))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "blip-2", "use_decoder_only_language_model": False})
    )
    with pytest.raises(UserError, match="expected BLIP-2 with OPT"):
        Blip2(str(tmp_path))


def test_profile_without_the_folder_says_so() -> None:
    with pytest.raises(UserError, match="instructor = blip2 needs blip2"):
        load_profile("lite", {"instructor": "blip2"})
