"""Which label picture belongs to which slice, by the numbers in their names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted, warn

# Endings that are no part of a name; others are ('IM.001' is number 1).
_ENDING = re.compile(r"\.(dcm|dicom|ima|png|tiff?|bmp|gif|jpe?g|jp2|pgm)$", re.IGNORECASE)


def pair_pictures(folder: Path, slices: Sequence[str], pictures: Sequence[Path]) -> list[Path]:
    """The picture of every slice.

    By name where the names are the same; by the number in the name where the numbers are the same
    (IMG-0004-00007.dcm and IMG-00007.png); by order, with a line that says so, where the numbers are another count of the
    same run (0034 to 0057 and 000 to 023). What is lost on either side leaves other numbers, and is refused.

    Args:
        folder: of the pictures.
        slices: names of the slices, in their order along the body.
    Raises:
        UserError: another number of pictures than slices, or names that do not say what belongs together.
    """
    by_stem = {_stem(path.name): path for path in pictures}
    slice_numbers, picture_numbers = name_numbers(slices), name_numbers([path.name for path in pictures])
    if len(pictures) != len(slices):
        raise UserError(
            f"{folder} holds {counted(len(pictures), 'label picture')} for {counted(len(slices), 'slice')}; one each is needed"
            + _unmatched(slices, slice_numbers, pictures, picture_numbers)
        )
    if len(by_stem) == len(pictures) and set(by_stem) == {_stem(name) for name in slices}:
        return [by_stem[_stem(name)] for name in slices]
    if len(slices) == 1:
        return list(pictures)
    if slice_numbers is None or picture_numbers is None:
        raise UserError(
            f"{folder}: its pictures cannot be paired with the slices ({pictures[0].name}, {slices[0]}), for the names do not "
            "differ by one number; give both their original names, or the pictures the names of the DICOM files"
        )
    same_numbers = set(slice_numbers) == set(picture_numbers)
    if not same_numbers and not _same_run(slices, slice_numbers, pictures, picture_numbers):
        raise UserError(
            f"{folder}: the numbers of the pictures are not those of the slices"
            + _unmatched(slices, slice_numbers, pictures, picture_numbers)
            + "; complete both, or give the pictures the names of the DICOM files"
        )
    if list(slice_numbers) not in (sorted(slice_numbers), sorted(slice_numbers, reverse=True)):
        raise UserError(
            f"{folder}: its pictures belong to the slices by the number in the file name, but those names do not run along the "
            f"body ({', '.join(slices[:3])}); give the DICOM files their original names"
        )
    if not same_numbers:
        warn(
            f"{folder}: pictures {min(picture_numbers)} to {max(picture_numbers)} are taken for slices {min(slice_numbers)} "
            f"to {max(slice_numbers)}, by order"
        )
    ordered = [path for _, path in sorted(zip(picture_numbers, pictures))]
    by_number = dict(zip(sorted(slice_numbers), ordered))
    return [by_number[number] for number in slice_numbers]


def name_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """The number that tells names apart: of those in the names, the last one that differs in all.

    None where the names differ in more than numbers, or no number differs in all of them.
    """
    stems = [_stem(name) for name in names]
    if len({re.sub(r"[0-9]+", "#", stem) for stem in stems}) != 1:
        return None
    columns = list(zip(*([int(digits) for digits in re.findall(r"[0-9]+", stem)] for stem in stems)))
    return next((column for column in reversed(columns) if len(set(column)) == len(names)), None)


def _stem(name: str) -> str:
    return _ENDING.sub("", name).casefold()


def _same_run(
    slices: Sequence[str], slice_numbers: Sequence[int], pictures: Sequence[Path], picture_numbers: Sequence[int]
) -> bool:
    """Whether pictures with other numbers than the slices' count the same run from a start of their own.

    Where a number stands on both sides it means the same slice, unless the whole count differs: from 0 and from 1, or in
    ones and in twos (the echoes of a dual-echo series are numbered in turn). Otherwise the numbers differ because files
    are lost.
    """
    a, b = sorted(slice_numbers), sorted(picture_numbers)
    step_a, step_b = (math.gcd(*(number - run[0] for number in run[1:])) for run in (a, b))
    if [(number - a[0]) // step_a for number in a] != [(number - b[0]) // step_b for number in b]:
        return False
    if b[0] > step_b:  # the pictures do not begin at the start of a count, so the first ones may be lost
        return False
    if not set(a) & set(b):
        return True
    if step_a != step_b:
        return len(a) > 2 and a[0] <= step_a  # any two numbers make a run
    return _letters(slices[0]) != _letters(pictures[0].name) and {a[0], b[0]} == {0, 1}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", _stem(name))


def _unmatched(
    slices: Sequence[str],
    slice_numbers: Sequence[int] | None,
    pictures: Sequence[Path],
    picture_numbers: Sequence[int] | None,
) -> str:
    """' (no picture for X; no slice for Y)', as far as the numbers tell."""
    if slice_numbers is None or picture_numbers is None or not set(slice_numbers) & set(picture_numbers):
        return ""
    alone = [name for name, number in zip(slices, slice_numbers) if number not in picture_numbers]
    strange = [path.name for path, number in zip(pictures, picture_numbers) if number not in slice_numbers]
    parts = [
        f"no {what} for {', '.join(names[:3])}" for what, names in (("picture", alone), ("slice", strange)) if names
    ]
    return f" ({'; '.join(parts)})" if parts else ""
