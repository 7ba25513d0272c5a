"""A language model that several profiles have, one after another, loaded once: the rows of a grid."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from zeus_union.stage1_instruct.profiles.profile import NONE, Profile

Model = TypeVar("Model")


class LoadedOnce:
    """Keeps the model that was loaded last, and no other: two of 7B parameters do not fit."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._lora = NONE
        self._model: Any = None

    def get(self, key: Hashable, lora: str, load: Callable[[], Model]) -> tuple[Model, bool]:
        """The model, and whether that LoRA is on it already.

        Args:
            key: what decides the model, but for its LoRA.
            lora: of the profile; one on another LoRA is loaded anew, as a LoRA changes the model in place.
        """
        if self._model is None or key != self._key or self._lora not in (NONE, lora):
            self._model = None  # before the next one takes its place
            self._model, self._key, self._lora = load(), key, NONE
        has_lora = lora == self._lora
        self._lora = lora
        return self._model, has_lora


def language_model_of(profile: Profile) -> tuple[str, ...]:
    """What decides a profile's language model, the LoRA last: rows that are sorted by it follow one another."""
    weights = profile.blip2 if profile.instructor == "blip2" else profile.llm
    loading = (profile.llm_precision, profile.llm_quantize, profile.llm_device_map)
    return (profile.instructor, weights, *loading, "" if profile.lora == NONE else profile.lora)
