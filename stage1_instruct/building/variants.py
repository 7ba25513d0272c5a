"""Names of several instruction layers: one for every row of a grid, which is data; one for every class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import kind_of
from zeus_union.stage1_instruct.profiles.named_yaml import read_named_yaml

FOLDER = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class VariantRow:
    """One row.

    Attributes:
        variant: name of its instruction layer.
        parts: part of the profile -> value in its place.
    """

    variant: str
    parts: Mapping[str, str]


def read_grid(name_or_yaml: str) -> tuple[VariantRow, ...]:
    """The grid of that name, or in that YAML file: a list of rows, each with 'variant' and 'set'.

    Raises:
        UserError: no such grid; not a list of rows; a variant that is missing, doubled or no layer's name.
    """
    path, values = read_named_yaml(FOLDER, name_or_yaml, "grid")
    if not isinstance(values, list) or not values:
        raise UserError(f"{path} holds {type(values).__name__}, expected a list of rows with 'variant' and 'set'")
    rows = tuple(_row(value, f"{path}, row {number}") for number, value in enumerate(values, 1))
    names = [row.variant for row in rows]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path} names {', '.join(doubled)} twice; every row is a layer of its own")
    return rows


def class_variants(variant: str, classes: Sequence[str]) -> dict[str, str]:
    """Name of the instruction layer of each class -> the class, in order: 'lite.right-kidney' -> 'right kidney'.

    What a layer's name cannot hold becomes '-', what is beyond 60 letters is cut off (labels merged into one class have
    the names of all, and file systems hold 255); a class without anything that a name can hold goes by its label.

    Raises:
        UserError: two classes of one name; `variant` is no layer's name.
    """
    kind_of(f"instructions/{variant}")
    names: dict[str, str] = {}
    for label, name in enumerate(classes, 1):
        layer = f"{variant}.{re.sub('[^A-Za-z0-9_]+', '-', name)[:60].strip('-') or label}"
        if layer in names:
            raise UserError(f"the classes {names[layer]!r} and {name!r} would share the layer {layer}; rename one")
        names[layer] = name
    return names


def _row(value: Any, where: str) -> VariantRow:
    if not isinstance(value, dict) or set(value) - {"variant", "set"} or not isinstance(value.get("set"), dict):
        raise UserError(f"{where} is {value!r}, expected 'variant' and 'set' (part: value)")
    kind_of(f"instructions/{value.get('variant')}")
    return VariantRow(str(value["variant"]), {str(part): str(part_value) for part, part_value in value["set"].items()})
