"""Runs, an ablation, a study and a cache whose names and texts would run a script, and the pages of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.stage2_segment import conftest as toy
from zeus_union.cache.instructions import Instruction
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.ablation.grid import read_grid
from zeus_union.pipelines.ablation.plan import plan_ablation
from zeus_union.pipelines.ablation.run import run_ablation
from zeus_union.stage2_segment.ablation_folder import run_folder
from zeus_union.stage2_segment.checkpoint import write_table
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run

EVIL = '</script><script>window.hacked = 1</script><img src="x" onerror="window.hacked = 1">'
TEXT = f"A liver on the right. {EVIL} A spleen on the left."
SPLEEN = "spleen <b>&amp; more</b>"
GRID = f"""
title: '{EVIL} ablation'
options: {{fusion: hybrid, epochs: 1, batch-size: 3, train-subjects: ada, test-subjects: "ben,dan"}}
rows:
  - {{name: 'row <i>one</i>'}}
controls: [none]
"""


def _instruction(number: int, modality: str, *_: Any) -> Instruction:
    return Instruction(number, modality, "where?", f"{TEXT} Slice {number}.", 1, 1, "length", 0)


@pytest.fixture(scope="session")
def evil_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy cache with texts and a class whose names are HTML."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "Instruction", _instruction)
        patch.setattr(toy, "CLASSES", ("liver", SPLEEN))
        return toy.make_cache(tmp_path_factory.mktemp("cache") / "toy.h5")


@pytest.fixture(scope="session")
def ablation(evil_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row and its control without text, tested on two subjects."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "grid.yaml").write_text(GRID)
    out = folder / "rows"
    with Cache(evil_cache) as cache:
        grid = read_grid(str(folder / "grid.yaml"), {})
        run_ablation(cache, grid, plan_ablation(cache, grid, out), out, device="cpu")
    return out


@pytest.fixture(scope="session")
def run(ablation: Path, evil_cache: Path) -> Path:
    """The ablation's first run, evaluated, with what probes of it would have written."""
    name = next(iter(json.loads((ablation / "ablation.json").read_text())["runs"]))
    folder = run_folder(ablation, name)
    evaluate_run(folder, device="cpu")
    probe = [
        {"text": text, "subject": subject, "class": label, "dsc_256": score, "changed": 0.9 - score}
        for text, score in (("instruction", 0.9), ("shuffled-slices", 0.85), ("none", 0.7))
        for subject in ("ben", "dan")
        for label in ("liver", SPLEEN)
    ]
    write_table(folder / "probe.parquet", probe)
    sentences = [
        {"subject": "ben", "slice": 2, "modality": "T1", "text": text, "changed": changed, "dsc_256": 0.9}
        for text, changed in (("A liver on the right.", 0.31), ("A spleen on the left.", 0.02))
    ]
    write_table(folder / "sentences.parquet", sentences)
    return folder


def data_of(html: str, kind: str) -> list[Any]:
    """The JSON of the scripts of a class in a page."""
    blocks = re.findall(rf'<script type="application/json" class="{kind}">(.*?)</script>', html, re.DOTALL)
    return [json.loads(block) for block in blocks]


def assert_stands_alone(html: str, *secrets: str) -> None:
    """Nothing is loaded, nothing of a name or text became HTML, and the machine's folders are not in it."""
    assert EVIL not in html
    bare = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|file:)""", bare)
    assert "<i>one</i>" not in bare and "<b>&amp; more</b>" not in bare
    for secret in secrets:
        assert secret not in html
