"""nnU-Net's splits_final.json: which case is tested in which fold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.folds import UNLABELLED
from zeus_union.cache.terminal import counted, say, warn
from zeus_union.stage1_instruct.studies.names import same_name

FILE = "splits_final.json"


def find_splits(root: Path) -> Path | None:
    """The splits of a raw data set: in its folder, or in nnUNet_preprocessed beside nnUNet_raw."""
    whole = Path(root).absolute()
    places = (
        root,
        whole.parent / "nnUNet_preprocessed" / whole.name,
        whole.parent.parent / "nnUNet_preprocessed" / whole.name,
    )
    return next((folder / FILE for folder in places if (folder / FILE).is_file()), None)


def read_splits(path: Path, subjects: Mapping[str, str]) -> dict[str, int]:
    """Subject -> the fold it is tested in, -1 for those that no fold tests; says what it is.

    Args:
        subjects: case -> subject, of the cases with labels.
    Raises:
        UserError: no file, or not a list of {'train': [...], 'val': [...]}; a case that is trained on and tested in one
            fold, or tested in two; no case of the data set is tested.
    """
    splits = _read(path)
    by_case = {same_name(case): subject for case, subject in subjects.items()}
    folds: dict[str, int] = {}
    gone, left_out = set(), []
    for number, split in enumerate(splits):
        train, test = ({same_name(case) for case in split[key]} for key in ("train", "val"))
        if train & test:
            raise UserError(f"{path}: fold {number} trains on and tests {_names(train & test)}; correct it")
        gone |= (train | test) - by_case.keys()
        for case in sorted(test & by_case.keys()):
            if by_case[case] in folds:
                raise UserError(
                    f"{path}: {case} is tested in folds {folds[by_case[case]]} and {number}; a cache keeps one fold a "
                    "subject, give every case to one fold"
                )
            folds[by_case[case]] = number
        if unused := by_case.keys() - train - test:
            left_out.append(f"fold {number}: {_names(unused)}")
    if not folds:
        raise UserError(
            f"{path} tests none of the data set's cases ({_names(by_case.keys())}); give the splits of this one"
        )
    say(
        f"folds from {path}: {counted(len(splits), 'fold')}, "
        f"{len(folds)} of {counted(len(by_case), 'labelled subject')} tested"
    )
    if gone:
        warn(f"{path} names cases that do not exist here: {_names(gone)}")
    if left_out:
        warn(
            f"{path} lists some cases neither for training nor for testing; they are used for training "
            f"here: {'; '.join(left_out)}"
        )
    return {subject: folds.get(subject, UNLABELLED) for subject in by_case.values()}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"the splits file {path} does not exist; give nnU-Net's {FILE}")
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error

    def names(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(name, str) for name in values)

    well = (
        isinstance(splits, list)
        and splits
        and all(isinstance(split, dict) and names(split.get("train")) and names(split.get("val")) for split in splits)
    )
    if not well:
        raise UserError(f"{path}: expected a list of folds, each {{'train': [cases], 'val': [cases]}}")
    return splits


def _names(cases: Any) -> str:
    listed = sorted(cases)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
