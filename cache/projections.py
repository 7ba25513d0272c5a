"""Names under which an instruction layer keeps its projections, as constants of the layer.

everyone.NAME    float32, the tensors of the projection; of a split's layer the one that was trained on all its training
                 subjects
halfI.NAME       likewise, of a split's layer, of the one that the texts of half I of the training subjects come from
facts            uint8, JSON: the models on both sides, the training subjects, losses, seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVERYONE, HALF, FACTS = "everyone", "half", "facts"


def trained_on(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a layer's recipe says of the subjects that its projection was trained on: 'subjects', 'digests', ...; or nothing."""
    projection = recipe.get("projection")
    said = projection.get("trained_on") if isinstance(projection, Mapping) else None
    return said if isinstance(said, Mapping) else {}
