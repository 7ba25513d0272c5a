"""The controls in words: what is shown, what is not, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from zeus_union.pipelines.report.verdict import findings, verdict


def results(rows: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"row": row, "seed": 0, "fold": 0, "subject": f"s{index}", "class": "liver", "dsc": score}
        for row, scores in rows.items()
        for index, score in enumerate(scores)
    ]


BETTER = [0.80 + index / 100 for index in range(12)]
WORSE = [score - 0.1 - index / 500 for index, score in enumerate(BETTER)]
MIXED = [score + (-1) ** index * (index + 1) / 100 for index, score in enumerate(BETTER)]


def test_gains_are_shown_or_not_in_the_order_one_asks() -> None:
    found = findings(
        results({"own": BETTER, "b": MIXED, "a": WORSE, "c": [score + 0.1 for score in BETTER]}),
        "own",
        {"constant": "b", "none": "a", "prompt": "c", "random": "not trained"},
    )
    assert [one.control for one in found] == ["none", "constant", "prompt"]
    none, constant, prompt = found
    assert none.answer == "yes" and none.difference == pytest.approx(0.111)
    assert constant.answer.startswith("not shown")
    assert prompt.answer == "no: the control is better" and prompt.difference == pytest.approx(-0.1)


def test_with_two_subjects_nothing_can_be_shown_and_it_says_so() -> None:
    text = verdict(results({"own": [0.9, 0.8], "a": [0.1, 0.2]}), "own", {"none": "a"})
    assert "not shown (higher than the control)" in text and "+0.700" in text
    assert "only the signs can be read" in text
    assert "only the signs" not in verdict(results({"own": BETTER, "a": WORSE}), "own", {"none": "a"})


def test_without_controls_there_is_nothing_to_say() -> None:
    assert verdict(results({"own": BETTER}), "own", {}) == ""
    assert verdict(results({"a": BETTER}), "own", {"none": "a"}) == ""


def test_the_upper_bound_stands_below_and_says_where_no_text_could_help() -> None:
    controls = {"none": "a", "oracle": "o"}
    text = verdict(results({"own": WORSE, "a": WORSE, "o": BETTER}), "own", controls)
    assert "captions from the true labels (oracle) reach +0.111" in text and "no better text would" not in text
    text = verdict(results({"own": WORSE, "a": BETTER, "o": WORSE}), "own", controls)
    assert "above no text. Not even the true labels in words help this decoder: no better text would." in text
    without = verdict(results({"own": WORSE, "a": BETTER}), "own", {"none": "a"})
    assert "oracle" not in without and text.startswith(without.rstrip("\n"))
