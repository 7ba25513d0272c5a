"""The links of the README and of docs/ lead to what is there. Imports nothing of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCED = re.compile(r"^(```|~~~).*?^\1[ \t]*$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
IN_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them: a repeated one gets -1, -2, ..."""
    slugs: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", prose(page), flags=re.MULTILINE):
        text = LINK.sub(lambda link: link[0][1 : link[0].index("]")], heading)
        slugs.append(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return {slug if number == 0 else f"{slug}-{number}" for slug, number in _numbered(slugs)}


def _numbered(slugs: list[str]) -> list[tuple[str, int]]:
    return [(slug, slugs[:place].count(slug)) for place, slug in enumerate(slugs)]


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, those to other sites left out."""
    targets = LINK.findall(IN_CODE.sub("`code`", prose(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: its headings are {sorted(anchors(target))}"


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} <= linked


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A new study: `zeus segment`\n\n```bash\n# a comment\n```\n\n## DSC, IoU\n\n## DSC, IoU\n")
    assert anchors(page) == {"a-new-study-zeus-segment", "dsc-iou", "dsc-iou-1"}


def test_the_readme_is_short_and_says_its_status_first() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140
    assert "not a medical device" in " ".join(lines[:15])
