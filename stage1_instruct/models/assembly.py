"""A profile's models, each loaded when it is first used."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say as say_to_terminal
from zeus_union.stage1_instruct.models.bridge.connectors import Connector, load_connector, new_connector
from zeus_union.stage1_instruct.models.image.encoder import ImageEncoder
from zeus_union.stage1_instruct.models.language.llm import Decoding, Generation, InstructionLLM, Loading
from zeus_union.stage1_instruct.models.language.prompts import QUESTION, template
from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder, TextEncoder
from zeus_union.stage1_instruct.models.vision.regions import Vision, VisionFeatures
from zeus_union.stage1_instruct.profiles.profile import NONE, PROMPT, Profile
from zeus_union.stage1_instruct.weights.store import zeus_home

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.models.language.blip2 import Blip2


def trained_projection(profile: Profile) -> Path:
    """Where the trained projection of a profile is kept with the models."""
    return zeus_home() / profile.name / "projection.safetensors"


def best_device() -> str:
    """'cuda' where there is a GPU, the one of its own for each process of accelerate launch; else 'cpu'."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


class Models:
    """The frozen models of a profile on one device."""

    def __init__(
        self,
        profile: Profile,
        device: str | torch.device,
        say: Callable[[str], None] = say_to_terminal,
        batch_size: int | None = None,
    ) -> None:
        self.profile = profile
        self.device = torch.device(device)
        self._say = say
        self._batch_size = batch_size

    @cached_property
    def encoder(self) -> ImageEncoder:
        profile = self.profile
        if profile.encoder == "litemedsam":
            from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM

            return LiteMedSAM(profile.encoder_weights, self.device)
        from zeus_union.stage1_instruct.models.image.sam import SamEncoder

        return SamEncoder(
            profile.encoder, profile.encoder_weights, self.device, profile.encoder_precision, self._batch_size
        )

    @cached_property
    def vision(self) -> Vision:
        profile = self.profile
        if profile.instructor == "blip2":
            return self._blip2
        if profile.vision.startswith("medclip"):
            from zeus_union.stage1_instruct.models.medclip import MedCLIPVision

            variant = profile.vision.removeprefix("medclip_")
            return MedCLIPVision(variant, profile.vision_weights, profile.vision_feature, self.device)
        return VisionFeatures(1 if profile.vision == "pooled" else profile.vision_grid)

    @cached_property
    def llm(self) -> InstructionLLM:
        """Raises UserError: the instructor is the bare prompt, or the language model cannot be loaded."""
        profile = self.profile
        if profile.instructor == PROMPT:
            raise UserError("instructor = prompt has no language model; give --set instructor=llm")
        decoding = Decoding(
            max_new_tokens=profile.max_new_tokens,
            repetition_penalty=profile.repetition_penalty,
            no_repeat_ngram_size=profile.no_repeat_ngram_size,
            batch_size=profile.llm_batch,
            temperature=profile.temperature,
            top_p=profile.top_p,
            keep_states=profile.keep_states,
        )
        if profile.instructor == "blip2":
            llm = InstructionLLM(self._blip2.loaded, template("blip2"), decoding, self.device, self._loading)
        else:
            llm = InstructionLLM(profile.llm, template(profile.template), decoding, self.device, self._loading)
        if profile.lora != NONE:
            from zeus_union.stage1_instruct.models.language.lora import load_lora

            load_lora(llm.model, Path(profile.lora).expanduser())
        return llm

    @cached_property
    def _blip2(self) -> Blip2:
        from zeus_union.stage1_instruct.models.language.blip2 import Blip2

        return Blip2(self.profile.blip2, self._loading, self.device)

    @property
    def _loading(self) -> Loading:
        return Loading(self.profile.llm_precision, self.profile.llm_quantize, self.profile.llm_device_map)

    @cached_property
    def text_encoder(self) -> InstructionEncoder:
        profile = self.profile
        if profile.text_kind == "medclip":
            from zeus_union.stage1_instruct.models.medclip import MedCLIPText

            return MedCLIPText(profile.text_encoder, profile.text_tokenizer, profile.text_window, self.device)
        if profile.text_kind == "clip":
            from zeus_union.stage1_instruct.models.text.clip import CLIPText

            return CLIPText(profile.text_encoder, self.device)
        return TextEncoder(profile.text_encoder, self.device)

    @cached_property
    def projection(self) -> Connector:
        """The projection the profile names, on the device; says so where it is untrained.

        Raises:
            UserError: it was trained for other widths, or on another encoder's features.
        """
        return self._projection[0]

    @cached_property
    def _projection(self) -> tuple[Connector, dict[str, Any]]:
        if self.profile.instructor == "blip2":
            return self.new_projection().to(self.device), {"trained": True}
        chosen = self.profile.projection
        path = trained_projection(self.profile) if chosen == "auto" else Path(chosen).expanduser()
        if chosen == "untrained" or (chosen == "auto" and not path.exists()):
            self._say(
                "the projection from image to language model is UNTRAINED: the text hardly depends on the image; "
                f"zeus-instruct train-projection --models {self.profile.name} trains one"
            )
            return self.new_projection().eval().requires_grad_(False).to(self.device), {"trained": False}
        if not path.exists():
            raise UserError(f"no projection at {path}: expected 'auto', 'untrained' or a file of train-projection")
        projection, facts = load_connector(path, self.vision.width, self.llm.width)
        if projection.kind != self.profile.connector:
            raise UserError(
                f"the projection {path} is of the kind {projection.kind}, the profile wants {self.profile.connector}; "
                f"--set connector={projection.kind}, or train another (zeus-instruct train-projection)"
            )
        if not facts:
            self._say(f"the projection {path} was trained on another model's vision features (XrayGPT's, MiniGPT-4's)")
            return projection.eval().requires_grad_(False).to(self.device), {"trained": True}
        differing = [part for part, value in self.vision_recipe().items() if facts.get("vision", {}).get(part) != value]
        if differing:
            raise UserError(
                f"the projection {path} was trained on other vision features ({', '.join(differing)} differ); "
                "train one for this profile (zeus-instruct train-projection) or --set projection=untrained"
            )
        if facts.get("llm_sha256") != self.llm.digest:
            self._say(f"the projection {path} was trained through another language model of the same width")
        return projection.eval().requires_grad_(False).to(self.device), {"trained": True, **facts}

    def new_projection(self, seed: int = 0) -> Connector:
        """A seeded, untrained projection for this profile; BLIP-2, which has its own, needs none."""
        if self.profile.instructor == "blip2":
            return Connector("none", self.vision.width, 0, self.llm.width)
        embedding = self.llm.embedding.weight.detach()
        profile = self.profile
        return new_connector(profile.connector, self.vision.width, profile.projection_hidden, embedding, seed)

    def vision_recipe(self) -> dict[str, Any]:
        """What decides the vision features."""
        if self.profile.sees_pictures:
            return self.vision.recipe()
        return {"encoder": self.encoder.recipe(), **self.vision.recipe()}

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Vision features float32 (B, T, C) on the device.

        Args:
            images: what the profile's vision sees: embeddings float32 (B, 256, 64, 64), or pictures uint8 (B, H, W)
                where `profile.sees_pictures`.
        """
        return self.vision.tokens(images if self.profile.sees_pictures else images.to(self.device))

    @torch.inference_mode()
    def image_tokens(self, images: Tensor) -> Tensor:
        """Images as for `features` -> image tokens for the LLM, float32 (B, T, H)."""
        return self.projection(self.features(images))

    def instruct(
        self, questions: Sequence[str], images: Tensor, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """One instruction per question and image (as for `features`), in order; `seeds` count where it samples.

        The instructor 'prompt' is no model and is not asked: there `Models.llm` raises.
        """
        return self.llm.generate(questions, self.image_tokens(images), seeds)

    def prompt(self, question: str) -> str:
        """The whole prompt as a person reads it; where no language model is asked, the question."""
        return question if self.profile.instructor == PROMPT else self.llm.template.prompt(question)

    def instruction_recipe(self) -> dict[str, Any]:
        """What decides an instruction's text and its embedding, JSON-able, without paths."""
        if self.profile.instructor == PROMPT:
            return {"instructor": PROMPT, "question": QUESTION, "text_encoder": self.text_encoder.recipe()}
        projection, facts = self._projection
        state = {"sha256": projection.digest(), **projection.sizes} if facts["trained"] else "untrained"
        recipe = {
            "vision": self.vision_recipe(),
            "connector": projection.kind,
            "projection": state,
            "llm": self.llm.recipe(),
            "text_encoder": self.text_encoder.recipe(),
        }
        if self.profile.lora != NONE:
            from zeus_union.stage1_instruct.models.language.lora import lora_digest

            recipe["lora"] = lora_digest(Path(self.profile.lora).expanduser())
        return recipe


def load_models(
    profile: Profile,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = say_to_terminal,
    batch_size: int | None = None,
) -> Models:
    """The profile's models; nothing is loaded before it is used.

    Args:
        batch_size: pictures at a time through the image encoder; None: as many as fit.
    """
    return Models(profile, device, say, batch_size)
