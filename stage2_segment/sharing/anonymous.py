"""What a shared run says in place of names, pictures and paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.carried import TO_GIVE
from zeus_union.stage2_segment.config import RunConfig, Split
from zeus_union.stage2_segment.inputs.layers import UNBOUND
from zeus_union.stage2_segment.marks import mark_name, mark_picture

# Under these keys stand subjects' names, as a list or as keys; under the others sha256 of their files.
NAMES, PICTURES = ("subjects", "held_out_subjects", "chosen_on"), ("digests",)
# Of what is known of a projection: what it fits, not what it said of a patient.
FACTS = ("kind", "inputs", "hidden", "outputs", "vision", "llm_sha256", "template", "subjects")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ON_A_MACHINE = ("address", "key_variable")


def shared_config(config: RunConfig, salt: str) -> RunConfig:
    """A run's description with marks for its subjects, and without its cache."""
    split, inputs = config.split, config.inputs

    def marks(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(mark_name(name, salt) for name in names))

    return replace(
        config,
        split=Split(split.fold, marks(split.train), marks(split.test), marks(split.validation)),
        inputs=replace(
            inputs,
            card=replace(inputs.card, name=without_path(inputs.card.name)),
            cache="",
            fingerprints={},  # of recipes with names in them: who guesses those could compare
            embedding_recipe=_unbound(shared_value(inputs.embedding_recipe, salt)),
            preprocessing=shared_value(inputs.preprocessing, salt),
            instruction_recipes={
                variant: _unbound(shared_value(recipe, salt)) for variant, recipe in inputs.instruction_recipes.items()
            },
            training_sources=tuple(sorted(mark_picture(digest, salt) for digest in inputs.training_sources)),
            seen=marks(inputs.seen),
        ),
    )


def _unbound(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in UNBOUND}


def shared_value(value: Any, salt: str, key: str = "") -> Any:
    """A JSON value with marks for the subjects in it, and of paths their last part.

    Args:
        key: under which it stands.
    """
    if isinstance(value, Mapping):
        return {
            mark_name(name, salt) if key in NAMES else name: shared_value(inner, salt, name)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [shared_value(inner, salt, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key in NAMES:
        return mark_name(value, salt)
    return mark_picture(value, salt) if key in PICTURES else without_path(value)


def without_path(text: str) -> str:
    """The last part of a path of this or another system, or of an address; what is none as it is."""
    if _ADDRESS.match(text):
        return PurePosixPath(text.partition("://")[2].partition("/")[2]).name
    if PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    if text.startswith("~"):  # somebody's home
        return PurePosixPath(text.partition("/")[2]).name
    return PurePosixPath(text).name if PurePosixPath(text).is_absolute() else text


def shared_profile(lines: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of a profile; of those that name a file, or a machine, only what has to be given in their place."""
    given_before = dict(lines.get(TO_GIVE) or {})
    to_give = {
        part: "" if part in _ON_A_MACHINE else without_path(value)
        for part, value in lines.items()
        if isinstance(value, str)
        and value != "none"
        and (part in _ON_A_MACHINE or (part != TO_GIVE and without_path(value) != value))
    }
    kept = {part: value for part, value in lines.items() if part not in to_give and part != TO_GIVE}
    kept["name"] = without_path(str(lines.get("name", "")))
    to_give.pop("name", None)
    return {**kept, TO_GIVE: {**given_before, **to_give}}


def shared_projection(content: bytes, salt: str, where: str) -> bytes:
    """A projection's file with marks for its training subjects.

    Raises:
        UserError: it is none.
    """
    try:
        tensors = safetensors.numpy.load(content)
        facts = json.loads(metadata_of(content)["projection"])
        kept = shared_value({name: facts[name] for name in FACTS if name in facts}, salt)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged ({error}); train the run again") from error
    return safetensors.numpy.save(tensors, {"projection": json.dumps(kept, sort_keys=True)})


def metadata_of(content: bytes) -> dict[str, str]:
    """What a safetensors file says besides its tensors."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__") or {})
