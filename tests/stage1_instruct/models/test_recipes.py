"""A recipe that is made without weights is, byte for byte, the loaded model's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import canonical_json
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.models.bridge.connectors import save_connector
from zeus_union.stage1_instruct.models.image import sam as sam_module
from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM
from zeus_union.stage1_instruct.models.image.sam import SIZES, SamEncoder, Size, build_sam
from zeus_union.stage1_instruct.models.language.blip2 import Blip2
from zeus_union.stage1_instruct.models.language.lora import add_lora, lora_digest, save_lora
from zeus_union.stage1_instruct.models.text.bert import TextEncoder
from zeus_union.stage1_instruct.models.text.clip import CLIPText
from zeus_union.stage1_instruct.models.text.medclip import MedCLIPText
from zeus_union.stage1_instruct.models.vision.medclip import MedCLIPVision
from zeus_union.stage1_instruct.profiles.profile import load_profile

TINY = Size(32, 2, 2, (1,))


def models(parts: dict[str, str], **overrides: str) -> Models:
    return load_models(load_profile("lite", {**parts, **overrides}), "cpu", lambda message: None)


def same(recipe: dict[str, Any], loaded: dict[str, Any]) -> None:
    assert canonical_json(recipe) == canonical_json(loaded)


def test_litemedsam(random_litemedsam: Path) -> None:
    same(LiteMedSAM.recipe_of(str(random_litemedsam)), LiteMedSAM(str(random_litemedsam)).recipe())


@pytest.mark.parametrize(("name", "precision"), [("sam_vit_b", "bf16"), ("medsam", "fp32")])
def test_sam(name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_module, "SIZES", dict.fromkeys(SIZES, TINY))
    try:
        state = build_sam(TINY).state_dict()
    except UserError as error:
        pytest.skip(f"segment_anything is not here: {error}")
    path = tmp_path / "sam.pth"
    torch.save({key: torch.zeros_like(tensor) for key, tensor in state.items()}, path)
    encoder = SamEncoder(name, str(path), precision=precision)
    same(SamEncoder.recipe_of(name, str(path), precision), encoder.recipe())


def test_bert(tiny_bert: Path) -> None:
    same(TextEncoder.recipe_of(str(tiny_bert)), TextEncoder(str(tiny_bert)).recipe())
    assert TextEncoder.recipe_of(str(tiny_bert))["max_tokens"] == 128


@pytest.mark.parametrize("kind", ["whole", "text"])
def test_clip(kind: str, tmp_path: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(tmp_path)
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**body, "vocab_size": len(words), "max_position_embeddings": 40, "projection_dim": 24}
    if kind == "text":
        model: Any = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
    else:
        vision = {**body, "image_size": 32, "patch_size": 8}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        )
    model.save_pretrained(tmp_path)
    same(CLIPText.recipe_of(str(tmp_path)), CLIPText(str(tmp_path)).recipe())
    assert CLIPText.recipe_of(str(tmp_path))["max_tokens"] == 40


@pytest.mark.parametrize("variant", ["vit", "resnet"])
def test_medclip_image_half(variant: str, request: pytest.FixtureRequest) -> None:
    weights = request.getfixturevalue(variant)
    same(MedCLIPVision.recipe_of(variant, weights, "tokens"), MedCLIPVision(variant, weights, "tokens").recipe())


@pytest.mark.parametrize("window", ["truncate", "extended", "mean"])
def test_medclip_text_half(window: str, text: str, words: str) -> None:
    same(MedCLIPText.recipe_of(text, words, window), MedCLIPText(text, words, window).recipe())


def test_blip2_and_its_widths(tiny_blip2: Path) -> None:
    blip2 = Blip2(str(tiny_blip2))
    same(Blip2.recipe_of(str(tiny_blip2)), blip2.recipe())
    assert Blip2.widths_of(str(tiny_blip2)) == (blip2.width, blip2.loaded.model.get_input_embeddings().embedding_dim)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"template": "xraygpt", "llm_precision": "bf16", "keep_states": "yes", "temperature": "0.7", "top_p": "0.9"},
        {"connector": "linear", "vision": "pooled"},
        {"connector": "qformer"},
        {"instructor": "blip2"},
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_instruction_recipe_is_made_of_what_is_loaded_later(
    parts: dict[str, str], trained: bool, tiny_parts: dict[str, str], tiny_blip2: Path, tmp_path: Path
) -> None:
    if parts.get("instructor") == "blip2":
        parts = {**parts, "blip2": str(tiny_blip2)}
    if trained:
        first = models(tiny_parts, **parts).projected_llm
        facts = {"vision": first.vision_recipe(), "llm_sha256": first.llm.digest}
        save_connector(first.new_projection(seed=3), tmp_path / "projection.safetensors", facts)
        parts = {**parts, "projection": str(tmp_path / "projection.safetensors")}
    used = models(tiny_parts, **parts)
    recipe = used.instruction_recipe()
    llm = used.projected_llm
    llm.load()
    projection: Any = {"sha256": llm.projection.digest(), **llm.projection.sizes}
    vision = llm.vision.recipe()
    loaded = {
        "vision": vision if llm.sees == "pictures" else {"encoder": used.encoder.recipe(), **vision},
        "connector": llm.projection.kind,
        "projection": projection if trained or parts.get("instructor") == "blip2" else "untrained",
        "llm": llm.llm.recipe(),
        "text_encoder": used.text_encoder.recipe(),
    }
    same(recipe, loaded)
    same(used.encoder_recipe(), used.encoder.recipe())


def test_lora_is_its_files_digest(tiny_parts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_parts["llm"])
    add_lora(model, rank=2)
    save_lora(model, path, 2, {})
    plain = models(tiny_parts).instruction_recipe()
    same(models(tiny_parts, lora=str(path)).instruction_recipe(), {**plain, "lora": lora_digest(path)})


def test_projection_for_other_widths_is_refused_when_the_models_are_loaded(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    first = models(tiny_parts).projected_llm
    facts = {"vision": first.vision_recipe(), "llm_sha256": first.llm.digest}
    wide = transformers.LlamaConfig.from_pretrained(tiny_parts["llm"])
    wide.hidden_size = 64
    transformers.LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    transformers.AutoTokenizer.from_pretrained(tiny_parts["llm"]).save_pretrained(tmp_path / "wide")
    path = tmp_path / "projection.safetensors"
    save_connector(first.new_projection(), path, facts)
    used = models(tiny_parts, projection=str(path), llm=str(tmp_path / "wide"))
    with pytest.raises(UserError, match="feeds a language model 32 wide, but this profile's are 64"):
        used.instructor.load()
