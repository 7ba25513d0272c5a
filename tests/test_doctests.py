"""The examples in docstrings say what the functions give."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "stage1_instruct", "stage2_segment", "pipelines")
WITH_EXAMPLES = [
    path.relative_to(ROOT)
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if "\n    >>> " in path.read_text(encoding="utf-8")
]


def test_a_dozen_modules_have_examples() -> None:
    assert len(WITH_EXAMPLES) >= 12


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_give_what_they_say(path: Path) -> None:
    module = importlib.import_module("zeus_union." + ".".join(path.with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
