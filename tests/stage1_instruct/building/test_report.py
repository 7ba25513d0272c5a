"""How long a build still takes."""

from __future__ import annotations

from zeus_union.stage1_instruct.building.report import BuildReport


def test_what_is_left_takes_as_long_as_what_is_done_took() -> None:
    report = BuildReport(expected={"A": 30, "B": 60, "C": 30})
    assert report.time_left(10.0, 20, {"B", "C"}, "") == "; about 45 s left for one process"
    report.later = 120  # all of them once more, in the texts of another fold
    assert report.time_left(10.0, 20, {"C"}, "of the texts") == "; about 75 s of the texts left for one process"


def test_nothing_is_said_where_nothing_is_left_or_known() -> None:
    report = BuildReport(expected={"A": 30})
    assert report.time_left(10.0, 20, set(), "") == ""
    assert report.time_left(10.0, 20, {"D"}, "") == ""
    assert report.time_left(10.0, 0, {"A"}, "") == ""
