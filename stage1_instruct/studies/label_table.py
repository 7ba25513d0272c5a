"""nnU-Net's `labels`: plain ones, regions (lists of values), and the ignore label."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.studies.dataset_json import IGNORED
from zeus_union.stage1_instruct.studies.labels import LabelMapping, in_prose


class LabelTable(NamedTuple):
    """What dataset.json says of the values in a label map.

    Attributes:
        regions: class name -> the values that make it, without the background; one each for plain labels.
        ignore: the value of voxels that nobody labelled.
    """

    regions: dict[str, frozenset[int]]
    ignore: int | None


def read_label_table(root: Path, labels: Mapping[str, object]) -> LabelTable:
    """nnU-Net's {'background': 0, 'liver': 1, 'whole tumour': [2, 3], 'ignore': 4}.

    Raises:
        UserError: values that are no whole numbers from 0 to 254, or no background, or no class.
    """
    file = root / "dataset.json"
    regions: dict[str, frozenset[int]] = {}
    ignore = None
    background = False
    for name, given in labels.items():
        values = [_value(file, name, value) for value in (given if isinstance(given, list) else [given])]
        if name == IGNORED:
            if len(values) != 1 or values == [0]:
                raise UserError(f"{file}: the ignore label is {given}; expected one value above all the others")
            ignore = values[0]
        elif values == [0]:
            background = True
        elif not values or 0 in values:
            raise UserError(f"{file}: label {name} = {given}; a region is a list of values above 0")
        else:
            regions[name] = frozenset(values)
    if not background or not regions:
        raise UserError(f"{file}: labels need a background of 0 and at least one class")
    if ignore is not None and any(ignore in region for region in regions.values()):
        raise UserError(f"{file}: label {ignore} is both the ignore label and a class; give it a value of its region")
    for name, region in regions.items():
        twin = next((other for other in regions if other != name and regions[other] == region), None)
        if twin:
            same = "/".join(map(str, sorted(region)))
            raise UserError(f"{file}: labels {name} and {twin} are both {same}; rename one")
    return LabelTable(regions, ignore)


def _value(file: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 254:
        raise UserError(f"{file}: label {name} = {value}; expected one whole number from 0 to 254, or a list of them")
    return value


def map_labels(root: Path, table: LabelTable, labels: str) -> LabelMapping:
    """The classes that --labels makes of a table.

    Raises:
        UserError: regions that are neither asked for nor merged, or that overlap without one lying within the other.
    """
    values = sorted(set().union(*table.regions.values()))
    if labels == "binary":
        outer = [
            name
            for name, region in table.regions.items()
            if not any(region < other for other in table.regions.values())
        ]
        return LabelMapping.binary(dict.fromkeys((0, *values), ""), in_prose(outer)).ignoring(table.ignore)
    if all(len(region) == 1 for region in table.regions.values()):
        names = {value: name for name, region in table.regions.items() for value in region}
        return LabelMapping.native(names).ignoring(table.ignore)
    if labels != "regions":
        first = next(name for name, region in table.regions.items() if len(region) > 1)
        raise UserError(
            f"{root / 'dataset.json'}: label {first} is a region of several values; --labels regions makes separate "
            "classes of regions, --labels binary merges all of them"
        )
    return _separate(root, table)


def _separate(root: Path, table: LabelTable) -> LabelMapping:
    """Regions within one another as classes that share no voxel: each value goes to the smallest region that has it."""
    owner: dict[int, str] = {}
    for value in sorted(set().union(*table.regions.values())):
        having = sorted((len(region), name) for name, region in table.regions.items() if value in region)
        for (_, inner), (_, outer) in pairwise(having):
            if not table.regions[inner] < table.regions[outer]:
                raise UserError(
                    f"{root / 'dataset.json'}: regions {inner} and {outer} overlap and neither lies within the other; one "
                    "label map cannot hold both, name plain labels, or --labels binary"
                )
        owner[value] = having[0][1]
    classes = tuple(name for name in table.regions if name in owner.values())
    for name, region in table.regions.items():
        kept = [str(value) for value in sorted(region) if owner[value] == name]
        if not kept:
            say(f"region {name} is all in smaller regions and becomes no class of its region")
        elif len(kept) < len(region):
            say(f"class {name}: only values {', '.join(kept)}, what smaller regions have of it is theirs")
    numbers = {value: classes.index(name) + 1 for value, name in owner.items()}
    return LabelMapping(classes, {0: 0, **numbers}).ignoring(table.ignore)
