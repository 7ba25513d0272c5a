"""Label files are what the viewers' own parsers expect."""

from __future__ import annotations

import re

from zeus_union.cache.colours import class_colour
from zeus_union.pipelines.outputs.label_files import itk_snap_labels, slicer_colours

CLASSES = ("liver", "left kidney", 'a "quoted"\nname', "脾")
# ITK-SNAP reads seven numbers, then the text between the first and the last double quote of the line.
SNAP_LINE = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"')


def test_itk_snap_s_table_has_the_clear_label_and_every_class() -> None:
    lines = [line for line in itk_snap_labels(CLASSES).splitlines() if not line.startswith("#")]
    parsed = [SNAP_LINE.fullmatch(line) for line in lines]
    assert all(parsed)
    fields = [match.groups() for match in parsed if match]
    assert fields[0] == ("0", "0", "0", "0", "0", "0", "0", "Clear Label")
    assert [field[7] for field in fields[1:]] == ["liver", "left kidney", "a 'quoted' name", "脾"]
    assert [tuple(map(int, field[1:4])) for field in fields[1:]] == [class_colour(label) for label in range(1, 5)]
    assert all(field[4:7] == ("1", "1", "1") for field in fields[1:])


def test_slicer_s_table_has_six_columns() -> None:
    rows = [line.split(" ") for line in slicer_colours(CLASSES).splitlines() if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)
    assert [row[1] for row in rows] == ["Background", "liver", "left_kidney", 'a_"quoted"_name', "脾"]
    assert [row[0] for row in rows] == [str(label) for label in range(5)]
    assert rows[1][2:] == [*map(str, class_colour(1)), "255"] and rows[0][2:] == ["0", "0", "0", "0"]
