"""Every class has a colour of its own, the same everywhere."""

from __future__ import annotations

from zeus_union.cache.colours import class_colour, class_hex


def test_255_classes_have_255_colours_that_are_neither_black_nor_white() -> None:
    colours = [class_colour(label) for label in range(1, 256)]
    assert len(set(colours)) == 255
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert all(80 < sum(colour) < 700 for colour in colours)


def test_the_first_seven_are_okabe_and_ito_s() -> None:
    expected = ["#D55E00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#E69F00", "#0072B2"]
    assert [class_hex(label) for label in range(1, 8)] == expected
