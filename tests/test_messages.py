"""What commands say to a person: near misses named, numbers with their nouns, warnings that --quiet does not hide."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from zeus_union.cache import terminal
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import Verbosity, counted
from zeus_union.pipelines.ablation.grid import read_grid
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage2_segment.training import messages

ROOT = Path(__file__).parents[1]
ROOMS = ("cache", "stage1_instruct", "stage2_segment", "pipelines")


def source_lines() -> list[tuple[str, str]]:
    """(where, line) of all the code's lines."""
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


@pytest.mark.parametrize(
    ("profile", "overrides", "meant"),
    [
        ("lite", {"templat": "zeus"}, "template"),
        ("lite", {"encoder": "sam_vit_x"}, "sam_vit_"),
        ("lite", {"template": "xraygtp"}, "xraygpt"),
        ("papr", {}, "paper"),
    ],
)
def test_a_near_miss_in_a_profile_is_named(profile: str, overrides: dict[str, str], meant: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {meant}\w*\?"):
        load_profile(profile, overrides)


def test_a_near_miss_in_ablates_set_is_named_and_is_not_blamed_on_the_grid() -> None:
    with pytest.raises(UserError, match=r"^--set: unknown option fussion; .*; did you mean fusion\?"):
        read_grid("table2", {"fussion": "late"})
    with pytest.raises(UserError, match=r"no grid controlls; .*; did you mean controls\?"):
        read_grid("controlls", {})


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 classes"), (1, "1 class"), (2, "2 classes"), (12345, "12,345 classes")]
)
def test_a_number_takes_its_nouns_plural(count: int, said: str) -> None:
    assert counted(count, "class") == said


def test_no_message_counts_with_a_noun_of_its_own() -> None:
    """'1 subjects' comes from a number in a message right before a plural: `counted` is there for those."""
    nouns = "subjects|slices|runs|studies|masks|texts|folds|epochs|captions|sentences|slice-modalities|files"
    wrong = re.compile(rf"\{{len\([^{{}}]*\)\}} ({nouns})\b")
    says = re.compile(r"\b(say|warn|echo|UserError)\(")
    lines = source_lines()
    found = [
        where
        for at, (where, line) in enumerate(lines)
        if wrong.search(line) and any(says.search(before) for _, before in lines[max(0, at - 2) : at + 1])
    ]
    assert found == []


def test_texts_that_know_the_answer_are_warned_of_also_where_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_verbosity", Verbosity.QUIET)
    messages.warn_of_what_is_known(SimpleNamespace(leaks=("oracle",), seen=("anna",)))  # type: ignore[arg-type]
    said = " ".join(capsys.readouterr().err.split())
    assert "oracle were made from the true labels" in said and "trained on anna" in said
    messages.warn_of_what_is_known(SimpleNamespace(leaks=(), seen=()))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
