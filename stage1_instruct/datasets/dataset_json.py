"""dataset.json, as the Medical Segmentation Decathlon and nnU-Net keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache.errors import UserError


def read_dataset_json(root: Path, required: tuple[str, ...]) -> dict[str, Any]:
    """The object in `root`/dataset.json.

    Raises:
        UserError: no such folder or file, not JSON, or one of `required` missing.
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
    return values
