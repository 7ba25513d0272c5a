"""Marks stand for names and pictures: recognised by whoever has them, read out by nobody."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeus_union.stage2_segment.marks import as_named, mark_name, mark_picture, new_salt, salt_of, spoken
from zeus_union.stage2_segment.sharing.anonymous import NAMES, PICTURES, shared_profile, shared_value, without_path
from zeus_union.stage2_segment.training_subjects import KnownSubjects

SALT, OTHER = "ab" * 16, "cd" * 16
# As a cache may call its subjects; so long, and with a letter that no digest has, that nothing else has one in it by chance.
subject = st.from_regex(r"[G-Zg-z][A-Za-z0-9._-]{5,24}", fullmatch=True)
digest = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
path = st.sampled_from(
    ["/home/jdoe/x.nii.gz", "~jdoe", "~/jdoe/x", "~jdoe/x", "C:\\Users\\jdoe\\x", "//host/jdoe/x", "\\\\host\\jdoe\\x"]
    + ["file:///home/jdoe/x", "http://host:8000/jdoe/x", "S3://host/jdoe/x", "D:/jdoe/x"]
)


@settings(max_examples=30, deadline=None)
@given(name=subject, other=subject, image=digest)
def test_a_mark_is_of_one_name_or_picture_and_one_salt(name: str, other: str, image: str) -> None:
    mark = mark_name(name, SALT)
    assert salt_of(mark) == SALT and salt_of(name) is None and salt_of(image) is None
    assert (mark == mark_name(other, SALT)) == (name == other)
    assert mark != mark_name(name, OTHER) and mark != mark_picture(name, SALT)
    assert mark_name(mark, OTHER) == mark and mark_picture(mark_picture(image, SALT), OTHER) == mark_picture(
        image, SALT
    )


@settings(max_examples=30, deadline=None)
@given(trained=st.sets(subject, max_size=3), images=st.sets(digest, max_size=3), name=subject, image=digest)
def test_marked_subjects_are_known_exactly_where_the_subjects_themselves_are(
    trained: set[str], images: set[str], name: str, image: str
) -> None:
    plain = KnownSubjects(frozenset(trained), frozenset(images))
    marked = KnownSubjects(
        frozenset(mark_name(known, SALT) for known in trained),
        frozenset(mark_picture(known, OTHER) for known in images),
    )
    for who in {name, *trained}:
        for pictures in ((), (image,), (image, *images)):
            assert marked.has(who, pictures) == plain.has(who, pictures) == (plain | marked).has(who, pictures)
    marks = sorted(marked.names)
    assert set(as_named(marks, [*trained, "somebody"])) == trained
    assert as_named(marks, []) == tuple(marks) and as_named([name], [name]) == (name,)


values = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), path),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), names=st.lists(subject, min_size=1, max_size=3), image=digest)
def test_whatever_a_recipe_holds_names_pictures_and_paths_are_taken_out(
    data: st.DataObject, names: list[str], image: str
) -> None:
    recipe: Any = data.draw(values)
    for key in data.draw(st.lists(st.sampled_from(["a", "projection", "trained_on"]), max_size=3)):
        people = {name: 1 for name in names} if data.draw(st.booleans()) else [*names, {"x": 1}]
        recipe = {key: recipe, data.draw(st.sampled_from(NAMES)): people, PICTURES[0]: [image]}
        recipe = [recipe] if data.draw(st.booleans()) else recipe
    shared = shared_value(recipe, SALT)
    text = json.dumps(shared)
    for word in (*names, image, "jdoe", "host"):
        assert word not in text or word in "salted" + SALT  # a name may be a piece of the salt
    assert shared_value(shared, OTHER) == shared


@given(path)
def test_of_a_path_the_last_part_is_left(text: str) -> None:
    left = without_path(text)
    assert not PurePosixPath(left).is_absolute() and not PureWindowsPath(left).is_absolute() and "/" not in left
    assert without_path(left) == left


@pytest.mark.parametrize("text", ["hf:owner/name", "litemedsam", "none", "auto", "a/b", "0f" * 32, ""])
def test_what_is_no_path_stays(text: str) -> None:
    assert without_path(text) == text


def test_a_profile_keeps_its_lines_but_for_what_is_on_a_machine() -> None:
    lines = {"name": "/x/mine", "llm": "/home/jdoe/vicuna", "text_encoder": "hf:a/b", "llm_batch": 4, "address": "none"}
    shared = shared_profile(lines)
    assert shared == {
        "name": "mine",
        "text_encoder": "hf:a/b",
        "llm_batch": 4,
        "address": "none",
        "to_give": {"llm": "vicuna"},
    }
    assert shared_profile(shared) == shared


def test_marks_are_counted_in_a_sentence() -> None:
    marks = [mark_name(name, new_salt()) for name in ("a", "b")]
    assert spoken(["x", "y"]) == "x, y"
    assert spoken(marks) == "2 subjects whose names were not shared"
    assert spoken(["x", marks[0]]) == "x and 1 subject whose names were not shared"
