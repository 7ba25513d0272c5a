"""A profile's models, with tiny architectures in every place."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.assembly import Models, best_device, load_models
from zeus_union.stage1_instruct.models.bridge.connectors import save_connector
from zeus_union.stage1_instruct.models.language.prompts import QUESTION, question
from zeus_union.stage1_instruct.models.projected_llm import trained_projection
from zeus_union.stage1_instruct.profiles.profile import load_profile


def models(parts: dict[str, str], said: list[str] | None = None, **overrides: str) -> Models:
    return load_models(load_profile("lite", {**parts, **overrides}), "cpu", (said if said is not None else []).append)


def test_nothing_is_loaded_before_it_is_used(tiny_parts: dict[str, str]) -> None:
    models(tiny_parts, llm="/no/such/model", encoder_weights="/no/such/weights")


def test_picture_to_instruction_to_vector(tiny_parts: dict[str, str]) -> None:
    used = models(tiny_parts)
    embeddings = used.encoder.encode(np.random.default_rng(0).integers(0, 255, (2, 256, 256), dtype=np.uint8))
    answers = used.instructor.answer([question("liver", "MRI-T2")] * 2, embeddings)
    assert used.text_encoder.encode([answer.text for answer in answers]).shape == (2, 32)


@pytest.mark.parametrize("instructor", ["llm", "blip2"])
def test_loading_decoding_and_encoding_call_nothing_that_is_deprecated(
    instructor: str, tiny_parts: dict[str, str], tiny_blip2: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # transformers' category
        # Others warn of their own doings when they are imported: of these only what names our line counts.
        warnings.filterwarnings("error", category=DeprecationWarning, module=r"(zeus_union|transformers)\.")
        used = models(tiny_parts, instructor=instructor, blip2=str(tiny_blip2))
        image = np.zeros((1, 256, 256), np.uint8)
        seen = torch.from_numpy(image) if instructor == "blip2" else used.encoder.encode(image)
        answers = used.instructor.answer([question("liver", "MRI-T2"), "Why?"], seen.expand(2, *seen.shape[1:]))
        used.text_encoder.encode([answer.text for answer in answers])


def test_untrained_projection_is_said_and_recorded(tiny_parts: dict[str, str]) -> None:
    said: list[str] = []
    used = models(tiny_parts, said)
    assert used.instruction_recipe()["projection"] == "untrained"
    assert "UNTRAINED" in said[0]
    assert len(said) == 1


def test_trained_projection_kept_with_the_models_is_used_and_recorded(tiny_parts: dict[str, str]) -> None:
    first = models(tiny_parts)
    projection = first.projected_llm.new_projection(seed=5)
    facts = {"vision": first.projected_llm.vision_recipe(), "llm_sha256": first.projected_llm.llm.digest}
    save_connector(projection, trained_projection(first.projected_llm.belongs_to()), facts)
    said: list[str] = []
    used = models(tiny_parts, said)
    assert used.instruction_recipe()["projection"]["sha256"] == projection.digest()
    assert said == []
    assert models(tiny_parts, projection="untrained").instruction_recipe()["projection"] == "untrained"


def test_projection_trained_on_other_features_is_refused(tiny_parts: dict[str, str]) -> None:
    first = models(tiny_parts)
    vision = {**first.projected_llm.vision_recipe(), "pooling": "another"}
    facts = {"vision": vision, "llm_sha256": first.projected_llm.llm.digest}
    save_connector(first.projected_llm.new_projection(), trained_projection(first.projected_llm.belongs_to()), facts)
    with pytest.raises(UserError, match=r"trained on other vision features \(pooling differ"):
        _ = models(tiny_parts).projected_llm.projection


def test_projection_trained_through_another_llm_is_said(tiny_parts: dict[str, str]) -> None:
    first, said = models(tiny_parts), []  # type: ignore[var-annotated]
    facts = {"vision": first.projected_llm.vision_recipe(), "llm_sha256": "another"}
    save_connector(first.projected_llm.new_projection(), trained_projection(first.projected_llm.belongs_to()), facts)
    _ = models(tiny_parts, said).projected_llm.projection
    assert "another language model" in said[0]


def test_missing_projection_file_is_one_clear_error(tiny_parts: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no projection at"):
        _ = models(tiny_parts, projection="absent.safetensors").projected_llm.projection


def test_recipe_is_json_and_differs_with_every_part_that_decides_the_text(tiny_parts: dict[str, str]) -> None:
    def recipe(**overrides: str) -> str:
        return json.dumps(models(tiny_parts, **overrides).instruction_recipe(), sort_keys=True)

    base = recipe()
    changed = ({"template": "xraygpt"}, {"max_new_tokens": "9"}, {"vision": "pooled"}, {"repetition_penalty": "2"})
    assert all(recipe(**change) != base for change in changed)
    assert recipe(llm_batch="1") == base


def test_bare_prompt_loads_no_language_model_and_its_recipe_says_so(tiny_parts: dict[str, str]) -> None:
    said: list[str] = []
    used = models(tiny_parts, said, instructor="prompt", llm="/no/such/model")
    recipe = used.instruction_recipe()
    assert recipe == {"instructor": "prompt", "question": QUESTION, "text_encoder": used.text_encoder.recipe()}
    assert used.instructor.prompt("Where is it?") == "Where is it?" and said == []
    with pytest.raises(UserError, match="prompt has no language model; give --set instructor=llm"):
        used.projected_llm.new_projection()


def test_pooled_vision_is_one_image_token(tiny_parts: dict[str, str]) -> None:
    assert models(tiny_parts, vision="pooled").projected_llm.image_tokens(torch.zeros(3, 256, 64, 64)).shape == (
        3,
        1,
        32,
    )


def test_projection_of_another_kind_is_refused(tiny_parts: dict[str, str]) -> None:
    first = models(tiny_parts, connector="linear")
    path = trained_projection(first.projected_llm.belongs_to())
    facts = {"vision": first.projected_llm.vision_recipe(), "llm_sha256": first.projected_llm.llm.digest}
    save_connector(first.projected_llm.new_projection(), path, facts)
    with pytest.raises(UserError, match="of the kind linear, the profile asks for mlp"):
        _ = models(tiny_parts, projection=str(path)).projected_llm.projection


def test_auto_finds_the_projection_of_the_models_at_hand_and_of_no_others(
    tiny_parts: dict[str, str], beginning_llama: Path
) -> None:
    """Another language model, other features or another connector never overwrite nor find it."""
    changes: tuple[dict[str, str], ...] = (
        {},
        {"llm": str(beginning_llama)},
        {"vision": "pooled"},
        {"vision_grid": "2"},
        {"connector": "linear"},
    )
    paths = {trained_projection(models(tiny_parts, **change).projected_llm.belongs_to()) for change in changes}
    assert len(paths) == len(changes)
    first = models(tiny_parts)
    facts = {"vision": first.projected_llm.vision_recipe(), "llm_sha256": first.projected_llm.llm.digest}
    save_connector(first.projected_llm.new_projection(), trained_projection(first.projected_llm.belongs_to()), facts)
    untrained = [models(tiny_parts, **change).instruction_recipe()["projection"] == "untrained" for change in changes]
    assert untrained == [False, True, True, True, True]
    assert models(tiny_parts, template="xraygpt", max_new_tokens="9").instruction_recipe()["projection"] != "untrained"


def test_recipe_names_the_subjects_that_the_projection_has_seen(tiny_parts: dict[str, str], tmp_path: Path) -> None:
    first = models(tiny_parts)
    facts = {"vision": first.projected_llm.vision_recipe(), "llm_sha256": first.projected_llm.llm.digest}
    recipes = []
    for name, more in (
        ("a", {}),
        ("b", {"subjects": [], "held_out_subjects": ["s9"]}),
        ("c", {"subjects": ["s2", "s1"]}),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_connector(first.projected_llm.new_projection(), path, {**facts, **more})
        recipes.append(models(tiny_parts, projection=str(path)).instruction_recipe()["projection"])
    assert recipes[0] == recipes[1] and "trained_on" not in recipes[0]
    assert recipes[2] == {**recipes[0], "trained_on": {"subjects": ["s1", "s2"]}}


def test_image_tokens_are_made_a_few_at_a_time_and_halved_when_memory_runs_out(
    tiny_parts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    images = torch.randn(70, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([models(tiny_parts).projected_llm.image_tokens(image[None]) for image in images[:3]])
    llm = models(tiny_parts, said).projected_llm
    sizes: list[int] = []
    see = llm.vision.tokens

    def tokens(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return see(batch)

    monkeypatch.setattr(type(llm.vision), "tokens", lambda _, batch: tokens(batch))
    answered = llm.image_tokens(images)
    assert answered.shape == (70, 16, 32)
    assert torch.allclose(answered[:3], expected, atol=1e-5)
    assert sizes == [32, 16, 16, 16, 16, 6] and any("continuing with 16" in line for line in said)
    assert llm.features(images[:0]).shape == (0, 16, 256)


@pytest.mark.parametrize("connector", ["mlp", "linear", "qformer"])
def test_every_connector_leads_from_picture_to_instruction(connector: str, tiny_parts: dict[str, str]) -> None:
    used = models(tiny_parts, connector=connector)
    tokens = used.projected_llm.image_tokens(torch.zeros(2, 256, 64, 64))
    assert tokens.shape[0] == 2 and tokens.shape[2] == 32
    assert len(used.instructor.answer([question("liver", "MRI-T2")] * 2, torch.zeros(2, 256, 64, 64))) == 2


def test_processes_of_a_launcher_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, device in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert best_device() == device


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [({}, 128), ({"max_new_tokens": "200"}, 200), ({"keep_states": "yes"}, 300)],
)
def test_answer_is_no_longer_than_the_text_encoder_reads_unless_it_is_asked_to_be(
    overrides: dict[str, str], expected: int, tiny_parts: dict[str, str]
) -> None:
    used = models(tiny_parts, **{"max_new_tokens": "auto", **overrides})
    assert (
        used.max_new_tokens == min(expected, 300)
        and used.instruction_recipe()["llm"]["decoding"]["max_new_tokens"] == used.max_new_tokens
    )


def test_rows_together_are_chosen_when_the_first_prompts_are_known(tiny_parts: dict[str, str]) -> None:
    chosen = [
        models(tiny_parts, llm_batch=rows).instructor.answer(
            [question("liver", "MRI-T2")] * 3, torch.zeros(3, 256, 64, 64)
        )
        for rows in ("auto", "1")
    ]
    assert chosen[0] == chosen[1]
