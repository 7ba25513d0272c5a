"""A profile's models, each loaded when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import UserError
from cache.terminal import say as say_to_terminal
from stage1_instruct.models.connectors import Projection
from stage1_instruct.models.image_encoder import ImageEncoder
from stage1_instruct.models.llm import Decoding, Generation, InstructionLLM
from stage1_instruct.models.text_encoder import TextEncoder
from stage1_instruct.models.vision_features import VisionFeatures
from stage1_instruct.profiles import Profile
from stage1_instruct.prompts import template
from stage1_instruct.weights import zeus_home


def trained_projection(profile: Profile) -> Path:
    """Where the trained projection of a profile is kept with the models."""
    return zeus_home() / profile.name / "projection.safetensors"


def best_device() -> str:
    """'cuda' where there is a GPU, else 'cpu'."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Models:
    """The frozen models of a profile on one device."""

    def __init__(
        self, profile: Profile, device: str | torch.device, say: Callable[[str], None] = say_to_terminal
    ) -> None:
        self.profile = profile
        self.device = torch.device(device)
        self._say = say

    @cached_property
    def encoder(self) -> ImageEncoder:
        profile = self.profile
        if profile.encoder == "litemedsam":
            from stage1_instruct.models.litemedsam import LiteMedSAM

            return LiteMedSAM(profile.encoder_weights, self.device)
        from stage1_instruct.models.sam import SamEncoder

        return SamEncoder(profile.encoder, profile.encoder_weights, self.device)

    @cached_property
    def vision(self) -> VisionFeatures:
        return VisionFeatures(1 if self.profile.vision == "pooled" else self.profile.vision_grid)

    @cached_property
    def llm(self) -> InstructionLLM:
        profile = self.profile
        decoding = Decoding(
            max_new_tokens=profile.max_new_tokens,
            repetition_penalty=profile.repetition_penalty,
            no_repeat_ngram_size=profile.no_repeat_ngram_size,
            batch_size=profile.llm_batch,
        )
        return InstructionLLM(profile.llm, template(profile.template), decoding, self.device)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        return TextEncoder(self.profile.text_encoder, self.device)

    @cached_property
    def projection(self) -> Projection:
        """The projection the profile names, on the device; says so where it is untrained.

        Raises:
            UserError: it was trained for other widths, or on another encoder's features.
        """
        return self._projection[0]

    @cached_property
    def _projection(self) -> tuple[Projection, dict[str, Any]]:
        chosen = self.profile.projection
        path = trained_projection(self.profile) if chosen == "auto" else Path(chosen).expanduser()
        if chosen == "untrained" or (chosen == "auto" and not path.exists()):
            self._say(
                "the projection from image to language model is UNTRAINED: the text hardly depends on the image; "
                f"zeus-instruct train-projection --models {self.profile.name} trains one"
            )
            return self.new_projection().to(self.device), {"trained": False}
        if not path.exists():
            raise UserError(f"no projection at {path}: expected 'auto', 'untrained' or a file of train-projection")
        projection, facts = Projection.load(path, self.vision.width, self.llm.width)
        differing = [part for part, value in self.vision_recipe().items() if facts.get("vision", {}).get(part) != value]
        if differing:
            raise UserError(
                f"the projection {path} was trained on other vision features ({', '.join(differing)} differ); "
                "train one for this profile (zeus-instruct train-projection) or --set projection=untrained"
            )
        if facts.get("llm_sha256") != self.llm.digest:
            self._say(f"the projection {path} was trained through another language model of the same width")
        return projection.eval().requires_grad_(False).to(self.device), {"trained": True, **facts}

    def new_projection(self, seed: int = 0) -> Projection:
        """A seeded, untrained projection for this profile."""
        embedding = self.llm.embedding.weight.detach()
        return Projection.untrained(self.vision.width, self.profile.projection_hidden, embedding, seed)

    def vision_recipe(self) -> dict[str, Any]:
        """What decides the vision features."""
        return {"encoder": self.encoder.recipe(), **self.vision.recipe()}

    @torch.inference_mode()
    def image_tokens(self, embeddings: Tensor) -> Tensor:
        """Embeddings float32 (B, 256, 64, 64) -> image tokens for the LLM, float32 (B, T, H)."""
        return self.projection(self.vision.tokens(embeddings.to(self.device)))

    def instruct(self, questions: Sequence[str], embeddings: Tensor) -> list[Generation]:
        """One instruction per question and embedding (B, 256, 64, 64), in order."""
        return self.llm.generate(questions, self.image_tokens(embeddings))

    def instruction_recipe(self) -> dict[str, Any]:
        """What decides an instruction's text and its embedding, JSON-able, without paths."""
        projection, facts = self._projection
        state = {"sha256": projection.digest(), **projection.sizes} if facts["trained"] else "untrained"
        return {
            "vision": self.vision_recipe(),
            "projection": state,
            "llm": self.llm.recipe(),
            "text_encoder": self.text_encoder.recipe(),
        }


def load_models(
    profile: Profile, device: str | torch.device = "cpu", say: Callable[[str], None] = say_to_terminal
) -> Models:
    """The profile's models; nothing is loaded before it is used."""
    return Models(profile, device, say)
