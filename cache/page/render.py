"""A page: one HTML file that needs nothing else, from a template and its values.

Everything that comes from a study, a user or a language model is escaped by Jinja, or goes into the page as JSON that its
script puts there as text. A policy in the page lets nothing be loaded and no other script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zeus_union.cache.atomic import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
# Okabe and Ito's without those that are faint on white or black; each line also has a dash of its own.
LINES = (("#0072B2", "solid"), ("#D55E00", "dash"), ("#009E73", "dot"), ("#CC79A7", "dashdot"))
SCRIPTS = ("theme.js", "charts.js", "slices.js")


@dataclass(frozen=True)
class PageTable:
    """A table of a page, its first column the rows' names.

    Attributes:
        best: (row, column) of the cells to mark.
        notes: sentences below it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class KeyFigure:
    """A number to be seen first, with what it is."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure that plotly draws.

    Attributes:
        name: of the figure, unique in its page.
        title: what it shows.
        definition: what its points are, in a sentence.
        data, layout: as plotly's JSON has them; colours of text and lines follow the page.
    """

    name: str
    title: str
    definition: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)


def render_page(template: Path, *, charts: bool = True, **values: Any) -> str:
    """The HTML of a page.

    Args:
        template: extends base.html.j2.
        charts: whether the page has a `Chart`, which takes plotly along (4.8 MB).
        values: of the template.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False
    }  # a browser refuses the page's data with a NaN in it
    scripts = [_plotly()] * charts + [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return environment.get_template(template.name).render(
        scripts=scripts,
        script_digests=[_digest(script) for script in scripts],
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        version=version("zeus-union"),
        **values,
    )


def write_page(path: Path, html: str) -> Path:
    """A page, whole under its name or not there at all; replaces what had the name."""
    write_atomically(path, html.encode())
    return path


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # 0.2 s that no other command needs

    return get_plotlyjs()


def _digest(script: str) -> str:
    """As a page's policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
