"""What a run carries of stage 1, so that it can be used where its cache is not: the frozen models and the projection."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.projections import EVERYONE, FACTS
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.checkpoint import name_of, write_json
from zeus_union.stage2_segment.config import RunConfig

PROJECTION, PROFILE = "projection.safetensors", "profile.json"
TO_GIVE = "to_give"  # in PROFILE of a run that was shared: part -> what the file was called that its user has to name


def carry(cache: Cache, config: RunConfig, run: Path) -> None:
    """Writes into the run's folder what new studies get from stage 1, as far as the cache knows it."""
    carry_projection(cache, config, run)
    layers = [f"instructions/{variant}" for variant in config.inputs.texts_read]
    layers += [config.inputs.embedding_layer] if config.inputs.encoder else []
    # The layers of one run share the image encoder, and those of all classes the models.
    profile = cache.profile(layers[0]) if layers else {}
    if profile:
        write_json(run / PROFILE, profile | ({"projection": "auto"} if (run / PROJECTION).is_file() else {}))


def carried_profile(run: Path, given: Collection[str] = ()) -> dict[str, Any] | None:
    """The frozen models behind a run's cache: lines of a profile, as `Profile.to_json` gives them; None where it has none.

    The projection is 'auto' where the run carries it (PROJECTION).

    Args:
        given: parts of the profile that the user names.

    Raises:
        UserError: damaged; files of whoever shared the run, which nobody has named here.
    """
    path = run / PROFILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); give --models, and copy the run again") from error
    to_give = values.pop(TO_GIVE, {}) if isinstance(values, dict) else None
    if not isinstance(to_give, dict):
        raise UserError(f"{path} is damaged (no lines of a profile); give --models, and copy the run again")
    if wanted := {part: name for part, name in to_give.items() if part not in given}:
        named = ", ".join(f"--set {part}=..." + (f" ({name})" if name else "") for part, name in wanted.items())
        raise UserError(
            f"{name_of(run)} was shared without files of the machine it was made on; give {named}, as they are called here"
        )
    return {**values, **dict.fromkeys(to_give, "none")}


def carry_projection(cache: Cache, config: RunConfig, run: Path) -> None:
    """Writes the projection that new studies get into the run's folder, as train-projection would, where its layer keeps one."""
    for variant in config.inputs.variants[:1]:  # the layers of all classes share it
        layer = f"instructions/{variant}"
        constants, recipe = cache.constants(layer), cache.recipe(layer)
        if FACTS not in constants:
            continue
        beginning = f"{EVERYONE}."
        tensors = {
            name.removeprefix(beginning): np.ascontiguousarray(array)
            for name, array in constants.items()
            if name.startswith(beginning)
        }
        sizes = {name: recipe["projection"][name] for name in ("inputs", "hidden", "outputs")}
        facts = {**json.loads(constants[FACTS].tobytes()), "kind": recipe["connector"], **sizes}
        content = safetensors.numpy.save(tensors, {"projection": json.dumps(facts, sort_keys=True)})
        write_atomically(run / PROJECTION, content)
