"""A grid: one instruction layer of a cache for every row of a table of ablations, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import UserError
from cache.layout import kind_of
from stage1_instruct.named_yaml import read_named_yaml

FOLDER = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class GridRow:
    """One row.

    Attributes:
        variant: name of its instruction layer.
        parts: part of the profile -> value in its place.
    """

    variant: str
    parts: Mapping[str, str]


def read_grid(name_or_yaml: str) -> tuple[GridRow, ...]:
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


def _row(value: Any, where: str) -> GridRow:
    if not isinstance(value, dict) or set(value) - {"variant", "set"} or not isinstance(value.get("set"), dict):
        raise UserError(f"{where} is {value!r}, expected 'variant' and 'set' (part: value)")
    kind_of(f"instructions/{value.get('variant')}")
    return GridRow(str(value["variant"]), {str(part): str(part_value) for part, part_value in value["set"].items()})
