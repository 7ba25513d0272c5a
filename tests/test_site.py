"""The site is built from docs/ and from the commands, without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage2_segment.cli import main as zeus_segment

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None or find_spec("mkdocs_click") is None, reason="needs mkdocs-material")
def test_the_site_builds_without_a_warning_and_has_every_page_and_command(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert (tmp_path / "site" / name).is_file(), name
    commands = (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'<h\d id="([\w-]+)"', commands))
    for group in (zeus, zeus_instruct, zeus_segment):
        for command in group.commands:
            assert any(heading.endswith(command) for heading in headings), command
