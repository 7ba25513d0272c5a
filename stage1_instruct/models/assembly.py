"""A profile's models, each loaded when it is first used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch

from zeus_union.cache import devices
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import warn
from zeus_union.stage1_instruct.models.frozen import Frozen
from zeus_union.stage1_instruct.models.image.encoder import ImageEncoder
from zeus_union.stage1_instruct.models.image.encoders import ENCODERS
from zeus_union.stage1_instruct.models.instructor import BareQuestion, Instructor
from zeus_union.stage1_instruct.models.language.decoding import Decoding
from zeus_union.stage1_instruct.models.language.loaded_once import LoadedOnce
from zeus_union.stage1_instruct.models.projected_llm import ProjectedLLM
from zeus_union.stage1_instruct.models.text.bert import InstructionEncoder, TextEncoder
from zeus_union.stage1_instruct.profiles.profile import PROMPT, SERVER, VLM, Profile

LONGEST_ANSWER = 300  # tokens; the paper's


def best_device() -> str:
    """The best there is (`cache.devices`); of several 'cuda' one of its own for each process of accelerate launch or srun."""
    best = devices.best_device().type
    if best != "cuda":
        return best
    number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return f"cuda:{number % torch.cuda.device_count()}"


class Models:
    """The frozen models of a profile on one device; their recipes need no weights."""

    def __init__(
        self,
        profile: Profile,
        device: str | torch.device,
        say: Callable[[str], None] = warn,
        batch_size: int | None = None,
        send_images_to: str | None = None,
        loaded: LoadedOnce | None = None,
    ) -> None:
        """Args: as for `load_models`.
        loaded: the language model that profiles before this one have loaded.

        Raises:
            UserError: `send_images_to`, but the instructor is no server; no such device.
        """
        if send_images_to is not None and profile.instructor != SERVER:
            raise UserError(
                f"--send-images-to {send_images_to} is for instructor = server and this is {profile.instructor}: no image "
                "leaves this machine; leave it out"
            )
        self.profile = profile
        self.device = devices.usable_device(device)
        self._say = say
        self._batch_size = batch_size
        self._send_images_to = send_images_to
        self._loaded = loaded

    @property
    def encoder(self) -> ImageEncoder:
        return self._encoder.model

    def encoder_recipe(self) -> dict[str, Any]:
        """What decides the embeddings; loads no model."""
        return self._encoder.recipe

    @cached_property
    def _encoder(self) -> Frozen[ImageEncoder]:
        return ENCODERS[self.profile.encoder](self.profile, self.device, self._batch_size)

    @cached_property
    def instructor(self) -> Instructor:
        """Who writes the instructions."""
        if self.profile.instructor == PROMPT:
            return BareQuestion()
        if self.profile.instructor == SERVER:
            from zeus_union.stage1_instruct.models.server import ServedModel

            return ServedModel(self.profile, lambda: self.max_new_tokens, self._say, self._send_images_to)
        if self.profile.instructor == VLM:
            from zeus_union.stage1_instruct.models.vlm import VisionLanguageModel

            return VisionLanguageModel(self.profile, self._decoding, self.device, self._say)
        return self.projected_llm

    @cached_property
    def max_new_tokens(self) -> int:
        """Of an instruction, at most; where the profile leaves it open, as many as the text encoder reads.

        States are read to the last one whatever the text encoder reads.
        """
        chosen = self.profile.max_new_tokens
        if chosen is not None:
            return chosen
        read = self._text_encoder.recipe
        reads_all = self.profile.keep_states or read.get("window") == "mean"
        return LONGEST_ANSWER if reads_all else min(LONGEST_ANSWER, read["max_tokens"])

    def _decoding(self) -> Decoding:
        profile = self.profile
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=profile.repetition_penalty,
            no_repeat_ngram_size=profile.no_repeat_ngram_size,
            batch_size=profile.llm_batch,
            temperature=profile.temperature,
            top_p=profile.top_p,
            keep_states=profile.keep_states,
        )

    @cached_property
    def projected_llm(self) -> ProjectedLLM:
        """The language model that is shown the image, and its projection.

        Raises:
            UserError: the instructor is another one.
        """
        if self.profile.instructor not in ("llm", "blip2"):
            raise UserError(f"instructor = {self.profile.instructor} has no language model; give --set instructor=llm")
        return ProjectedLLM(self.profile, self._encoder, self._decoding, self.device, self._say, self._loaded)

    @property
    def text_encoder(self) -> InstructionEncoder:
        return self._text_encoder.model

    @cached_property
    def _text_encoder(self) -> Frozen[InstructionEncoder]:
        profile = self.profile
        if profile.text_kind == "medclip":
            from zeus_union.stage1_instruct.models.text.medclip import MedCLIPText

            half = (profile.text_encoder, profile.text_tokenizer, profile.text_window)
            return Frozen(partial(MedCLIPText.recipe_of, *half), partial(MedCLIPText, *half, self.device))
        if profile.text_kind == "clip":
            from zeus_union.stage1_instruct.models.text.clip import CLIPText

            return Frozen(
                partial(CLIPText.recipe_of, profile.text_encoder), partial(CLIPText, profile.text_encoder, self.device)
            )
        return Frozen(
            partial(TextEncoder.recipe_of, profile.text_encoder),
            partial(TextEncoder, profile.text_encoder, self.device),
        )

    def instruction_recipe(self) -> dict[str, Any]:
        """What decides an instruction's text and its embedding, JSON-able, without paths; loads no model."""
        return {**self.instructor.recipe(), "text_encoder": self._text_encoder.recipe}

    def instruction_recipe_with(self, projection: Mapping[str, Any]) -> dict[str, Any]:
        """As `instruction_recipe`, with this entry for the projection in place of the profile's."""
        return {**self.projected_llm.recipe_with(dict(projection)), "text_encoder": self._text_encoder.recipe}


def load_models(
    profile: Profile,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = warn,
    batch_size: int | None = None,
    send_images_to: str | None = None,
) -> Models:
    """The profile's models; nothing is loaded before it is used.

    Args:
        say: told what may make the texts worthless or slow: an untrained projection, memory that ran out.
        batch_size: pictures at a time through the image encoder; None: as many as fit.
        send_images_to: with instructor = server the host that pictures may be sent to, where it is not this machine.
    """
    return Models(profile, device, say, batch_size, send_images_to)
