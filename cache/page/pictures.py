"""Images, label maps and their differences as data URLs: small pictures that a page lays over one another."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.colours import RGB, class_colour, class_hex
from zeus_union.cache.layout import IGNORE

QUALITY = 82  # of WebP: 5 to 10 KB a slice of 256 x 256, without a difference that one sees
SCALE = 2  # pixels of a label picture for one of the image, so that outlines are thin
OUTLINE = 2  # of these pixels
FILL = 80  # of 255: what is below stays visible
# What differs between prediction and truth: name, colour, definition. Stripes run another way in each, for eyes and
# printers that do not tell the colours.
MISSED, EXTRA, CONFUSED = 1, 2, 3
ERRORS: dict[int, tuple[str, RGB, str]] = {
    MISSED: ("missed", (0x56, 0xB4, 0xE9), "truth has a class here, the prediction none"),
    EXTRA: ("extra", (0xD5, 0x5E, 0x00), "the prediction has a class here, the truth none"),
    CONFUSED: ("another class", (0xF0, 0xE4, 0x42), "both have a class here, but not the same"),
}
_UNKNOWN: RGB = (0x9A, 0x9A, 0x9A)  # pixels that nobody labelled


def image_url(image: NDArray[np.uint8]) -> str:
    """A grey image (rows, columns), for looking at: WebP, not lossless."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "WEBP", quality=QUALITY, method=4)
    return _data_url("webp", data.getvalue())


def labels_url(mask: NDArray[np.uint8], classes: Sequence[str]) -> str | None:
    """A label map (rows, columns) as a transparent picture: each class filled and outlined in its colour; None if empty."""
    if not mask.any():
        return None
    large = _enlarged(mask)
    count = len(classes)
    unknown = 2 * count + 1
    indices = np.where(_edges(large) & (large <= count) & (large > 0), large.astype(int) + count, large)
    indices = np.where(large == IGNORE, np.where(np.indices(large.shape).sum(0) % 8 < 3, unknown, 0), indices)
    colours = [class_colour(label) for label in range(1, count + 1)]
    palette = [*((colour, FILL) for colour in colours), *((colour, 255) for colour in colours), (_UNKNOWN, 160)]
    return _palette_url(indices, palette)


def errors_url(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> str | None:
    """Where two label maps (rows, columns) differ, as a transparent striped picture, see `ERRORS`; None where nowhere."""
    kinds = error_kinds(predicted, truth)
    if not kinds.any():
        return None
    large = _enlarged(kinds)
    rows, columns = np.indices(large.shape)
    stripes = np.select(
        [large == EXTRA, large == MISSED],
        [(rows + columns) % 6 < 2, (rows - columns) % 6 < 2],
        (rows % 6 < 3) & (columns % 6 < 3),
    )
    solid = _edges(large) | stripes
    indices = np.where(large > 0, np.where(solid, large + len(ERRORS), large), 0)
    colours = [colour for _, colour, _ in ERRORS.values()]
    return _palette_url(indices, [*((colour, 110) for colour in colours), *((colour, 255) for colour in colours)])


def error_kinds(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0 where two label maps agree or nobody labelled the pixel, else a key of `ERRORS`."""
    differs = (predicted != truth) & (truth != IGNORE)
    kinds = np.select([predicted == 0, truth == 0], [MISSED, EXTRA], CONFUSED)
    return np.where(differs, kinds, 0).astype(np.uint8)


def class_legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """(name, colour) of every class."""
    return [(name, class_hex(label)) for label, name in enumerate(classes, 1)]


def error_legend() -> list[tuple[str, str, str]]:
    """(name, colour, definition) of every kind of difference."""
    return [(name, "#{:02X}{:02X}{:02X}".format(*colour), said) for name, colour, said in ERRORS.values()]


def _enlarged(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return mask.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def _edges(large: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels within `OUTLINE` of another label, or of the picture's side."""
    padded = np.pad(large, OUTLINE, constant_values=0)
    rows, columns = large.shape
    edges = np.zeros(large.shape, bool)
    for step in range(1, OUTLINE + 1):
        for down, right in ((step, 0), (-step, 0), (0, step), (0, -step)):
            moved = padded[OUTLINE + down :, OUTLINE + right :][:rows, :columns]
            edges |= moved != large
    return edges


def _palette_url(indices: NDArray[np.integer], palette: Sequence[tuple[RGB, int]]) -> str:
    """Args: indices: 0 is transparent, k the k-th of `palette`, which is (colour, opacity to 255)."""
    used, compact = np.unique(np.concatenate([[0], indices.ravel()]), return_inverse=True)
    if len(used) > 256:
        return _true_colour_url(indices, palette)
    entries = [((0, 0, 0), 0), *palette]
    picture = Image.fromarray(compact[1:].reshape(indices.shape).astype(np.uint8), "P")
    picture.putpalette([value for index in used for value in entries[index][0]])
    data = io.BytesIO()
    picture.save(data, "PNG", transparency=bytes(entries[index][1] for index in used), optimize=True)
    return _data_url("png", data.getvalue())


def _true_colour_url(indices: NDArray[np.integer], palette: Sequence[tuple[RGB, int]]) -> str:
    """Of more colours than a palette holds."""
    table = np.array([(0, 0, 0, 0), *((*colour, opacity) for colour, opacity in palette)], np.uint8)
    data = io.BytesIO()
    Image.fromarray(table[indices]).save(data, "PNG", optimize=True)
    return _data_url("png", data.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
