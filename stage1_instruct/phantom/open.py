"""The phantom as a data set: written once in CHAOS's layout, then read like a patient's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zeus_union.cache.terminal import say
from zeus_union.stage1_instruct.phantom.write import is_demo, write_demo
from zeus_union.stage1_instruct.studies.chaos import open_chaos
from zeus_union.stage1_instruct.studies.study import Dataset


def open_demo(root: Path, labels: str, modalities: Sequence[str] | None) -> Dataset:
    """The phantoms in `root`, six of them written there first if it is empty or does not exist.

    Raises:
        UserError: `root` holds something else.
    """
    if not is_demo(root):
        say(f"writing 6 phantoms to {root}")
        write_demo("chaos", root)
    dataset = open_chaos(root, labels, modalities)
    return replace(dataset, card=replace(dataset.card, name="demo"))
