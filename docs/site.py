"""Hooks of the site (mkdocs.yml): what a page links to outside docs/ is shown by name, as the site holds docs/ alone."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+(?!docs/)[^)]+|[\w-]+\.(?:ipynb|csv))\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(r"\1", markdown)
