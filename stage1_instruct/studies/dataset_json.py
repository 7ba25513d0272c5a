"""dataset.json, as the Medical Segmentation Decathlon and nnU-Net keep it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError

INSIDE = frozenset(("imagestr", "labelstr", "imagests", "labelsts"))


def has_dataset_json(folder: Path) -> bool:
    """Whether a folder is that of a data set in one of the two layouts, as far as it can be seen."""
    return os.path.isfile(folder / "dataset.json")


def read_dataset_json(root: Path, required: Mapping[str, type]) -> dict[str, Any]:
    """The object in `root`/dataset.json.

    Args:
        required: key -> what its value must be: dict, list or str.
    Raises:
        UserError: no such folder or file, not JSON, or one of `required` missing or of another kind.
    """
    path = root / "dataset.json"
    if not root.is_dir():
        raise UserError(
            f"the data root {root} does not exist; give the folder that holds dataset.json with --data-root"
        )
    if not path.is_file():
        raise UserError(f"{root} holds no dataset.json; give the data set's own folder with --data-root")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    missing = [key for key in required if not isinstance(values, dict) or key not in values]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it should have {', '.join(required)}")
    for key, kind in required.items():
        if not isinstance(values[key], kind):
            expected = {"dict": "an object", "list": "a list", "str": "a text"}[kind.__name__]
            raise UserError(f"{path}: {key} is {str(values[key])[:60]!r}, expected {expected}; correct it")
    return values


IGNORED = "ignore"  # what nnU-Net calls the label of voxels that nobody labelled


def channel_names(values: Mapping[str, object]) -> dict[int, str]:
    """{'0': 'FLAIR'} -> {0: 'FLAIR'}, of an object that `channel_numbers` took."""
    return {int(number): str(name) for number, name in values.items()}


def numbered_names(root: Path, key: str, values: Mapping[str, object]) -> dict[int, str]:
    """{'0': 'FLAIR'} -> {0: 'FLAIR'}, of the object `key` in dataset.json.

    Raises:
        UserError: a number that is not whole or not from 0 to 254.
    """
    names = {}
    for number, name in values.items():
        if not number.isdecimal() or int(number) > 254:
            raise UserError(
                f"{root / 'dataset.json'}: {key} has the entry {number!r}: {name!r}; expected a number from 0 to 254"
            )
        names[int(number)] = str(name)
    return names


def channel_numbers(root: Path, key: str, values: Mapping[str, object]) -> dict[str, int]:
    """{'0': 'FLAIR'} -> {'FLAIR': 0}; channels of one name (nnU-Net's 'noNorm' twice) get their number: 'noNorm-0'.

    Raises:
        UserError: numbers other than 0, 1, 2 and so on, or a name that is one of those given here ('CT', 'CT', 'CT-0').
    """
    names = numbered_names(root, key, values)
    if not names or sorted(names) != list(range(len(names))):
        raise UserError(
            f"{root / 'dataset.json'}: {key} numbers its channels {sorted(names)}; expected 0, 1, 2 and so on"
        )
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    channels = {f"{name}-{number}" if name in shared else name: number for number, name in sorted(names.items())}
    if len(channels) < len(names):
        raise UserError(
            f"{root / 'dataset.json'}: {key} has names that cannot be told apart; give each channel its own"
        )
    return channels
