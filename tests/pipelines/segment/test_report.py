"""zeus segment --report: a page of every study, with the images that its results do not hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.pipelines.segment.conftest import SHAPE, run
from zeus_union.pipelines.cli import main as zeus


def test_every_study_gets_a_page_with_its_images_and_is_finished_with_it(cohort: Path, tmp_path: Path) -> None:
    command = [
        "segment",
        cohort / "data/imagesTr",
        "--run",
        cohort / "run",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    done = run(zeus, *command, "--report")
    assert done.exit_code == 0, done.output
    for name in ("pat0", "pat1"):
        html = (tmp_path / "out" / name / "report.html").read_text(encoding="utf-8")
        (data,) = re.findall(r'class="slice-data">(.*?)</script>', html, re.DOTALL)
        subject = json.loads(data)
        assert subject["modalities"] == ["T1Gd"] and len(subject["slices"]) == SHAPE[0]
        assert all(part["images"][0].startswith("data:image/webp") for part in subject["slices"])
        assert str(tmp_path) not in html and str(cohort) not in html
    again = run(zeus, *command)
    assert again.exit_code == 0 and "2 of 2 studies with results" in again.output
    replaced = run(zeus, *command, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert not (tmp_path / "out" / "pat0" / "report.html").exists()
