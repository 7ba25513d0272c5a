"""A language model that is shown the image: vision features, the projection to its width, its answer.

Zeus, Eqs. 2 and 3. BLIP-2 comes with a projection of its own; there ours is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import fingerprint
from zeus_union.stage1_instruct.models.batching import run_in_batches
from zeus_union.stage1_instruct.models.bridge.connectors import Connector, check_widths, new_connector, read_connector
from zeus_union.stage1_instruct.models.frozen import Frozen
from zeus_union.stage1_instruct.models.image.encoder import ImageEncoder
from zeus_union.stage1_instruct.models.language.llm import (
    Asked,
    Decoding,
    Generation,
    InstructionLLM,
    Loading,
    llm_recipe,
    load_llm,
)
from zeus_union.stage1_instruct.models.language.loaded_once import LoadedOnce, language_model_of
from zeus_union.stage1_instruct.models.language.prompts import Template, template
from zeus_union.stage1_instruct.models.vision.regions import Vision, VisionFeatures
from zeus_union.stage1_instruct.profiles.profile import NONE, Profile, Sees
from zeus_union.stage1_instruct.weights.store import digest_of, zeus_home

if TYPE_CHECKING:
    from zeus_union.stage1_instruct.models.language.blip2 import Blip2


# Images that are turned into image tokens together.
CHUNK = 32


def trained_projection(belongs_to: Mapping[str, Any]) -> Path:
    """Where the projection that was trained between these models is kept: one file for each `belongs_to`."""
    return zeus_home() / "projections" / f"{fingerprint(belongs_to)[:32]}.safetensors"


@dataclass(frozen=True, eq=False)
class TrainedConnector:
    """A connector with what is known of its training, as it was saved."""

    connector: Connector
    facts: Mapping[str, Any]


class ProjectedLLM:
    """The instructors 'llm' and 'blip2' of a profile, each part loaded when it is first used."""

    def __init__(
        self,
        profile: Profile,
        encoder: Frozen[ImageEncoder],
        decoding: Callable[[], Decoding],
        device: torch.device,
        say: Callable[[str], None],
        loaded: LoadedOnce | None = None,
    ) -> None:
        """Args:
        encoder: whose embeddings it sees, where it sees embeddings.
        decoding: how an answer is chosen.
        say: told where the projection is untrained or another model's.
        loaded: shared with profiles that come before and after; None: with none.
        """
        self._profile = profile
        self._encoder = encoder
        self._new_decoding = decoding
        self._loaded = loaded or LoadedOnce()
        self._device = device
        self._say = say
        self._is_blip2 = profile.instructor == "blip2"
        self._chunk = CHUNK
        self._given: Connector | None = None

    @property
    def sees(self) -> Sees:
        return self._profile.sees

    @property
    def samples(self) -> bool:
        return self._profile.samples

    @property
    def vision(self) -> Vision:
        return self._vision.model

    @cached_property
    def _vision(self) -> Frozen[Vision]:
        profile = self._profile
        if self._is_blip2:
            from zeus_union.stage1_instruct.models.language.blip2 import Blip2

            return Frozen(partial(Blip2.recipe_of, profile.blip2), lambda: self._blip2)
        if profile.vision.startswith("medclip"):
            from zeus_union.stage1_instruct.models.vision.medclip import MedCLIPVision

            half = (profile.vision.removeprefix("medclip_"), profile.vision_weights, profile.vision_feature)
            return Frozen(partial(MedCLIPVision.recipe_of, *half), partial(MedCLIPVision, *half, self._device))
        regions = VisionFeatures(1 if profile.vision == "pooled" else profile.vision_grid)
        return Frozen(lambda: {"encoder": self._encoder.recipe, **regions.recipe()}, lambda: regions)

    def vision_recipe(self) -> dict[str, Any]:
        """What decides the vision features; loads no model."""
        return self._vision.recipe

    @property
    def llm(self) -> InstructionLLM:
        """Raises UserError: the language model, or its LoRA, cannot be loaded."""
        return self._llm.model

    @cached_property
    def _llm(self) -> Frozen[InstructionLLM]:
        return Frozen(
            lambda: llm_recipe(digest_of(self.weights), self._template, self._decoding, self._loading), self._load_llm
        )

    def _load_llm(self) -> InstructionLLM:
        if self._is_blip2:
            blip2, has_lora = self._kept_blip2
            loaded = blip2.loaded
        else:
            loaded, has_lora = self._loaded.get(
                self._key, self._profile.lora, lambda: load_llm(self._profile.llm, self._loading, self._device)
            )
        llm = InstructionLLM(loaded, self._template, self._decoding, self._device, self._loading)
        if not has_lora:
            from zeus_union.stage1_instruct.models.language.lora import load_lora

            load_lora(llm.model, Path(self._profile.lora).expanduser())
        return llm

    @property
    def _key(self) -> tuple[str, ...]:
        return (*language_model_of(self._profile)[:-1], str(self._device))

    @property
    def _blip2(self) -> Blip2:
        return self._kept_blip2[0]

    @cached_property
    def _kept_blip2(self) -> tuple[Blip2, bool]:
        """The model, and whether the profile's LoRA is on it."""
        from zeus_union.stage1_instruct.models.language.blip2 import Blip2

        def load() -> Blip2:
            return Blip2(self._profile.blip2, self._loading, self._device)

        return self._loaded.get(self._key, self._profile.lora, load)

    @property
    def _template(self) -> Template:
        return template("blip2" if self._is_blip2 else self._profile.template)

    @cached_property
    def _decoding(self) -> Decoding:
        return self._new_decoding()

    @property
    def _loading(self) -> Loading:
        return Loading(self._profile.llm_precision, self._profile.llm_quantize, self._profile.llm_device_map)

    def belongs_to(self) -> dict[str, Any]:
        """What a projection has to be trained between to be this profile's; loads no model."""
        return {
            "vision": self.vision_recipe(),
            "llm_sha256": self._llm.recipe["weights_sha256"],
            "connector": NONE if self._is_blip2 else self._profile.connector,
        }

    @property
    def can_be_trained(self) -> bool:
        """Whether the profile leaves open which projection it has, and none was trained for its models; loads no model."""
        return not self._is_blip2 and self._profile.projection == "auto" and not self._projection_path.exists()

    @property
    def weights(self) -> str:
        """The part that is the language model."""
        return self._profile.blip2 if self._is_blip2 else self._profile.llm

    @property
    def stored_projection(self) -> TrainedConnector | None:
        """The profile's own where it is trained, as it is stored."""
        connector, facts = self._stored_projection
        return None if connector is None or self._is_blip2 else TrainedConnector(connector, facts)

    def use_projection(self, connector: Connector) -> None:
        """Takes this one in place of the profile's from now on."""
        self._given = connector.eval().requires_grad_(False).to(self._device)

    @property
    def projection(self) -> Connector:
        """The projection that is used: the one given, else the profile's."""
        return self._profiles_projection if self._given is None else self._given

    @cached_property
    def _profiles_projection(self) -> Connector:
        """The projection the profile names, on the device; says so where it is untrained.

        Raises:
            UserError: it was trained for other widths, or on another encoder's features.
        """
        connector, _ = self._stored_projection
        if connector is None:
            connector = self.new_projection()
        else:
            check_widths(connector, self._projection_path, self.vision.width, self.llm.width)
        return connector.eval().requires_grad_(False).to(self._device)

    @cached_property
    def _stored_projection(self) -> tuple[Connector | None, dict[str, Any]]:
        """The projection as it is stored, without a look at the models on its two sides (None where there is none), and
        what is known of its training.
        """
        if self._is_blip2:
            from zeus_union.stage1_instruct.models.language.blip2 import Blip2

            image_width, text_width = Blip2.widths_of(self._profile.blip2)
            return Connector("none", image_width, 0, text_width), {}
        chosen, path = self._profile.projection, self._projection_path
        if chosen == "untrained" or (chosen == "auto" and not path.exists()):
            self._say(
                "the projection from image to language model is UNTRAINED: the text hardly depends on the image; "
                f"zeus-instruct train-projection --models {self._profile.name} (with the same --set) trains one"
            )
            return None, {}
        if not path.exists():
            raise UserError(f"no projection at {path}: expected 'auto', 'untrained' or a file of train-projection")
        connector, facts = read_connector(path)
        if connector.kind != self._profile.connector:
            raise UserError(
                f"the projection {path} is of the kind {connector.kind}, the profile asks for {self._profile.connector}; "
                f"--set connector={connector.kind}, or train another (zeus-instruct train-projection)"
            )
        if not facts:
            self._say(f"the projection {path} was trained on another model's vision features (XrayGPT's, MiniGPT-4's)")
            return connector, {}
        differing = [part for part, value in self.vision_recipe().items() if facts.get("vision", {}).get(part) != value]
        if differing:
            raise UserError(
                f"the projection {path} was trained on other vision features ({', '.join(differing)} differ); "
                "train one for this profile (zeus-instruct train-projection) or --set projection=untrained"
            )
        if facts.get("llm_sha256") != self._llm.recipe["weights_sha256"]:
            self._say(f"the projection {path} was trained through another language model of the same width")
        return connector, facts

    @property
    def _projection_path(self) -> Path:
        chosen = self._profile.projection
        return trained_projection(self.belongs_to()) if chosen == "auto" else Path(chosen).expanduser()

    def new_projection(self, seed: int = 0) -> Connector:
        """A seeded, untrained projection for this profile; BLIP-2, which has its own, needs none."""
        if self._is_blip2:
            return Connector("none", self.vision.width, 0, self.llm.width)
        embedding = self.llm.embedding.weight.detach()
        profile = self._profile
        return new_connector(profile.connector, self.vision.width, profile.projection_hidden, embedding, seed)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Vision features float32 (B, T, C) on the CPU.

        Args:
            images: B of what it `sees`: embeddings float32 (B, 256, 64, 64), or pictures uint8 (B, H, W).
        """
        return self._in_chunks(self._features, images, (self.vision.count, self.vision.width), "the vision features")

    @torch.inference_mode()
    def image_tokens(self, images: Tensor) -> Tensor:
        """Images as for `features` -> image tokens for the LLM, float32 (B, T, H), on the CPU: they go to the device a
        prompt at a time.
        """
        shape = (self.vision.count, self.llm.width)
        return self._in_chunks(lambda seen: self.projection(self._features(seen)), images, shape, "the image tokens")

    def _features(self, images: Tensor) -> Tensor:
        return self.vision.tokens(images if self.sees == "pictures" else images.to(self._device))

    def _in_chunks(
        self, function: Callable[[Tensor], Tensor], images: Tensor, empty: tuple[int, int], what: str
    ) -> Tensor:
        """A few images at a time on the device, whatever their number: an embedding takes 4 MiB."""
        parts, self._chunk = run_in_batches(
            lambda batch: function(images[batch]).cpu(), len(images), self._chunk, self._say, what
        )
        return torch.cat(parts) if parts else torch.empty(0, *empty)

    def load(self) -> None:
        """Loads vision, projection and language model.

        Raises:
            UserError: one of them cannot be loaded, or the projection does not fit the other two.
        """
        _ = self.projection, self.vision, self.llm

    def prompt(self, question: str) -> str:
        """The whole prompt as a person reads it, with <image> where the image tokens go."""
        return self._template.prompt(question)

    def answer(
        self, questions: Sequence[str], images: Tensor | None, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """One instruction per question and image (as for `features`), in order; `seeds` count where it samples."""
        if images is None:
            raise ValueError("images = None, expected one for each question")
        return self.llm.generate(questions, self.image_tokens(images), seeds)

    @property
    def streams(self) -> bool:
        """Whether an answer is the same whatever is answered beside it, so that its slots may go on across subjects.

        In half precision a near tie between two tokens may fall the other way with other rows beside it, and kept states
        differ in their last bit: those subjects are answered one after the other, so that a build that was killed ends
        with the same texts.
        """
        exact = self._loading.precision == "fp32" and self._loading.quantize == NONE
        return exact and not self._decoding.keep_states and not self.llm.serving.by_library

    def stream(self, asked: Iterator[Asked], questions: Collection[str]) -> Iterator[tuple[Hashable, Generation]]:
        """(key, instruction) of each that is asked, whichever ends first.

        Args:
            asked: with the image tokens of `image_tokens`; each is taken when a slot of the language model is free.
            questions: all that may be asked.
        """
        return self.llm.stream(asked, questions, self.vision.count)

    def recipe(self) -> dict[str, Any]:
        """What decides an instruction's text, JSON-able, without paths; loads no model but the projection."""
        connector, facts = self._stored_projection
        if connector is None:
            return self.recipe_with("untrained")
        trained: dict[str, Any] = {"sha256": connector.digest(), **connector.sizes}
        if facts.get("subjects"):
            trained["trained_on"] = {"subjects": sorted(facts["subjects"])}
        return self.recipe_with(trained, connector.kind)

    def recipe_with(self, projection: Any, connector: str | None = None) -> dict[str, Any]:
        """As `recipe`, with this entry for the projection and this kind of connector, by default the profile's."""
        recipe: dict[str, Any] = {
            "vision": self.vision_recipe(),
            "connector": connector or self._profile.connector,
            "projection": projection,
            "llm": self._llm.recipe,
        }
        if self._profile.lora != NONE:
            from zeus_union.stage1_instruct.models.language.lora import lora_digest, lora_subjects

            lora = Path(self._profile.lora).expanduser()
            recipe["lora"] = lora_digest(lora)
            if seen := lora_subjects(lora):
                # A run that tests on one of them would test on what these weights have seen.
                trained: Mapping[str, Any] = {"sha256": projection} if isinstance(projection, str) else dict(projection)
                trained_on = dict(trained.get("trained_on", {}))
                trained_on["subjects"] = sorted({*trained_on.get("subjects", ()), *seen})
                recipe["projection"] = {**trained, "trained_on": trained_on}
        return recipe
