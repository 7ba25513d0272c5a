"""Names and colours of the classes for the viewers: ITK-SNAP's labels.txt, 3D Slicer's labels.ctbl."""

from __future__ import annotations

from collections.abc import Sequence

from zeus_union.cache.colours import class_colour

_ITK_SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    MSH:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""


def itk_snap_labels(classes: Sequence[str]) -> str:
    """ITK-SNAP's label descriptions; a name cannot hold a double quote, which becomes a single one."""
    lines = []
    for label, name in enumerate(classes, 1):
        red, green, blue = class_colour(label)
        written = " ".join(name.replace('"', "'").split())
        lines.append(f'{label:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{written}"\n')
    return _ITK_SNAP_HEAD + "".join(lines)


def slicer_colours(classes: Sequence[str]) -> str:
    """3D Slicer's colour table; its columns are separated by spaces, so those of a name become '_', as Slicer writes them."""
    lines = ["# Color table file: label name red green blue opacity\n", "0 Background 0 0 0 0\n"]
    for label, name in enumerate(classes, 1):
        red, green, blue = class_colour(label)
        lines.append(f"{label} {'_'.join(name.split())} {red} {green} {blue} 255\n")
    return "".join(lines)
