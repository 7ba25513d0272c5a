"""A profile's models, with tiny architectures in every place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import UserError
from stage1_instruct.models.load import Models, load_models, trained_projection
from stage1_instruct.profiles import load_profile
from stage1_instruct.prompts import question


@pytest.fixture
def parts(
    random_litemedsam: Path, tiny_llama: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))
    return {
        "encoder_weights": str(random_litemedsam),
        "llm": str(tiny_llama),
        "text_encoder": str(tiny_bert),
        "max_new_tokens": "8",
    }


def models(parts: dict[str, str], said: list[str] | None = None, **overrides: str) -> Models:
    return load_models(load_profile("lite", {**parts, **overrides}), "cpu", (said if said is not None else []).append)


def test_nothing_is_loaded_before_it_is_used(parts: dict[str, str]) -> None:
    models(parts, llm="/no/such/model", encoder_weights="/no/such/weights")


def test_picture_to_instruction_to_vector(parts: dict[str, str]) -> None:
    used = models(parts)
    embeddings = used.encoder.encode(np.random.default_rng(0).integers(0, 255, (2, 256, 256), dtype=np.uint8))
    answers = used.instruct([question("liver", "MRI-T2")] * 2, embeddings)
    assert used.text_encoder.encode([answer.text for answer in answers]).shape == (2, 32)


def test_untrained_projection_is_said_and_recorded(parts: dict[str, str]) -> None:
    said: list[str] = []
    used = models(parts, said)
    assert used.instruction_recipe()["projection"] == "untrained"
    assert "UNTRAINED" in said[0]
    assert len(said) == 1


def test_trained_projection_kept_with_the_models_is_used_and_recorded(parts: dict[str, str]) -> None:
    first = models(parts)
    projection = first.new_projection(seed=5)
    facts = {"vision": first.vision_recipe(), "llm_sha256": first.llm.digest}
    projection.save(trained_projection(first.profile), facts)
    said: list[str] = []
    used = models(parts, said)
    assert used.instruction_recipe()["projection"]["sha256"] == projection.digest()
    assert said == []
    assert models(parts, projection="untrained").instruction_recipe()["projection"] == "untrained"


def test_projection_trained_on_other_features_is_refused(parts: dict[str, str]) -> None:
    first = models(parts)
    vision = {**first.vision_recipe(), "pooling": "another"}
    first.new_projection().save(trained_projection(first.profile), {"vision": vision, "llm_sha256": first.llm.digest})
    with pytest.raises(UserError, match=r"trained on other vision features \(pooling differ"):
        _ = models(parts).projection


def test_projection_trained_through_another_llm_is_said(parts: dict[str, str]) -> None:
    first, said = models(parts), []  # type: ignore[var-annotated]
    first.new_projection().save(
        trained_projection(first.profile), {"vision": first.vision_recipe(), "llm_sha256": "another"}
    )
    _ = models(parts, said).projection
    assert "another language model" in said[0]


def test_missing_projection_file_is_one_clear_error(parts: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no projection at"):
        _ = models(parts, projection="absent.safetensors").projection


def test_recipe_is_json_and_differs_with_every_part_that_decides_the_text(parts: dict[str, str]) -> None:
    def recipe(**overrides: str) -> str:
        return json.dumps(models(parts, **overrides).instruction_recipe(), sort_keys=True)

    base = recipe()
    changed = ({"template": "xraygpt"}, {"max_new_tokens": "9"}, {"vision": "pooled"}, {"repetition_penalty": "2"})
    assert all(recipe(**change) != base for change in changed)
    assert recipe(llm_batch="1") == base


def test_pooled_vision_is_one_image_token(parts: dict[str, str]) -> None:
    assert models(parts, vision="pooled").image_tokens(torch.zeros(3, 256, 64, 64)).shape == (3, 1, 32)
