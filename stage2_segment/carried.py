"""What a run carries of stage 1, so that it can be used where its cache is not: the projection behind its instructions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.projections import EVERYONE, FACTS
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.config import RunConfig

PROJECTION = "projection.safetensors"


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
