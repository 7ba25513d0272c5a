"""Which instruction layer of a cache holds the texts that a run reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import differences
from zeus_union.stage2_segment.config import RunConfig

# The run is not bound to its own patients, nor to the table their texts came in, nor to how embeddings are stored, nor to a
# seed: what they are made by counts.
UNBOUND = ("slices", "embeddings", "store", "seed", "imported_file")


def layers_read(config: RunConfig, cache: Cache) -> tuple[str, ...]:
    """`layer_read` of every variant that a prediction reads."""
    return tuple(layer_read(config, cache, variant) for variant in config.inputs.texts_read)


def layer_read(config: RunConfig, cache: Cache, variant: str) -> str:
    """What a cache calls the instructions that the run calls `variant`.

    In its own cache they are called so. In another one, whose folds are others, they have the name that they were built
    under with the run's projection: they are recognised by what they were made from.

    Raises:
        UserError: the cache has no instructions.
    """
    names = [name for name in (variant, base_of(variant), *cache.variants) if name in cache.variants]
    if not names:
        raise UserError(f"{cache.path} has no instructions and the run reads {variant}; build them with its projection")
    recipe = config.inputs.instruction_recipes[variant]
    same = (name for name in names if not text_differences(recipe, cache.recipe(f"instructions/{name}")))
    return next(same, names[0])


def text_differences(of_run: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two recipes of instructions; other patients, another seed and fewer modalities are nothing."""
    shared = set(of_run.get("terms") or ()) & set(now.get("terms") or ())
    return differences(_what_decides(of_run, shared), _what_decides(now, shared))


def _what_decides(recipe: Mapping[str, Any], modalities: set[str]) -> dict[str, Any]:
    """What decides the text of `modalities`; whom a projection was trained on is decided by its digest."""
    decides = {key: value for key, value in recipe.items() if key not in UNBOUND}
    if isinstance(recipe.get("terms"), Mapping):
        decides["terms"] = {name: term for name, term in recipe["terms"].items() if name in modalities}
    if isinstance(recipe.get("projection"), Mapping):
        decides["projection"] = {key: value for key, value in recipe["projection"].items() if key != "trained_on"}
    return decides
