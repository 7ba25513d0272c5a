"""The README and docs/ as the tests read them: pages, fenced blocks, and the marks that say which of them are run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage2_segment.cli import main as zeus_segment

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = tuple(sorted((ROOT / "docs").rglob("*.md")))
PAGES = (README, ROOT / "CONTRIBUTING.md", *DOCS)
COMMANDS = {"zeus": zeus, "zeus-instruct": zeus_instruct, "zeus-segment": zeus_segment}

_FENCED = re.compile(
    r"(?:^<!-- (?P<mark>run|not run: [^\n]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: relative to the repository.
        line: of its fence, from 1.
        mark: 'run', 'not run: REASON' or '', as the comment on the line above it says.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def runs(self) -> bool:
        return self.mark == "run"

    @property
    def reason(self) -> str:
        """Why it is not run."""
        return self.mark.removeprefix("not run:").strip() if not self.runs else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page_name(page),
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["text"],
            match["mark"] or "",
        )
        for match in _FENCED.finditer(text)
    ]


def blocks(page: Path, language: str) -> list[str]:
    """The text of a page's fenced blocks of that language."""
    return [block.text for block in fenced(page) if block.language == language]


def command_lines(block: str) -> list[list[str]]:
    """The commands of a bash block, each as its words, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def own_data_block() -> list[list[str]]:
    section = README.read_text(encoding="utf-8").split("\n## Your own data\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    return command_lines(block[1])
