"""Every message that docs/troubleshooting.md quotes is one that the program gives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.pipelines.documentation import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
ROOMS = ("cache", "stage1_instruct", "stage2_segment", "pipelines")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def texts_of(tree: ast.AST) -> Iterator[str]:
    """The strings of a module; what an f-string fills in is '...'."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{\w+\}", "...", node.value)


@pytest.fixture(scope="module")
def texts() -> str:
    """Every string of the program, one a line."""
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return "\n".join(
        text.replace("\n", " ") for path in files for text in texts_of(ast.parse(path.read_text(encoding="utf-8")))
    )


def test_the_page_quotes_more_than_a_dozen_messages() -> None:
    assert len(QUOTED) > 24


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_program(message: str, texts: str) -> None:
    parts = (re.escape(part) for part in message.split("..."))
    assert re.search(".*?".join(parts), texts), message
