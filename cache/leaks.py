"""Layers whose text was made from the true labels: an upper bound, never a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zeus_union.cache.reader import Cache

LEAK = "leak"  # in a layer's recipe: what it was made from that a new study does not have
TRUE_LABELS = "true labels"
ORACLE = "oracle"  # the variant that `zeus-instruct make-oracle` writes


def leak_of(recipe: Mapping[str, Any]) -> str | None:
    """What leaks through a layer of this recipe; None: nothing."""
    return recipe.get(LEAK)


def leaking(cache: Cache, variants: Iterable[str]) -> tuple[str, ...]:
    """Those of `variants` whose texts were made from the labels they are to predict."""
    return tuple(name for name in variants if leak_of(cache.recipe(f"instructions/{name}")) is not None)
