"""CHAOS's label pictures: grey values that stand for organs, one picture a slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted
from zeus_union.stage1_instruct.studies.dicom import Series
from zeus_union.stage1_instruct.studies.dicom_files import LEFTOVERS, natural_key
from zeus_union.stage1_instruct.studies.pairing import pair_pictures

NAMES = {0: "background", 1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
# Grey value of the label and the range that the organisers' own readers accept, of 8 bits.
GREY = {1: (63, 55, 70), 2: (126, 110, 135), 3: (189, 175, 200), 4: (252, 240, 255)}
# A picture of one bit shows the liver alone, as CHAOS's CT labels do.
LIVER = 1
PICTURES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg", ".jp2", ".pgm")
# White of 16 bits over white of 8.
SIXTEEN_BITS = 257


def read_ground(folder: Path, series: Series) -> tuple[NDArray[np.uint8] | None, list[Path]]:
    """The label map of a series and its pictures; None where the subject has none (the test set).

    Returns:
        uint8 (series.grid.shape), 0 to 4 as in `NAMES`.
    Raises:
        UserError: files but no picture, pictures that cannot be paired with the slices (`pair_pictures`), another size, or a
            grey value of no organ.
    """
    pictures = ground_pictures(folder)
    if not pictures:
        return None, []
    labels = np.zeros(series.grid.shape, dtype=np.uint8)
    paired = pair_pictures(folder, [frame.name for frame in series.frames], pictures)
    for index, path in enumerate(paired):
        labels[..., index] = read_picture(path, labels.shape[:2])
    return labels, pictures


def ground_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, in natural order; none where it does not exist or is empty.

    Raises:
        UserError: a folder that holds other things and no picture.
    """
    entries = ground_entries(folder)
    pictures = [path for path in entries if path.suffix.lower() in PICTURES or (path.is_file() and _is_picture(path))]
    if entries and not pictures:
        raise UserError(
            f"{folder} holds {counted(len(entries), 'file')}, e.g. {min(path.name for path in entries)}, and no picture; "
            "expected one PNG or TIFF a slice, or no folder where the subject has no labels"
        )
    return sorted(pictures, key=lambda path: natural_key(path.name))


def ground_entries(folder: Path) -> list[Path]:
    """What lies in a folder besides hidden files and what systems leave behind; nothing where it does not exist."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in LEFTOVERS]


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError):
        return False


def read_picture(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One label picture, uint8 (columns, rows), 0 to 4 as in `NAMES`.

    Args:
        shape: (columns, rows) of its slice.
    Raises:
        UserError: unreadable, several pages, colours, another size, or a value of no organ.
    """
    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1)
            mode = picture.mode
            depth_lost = mode not in ("I", "F") and not mode.startswith("I;16") and ";16" in str(picture.tile)
            values = _palette_values(picture) if mode in ("P", "PA") else np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); copy it again") from error
    if pages > 1:
        raise UserError(f"{path} holds {pages} pages; expected one picture a slice, save each page as its own")
    if depth_lost:
        raise UserError(f"{path} holds colours of 16 bits; save it as grey values")
    grey = _one_channel(path, values).T
    if grey.shape != shape:
        raise UserError(f"{path} is {grey.shape[0]} x {grey.shape[1]} pixels, its slice is {shape[0]} x {shape[1]}")
    if grey.dtype == bool:
        return np.where(grey, LIVER, 0).astype(np.uint8)
    return _organs(path, grey)


def _organs(path: Path, grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values of 8 bits, or of 16 (white is 65535), to labels 0 to 4."""
    scale = SIXTEEN_BITS if grey.max() > 255 else 1
    labels = np.zeros(grey.shape, dtype=np.uint8)
    for label, (_, low, high) in GREY.items():
        labels[(grey >= low * scale) & (grey <= high * scale)] = label
    unknown = np.unique(grey[(labels == 0) & (grey != 0)])
    if len(unknown):
        values = ", ".join(str(value * scale) for value, _, _ in GREY.values())
        raise UserError(f"{path} holds grey value {unknown[0]}, which matches no organ; expected 0 and about {values}")
    return labels


def _palette_values(picture: Image.Image) -> NDArray[Any]:
    """What a picture with a palette shows where the palette is grey; its numbers where the colours only paint them."""
    numbers = np.asarray(picture if picture.mode == "P" else picture.getchannel(0))
    colours = np.asarray(picture.convert("RGB"))
    return colours if (colours == colours[..., :1]).all() else numbers


def _one_channel(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """(rows, columns) of a picture whose channels agree.

    Raises:
        UserError: colours, or a pixel that has a value and is transparent.
    """
    if values.ndim == 2:
        return values
    if values.shape[-1] in (2, 4):
        values, opacity = values[..., :-1], values[..., -1]
        if (values[opacity < 255] != 0).any():
            raise UserError(f"{path} has transparent pixels with a value; save it as grey values")
    if (values != values[..., :1]).any():
        raise UserError(f"{path} holds colours; expected one grey value an organ, save it as grey values")
    return values[..., 0]
