"""Instruction layers whose texts belong to a split: VARIANT@fold0, or VARIANT@split-1a2b3c4d where training subjects were named.

Their language model was shown the image through a projection that was trained on the training subjects of that split, so
a run reads the layer of its own split and no other. The user names VARIANT alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

OF_SPLIT = r"(@(fold\d+|split-[0-9a-f]{8}))?"  # how such a layer's name ends, as a regular expression


def variant_of_split(variant: str, fold: int | None, train: Iterable[str] = ()) -> str:
    """The name of a variant's layer for a fold, or, without one, for named training subjects in any order.

    >>> variant_of_split("lite", 0)
    'lite@fold0'
    """
    if fold is not None:
        return f"{variant}@fold{fold}"
    digest = hashlib.sha256("\n".join(sorted(train)).encode()).hexdigest()
    return f"{variant}@split-{digest[:8]}"


def base_of(variant: str) -> str:
    """What the user calls a variant."""
    return variant.partition("@")[0]


def base_variants(variants: Iterable[str]) -> tuple[str, ...]:
    """What the user calls these variants, each once."""
    return tuple(dict.fromkeys(base_of(variant) for variant in variants))


def only_variant(variants: Sequence[str], wanted: str) -> str:
    """The variant of that name, or the only one whose base it is; `wanted` itself where that is not said so."""
    of_base = [name for name in variants if base_of(name) == wanted]
    return of_base[0] if wanted not in variants and len(of_base) == 1 else wanted


def find_variant(variants: Sequence[str], wanted: str, fold: int | None, train: Iterable[str] = ()) -> str | None:
    """The layer of `variants` that a run of this split reads where its user asks for `wanted`; None: there is none.

    The layer of the split comes first, then the one of that very name: an imported text, the bare prompt.

    >>> find_variant(("lite@fold0", "lite@fold1", "reports"), "lite", fold=1)
    'lite@fold1'
    """
    return next((name for name in (variant_of_split(wanted, fold, train), wanted) if name in variants), None)
