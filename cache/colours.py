"""The colour of every class: one table for pictures, label files, NIfTI headers and DICOM."""

from __future__ import annotations

import colorsys

RGB = tuple[int, int, int]

# Colour-blind safe (Okabe and Ito), in an order in which neighbours differ most; theirs without black.
_FIRST: tuple[RGB, ...] = (
    (0xD5, 0x5E, 0x00),
    (0x56, 0xB4, 0xE9),
    (0x00, 0x9E, 0x73),
    (0xF0, 0xE4, 0x42),
    (0xCC, 0x79, 0xA7),
    (0xE6, 0x9F, 0x00),
    (0x00, 0x72, 0xB2),
)
# Further ones turn by the golden section, which never comes back to a hue, and change their lightness as well.
_TURN = 0.6180339887498949
_LIGHTNESS = (0.72, 0.45, 0.60)


def class_colour(label: int) -> RGB:
    """Red, green, blue (0 to 255) of a class by its label from 1: the same in every study and run."""
    if label <= len(_FIRST):
        return _FIRST[label - 1]
    red, green, blue = colorsys.hls_to_rgb(label * _TURN % 1, _LIGHTNESS[label % len(_LIGHTNESS)], 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def class_hex(label: int) -> str:
    """'#D55E00' of a class by its label from 1.

    >>> class_hex(1)
    '#D55E00'
    """
    return "#{:02X}{:02X}{:02X}".format(*class_colour(label))
