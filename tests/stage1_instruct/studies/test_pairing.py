"""Label pictures find their slices by the numbers in the names; what was lost on either side is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.studies.dicom_files import natural_key
from zeus_union.stage1_instruct.studies.pairing import name_numbers, pair_pictures

GROUND = Path("Ground")


def pair(slices: list[str], pictures: list[str]) -> list[str]:
    """The pictures' names; both sides in any order."""
    return [path.name for path in pair_pictures(GROUND, slices, [GROUND / name for name in pictures])]


def run(pattern: str, *numbers: int) -> list[str]:
    return [pattern.format(number) for number in numbers]


SLICES = ("IMG-0004-{:05d}.dcm", "i{:04d},0000b.dcm", "{}.dcm", "IM.{:03d}", "T2 [{}] März.IMA", "x.dcm (frame {})")
PICTURES = ("IMG-{:05d}.png", "liver_GT_{:03d}.png", "{}.png", "{:02d}.TIF", "IMG-0004-{:05d}.PNG")
PATTERNS = {"slices": st.sampled_from(SLICES), "pictures": st.sampled_from(PICTURES)}


@settings(deadline=None, derandomize=True)
@given(numbers=st.sets(st.integers(0, 120), min_size=1, max_size=15), down=st.booleans(), seed=st.randoms(), **PATTERNS)
def test_equal_numbers_belong_together_whatever_the_names(numbers, down, seed, slices, pictures):
    along = sorted(numbers, reverse=down)
    shuffled = run(pictures, *along)
    seed.shuffle(shuffled)
    assert pair(run(slices, *along), shuffled) == run(pictures, *along)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    count=st.integers(3, 15),
    start=st.integers(1, 3),
    lost=st.tuples(st.integers(0, 14), st.integers(0, 14)),
    **PATTERNS,
)
def test_one_file_lost_on_each_side_is_noticed(count, start, lost, slices, pictures):
    """The counts agree again, and every label behind the first gap would lie one slice off.

    Counted from 0 with the first of one side and the last of the other lost, names cannot tell this from a count from 1;
    the line that says so is all there is.
    """
    numbers = range(start, start + count)
    first, second = (numbers[index % count] for index in lost)
    assume(first != second)
    with pytest.raises(UserError, match="the numbers of the pictures are not those of the slices"):
        pair(run(slices, *(n for n in numbers if n != first)), run(pictures, *(n for n in numbers if n != second)))


@pytest.mark.parametrize(
    ("slices", "pictures"),
    [
        (run("i{:04d},0000b.dcm", *range(34, 46)), run("liver_GT_{:03d}.png", *range(12))),
        (run("IMG-0002-{:05d}.dcm", *range(1, 13)), run("liver_GT_{:03d}.png", *range(12))),
        (run("{}.dcm", *range(12)), run("label{}.png", *range(1, 13))),
        (run("IMG-0004-{:05d}.dcm", *range(2, 25, 2)), run("IMG-{:05d}.png", *range(1, 13))),
        (run("IMG-0004-{:05d}.dcm", *range(2, 25, 2)), run("IMG-{:05d}.png", *range(1, 24, 2))),
    ],
)
def test_another_count_of_the_same_run_is_paired_by_order_and_said(slices, pictures, capsys):
    assert pair(slices, pictures[::-1]) == pictures
    assert "by order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("slices", "pictures"),
    [
        (
            run("i{:04d}.dcm", *range(34, 40), *range(41, 46)),
            run("liver_GT_{:03d}.png", *range(11)),
        ),  # hole in the slices
        (
            run("i{:04d}.dcm", *range(34, 45)),
            run("liver_GT_{:03d}.png", *range(5), *range(6, 12)),
        ),  # hole in the pictures
        (run("i{:04d}.dcm", *range(34, 45)), run("liver_GT_{:03d}.png", *range(2, 13))),  # the first pictures lost
        (run("i{:04d}.dcm", *range(4, 25, 2)), run("liver_GT_{:03d}.png", *range(1, 12))),  # the first slice lost
    ],
)
def test_a_run_with_a_hole_or_without_its_start_is_refused(slices, pictures):
    with pytest.raises(UserError, match="not those of the slices"):
        pair(slices, pictures)


def test_the_names_that_have_no_partner_are_named():
    slices, pictures = run("IMG-0004-{:05d}.dcm", 1, 2, 3, 5), run("IMG-{:05d}.png", 1, 3, 4, 5)
    with pytest.raises(UserError, match=r"no picture for IMG-0004-00002.dcm; no slice for IMG-00004.png"):
        pair(slices, pictures)
    with pytest.raises(UserError, match=r"3 label pictures for 4 slices.*no picture for IMG-0004-00002.dcm"):
        pair(slices, run("IMG-{:05d}.png", 1, 3, 5))


def test_names_without_a_number_are_refused():
    with pytest.raises(UserError, match="do not differ by one number"):
        pair(["apex.dcm", "base.dcm"], ["1.png", "2.png"])
    assert pair(["base.dcm", "apex.dcm"], ["apex.png", "base.png"]) == ["base.png", "apex.png"]


def test_numbers_that_do_not_run_along_the_body_are_refused():
    """Somebody renamed the slices: the numbers no longer speak of the pictures'."""
    with pytest.raises(UserError, match="do not run along the body"):
        pair(run("slice{}.dcm", 3, 1, 2), run("IMG-{}.png", 1, 2, 3))


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["i0034,0000b.dcm", "i0035,0000b.dcm"], (34, 35)),
        (["IMG-0004-00001.dcm", "IMG-0004-00012"], (1, 12)),
        (["IM.001", "IM.010"], (1, 10)),
        (["1_of_2.png", "2_of_2.png"], (1, 2)),
        (["a1.png", "b2.png"], None),
        (["1.png", "01.png"], None),
    ],
)
def test_the_number_of_a_name_is_the_one_that_differs(names, numbers):
    assert name_numbers(names) == numbers


def test_natural_order_counts():
    assert sorted(["10.png", "9.png", "a", "1.png", "01.png"], key=natural_key) == [
        "01.png",
        "1.png",
        "9.png",
        "10.png",
        "a",
    ]
