"""What the texts of a layer are, and when they say nothing of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.tiny_cache import CARD, LLM_RECIPE, SLICES_RECIPE, make_slices
from zeus_union.cache.instructions import Instruction, make_table
from zeus_union.cache.reader import Cache
from zeus_union.cache.text_statistics import is_looping, say_statistics, text_statistics, warn_of_texts
from zeus_union.cache.writer import CacheWriter

SYSTEM_LINE = "You are a helpful healthcare virtual assistant."


def table(texts: Sequence[str], modalities: Sequence[str] = ("T1",), subjects: int = 1, stop: str = "stop") -> pa.Table:
    """One row a text: subject by subject, slice by slice, modality by modality."""
    each = len(texts) // subjects
    parts = []
    for number in range(subjects):
        own = texts[number * each : (number + 1) * each]
        keys = [(place // len(modalities), modalities[place % len(modalities)]) for place in range(each)]
        rows = [Instruction(*key, "Where?", text, 1, 1, stop, None) for key, text in zip(keys, own)]
        parts.append(make_table(f"s{number}", "v", rows))
    return pa.concat_tables(parts)


def test_one_sentence_everywhere_is_the_warning_of_the_issue() -> None:
    found = text_statistics(table([SYSTEM_LINE] * 46))
    assert found.warning == "46 instructions, 1 distinct: the text says nothing of the image"
    assert (found.distinct, found.repeated, found.most_common) == (1, 46, 46)


def test_one_sentence_for_each_modality_says_nothing_either() -> None:
    found = text_statistics(table(["a", "b"] * 23, ("T1", "T2")))
    assert found.warning == "46 instructions, 2 distinct, one for each modality: the text says nothing of the image"
    mixed = text_statistics(table(["a", "b", "b", "a"] * 4, ("T1", "T2")))
    assert mixed.warning is None


def test_nearly_one_sentence_says_next_to_nothing() -> None:
    found = text_statistics(table(["a"] * 45 + ["b"]))
    assert found.warning is not None
    assert "46 instructions, 2 distinct, 45 of them the most frequent: the text says next to nothing" in found.warning
    assert text_statistics(table(["a"] * 8 + ["b"] * 2)).warning is None


def test_what_differs_from_slice_to_slice_is_no_warning() -> None:
    assert text_statistics(table([f"slice {number}" for number in range(9)])).warning is None
    assert text_statistics(table(["a", "b"], ("T1", "T2"))).warning is None  # a single slice


def test_a_report_a_subject_is_remarked_upon() -> None:
    found = text_statistics(table(["a"] * 4 + ["b"] * 4, subjects=2))
    assert found.per_subject and found.warning is None
    assert any("one text for all slices of a subject" in line for line in found.lines())


def test_empty_cut_looping_length_and_vocabulary_are_counted() -> None:
    texts = [
        "",
        " ...",
        "a bright liver",
        "liver liver liver liver",
        "the liver is dark the liver is dark the liver is dark",
    ]
    found = text_statistics(table(texts, stop="length"))
    assert (found.empty, found.cut, found.looping) == (2, 5, 2)
    assert found.words == (0, 3, 12)
    assert found.vocabulary == len({"a", "bright", "liver", "the", "is", "dark"})
    assert "5 instructions, 5 distinct: 0 equal to another slice's, 2 empty, 5 cut" in next(found.lines())


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("no no no", False),
        ("no no no no", True),
        ("a b a b", False),
        ("x a b a b a b y", True),
        ("a small left kidney and a small right kidney and a small spleen", False),
        (" ".join(["the liver is on the right side"] * 3), True),
        ("1 2 3 4 5", False),
    ],
)
def test_loops_are_phrases_three_times_in_a_row(text: str, loops: bool) -> None:
    assert is_looping(text.split()) == loops


@given(st.lists(st.sampled_from("abc"), max_size=24))
def test_loops_are_found_wherever_they_stand(words: list[str]) -> None:
    def repeated(length: int, times: int) -> bool:
        return any(
            all(words[start + k] == words[start + k % length] for k in range(length * times))
            for start in range(len(words) - length * times + 1)
        )

    assert is_looping(words) == (repeated(1, 4) or any(repeated(n, 3) for n in range(2, 9)))


@given(st.lists(st.sampled_from(["", "a", "b b b b", "c d"]), min_size=1, max_size=30))
def test_counts_hold_together(texts: list[str]) -> None:
    found = text_statistics(table(texts))
    assert found.count == len(texts) and found.distinct == len(set(texts))
    assert found.repeated == sum(texts.count(text) > 1 for text in texts)
    assert found.empty == texts.count("") and found.looping == texts.count("b b b b")
    assert (found.warning is None) == (len(texts) == 1 or found.most_common < 0.9 * len(texts))


def test_an_empty_layer_has_statistics_too() -> None:
    assert text_statistics(table([])).count == 0


def build(path: Path, text: str, instructor: str) -> Path:
    writer = CacheWriter(path, replace(CARD, subjects=("A",)))
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("instructions/v", {**LLM_RECIPE, "instructor": instructor})
    writer.write_slices("A", make_slices("A"))
    rows = [Instruction(number, name, "", text, 0, 0, "stop", None) for number in (2, 5) for name in CARD.modalities]
    writer.write_instructions("instructions/v", "A", np.ones((2, 2, 3), np.float32), rows)
    writer.finalize()
    return path


def test_a_layer_that_says_nothing_is_warned_of_but_for_the_bare_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cache(build(tmp_path / "a.h5", SYSTEM_LINE, "llm")) as cache:
        say_statistics(cache, ["v"])
        warn_of_texts(cache, ["v", "v"])
    said = capsys.readouterr().err
    assert said.count("warning: v: 4 instructions, 1 distinct: the text says nothing of the image") == 2
    with Cache(build(tmp_path / "b.h5", "the question", "prompt")) as cache:
        say_statistics(cache, ["v"])
    said = capsys.readouterr().err
    assert "4 instructions, 1 distinct" in said and "warning" not in said
