"""Layers that hold augmented copies of the labelled slices: slices@view1, embeddings/ENCODER@view1, slices@view2, ...

A view has the slices of its subject in the same order, so that whatever belongs to a slice, its text above all, belongs to
its views. Subjects without labels have none: whether a subject is due in such a layer follows from its labels in `slices`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OF_VIEW = r"(@view[1-9]\d*)?"  # how such a layer's name ends, as a regular expression
_ENDING = re.compile(r"@view([1-9]\d*)$")


def view_layer(layer: str, view: int) -> str:
    """The name of a layer's view; view 0 is the layer itself.

    >>> view_layer("embeddings/sam_vit_b", 2)
    'embeddings/sam_vit_b@view2'
    """
    return f"{layer}@view{view}" if view else layer


def view_of(layer: str) -> int:
    """Which view a layer holds; 0: no view, the slices themselves."""
    ending = _ENDING.search(layer)
    return int(ending[1]) if ending else 0


def made_from(layer: str) -> str:
    """The layer of pictures whose rows a layer's facts name: a view's embeddings show the view, all else the slices."""
    view = view_of(layer)
    return view_layer("slices", view) if view and not layer.startswith("slices") else "slices"


def count_views(layers: Iterable[str], encoder: str) -> int:
    """How many views of an encoder there are, numbered from 1 without a gap, with pictures and embeddings."""
    names, count = set(layers), 0
    while {view_layer("slices", count + 1), view_layer(f"embeddings/{encoder}", count + 1)} <= names:
        count += 1
    return count
