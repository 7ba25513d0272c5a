"""The instructions of a subject: what is stored of each, and what the text encoder could not read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zeus_union.cache.layout import DatasetCard
from zeus_union.stage1_instruct.building.instructions import SubjectImages, answer
from zeus_union.stage1_instruct.building.report import BuildReport
from zeus_union.stage1_instruct.commands.build import _say_report
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile

NUMBERS = np.array([3, 4], np.int32)


def card(instance: str = "liver") -> DatasetCard:
    terms = {"T1": "MRI-T1", "T2": "MRI-T2", "CT": "CT"}
    return DatasetCard("d", tuple(terms), terms, ("liver",), instance, ("s",))


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_only_sampled_instructions_have_a_seed(tiny_parts: dict[str, str], temperature: str) -> None:
    models = load_models(load_profile("lite", {**tiny_parts, "temperature": temperature}), "cpu", lambda _: None)
    seen = SubjectImages("s", NUMBERS, torch.zeros(2, 3, 256, 64, 64))
    seeds = {row.seed for row in answer(seen, card(), models).rows}
    assert seeds == {None} if temperature == "0" else len(seeds) == 6 and None not in seeds


def test_questions_beyond_the_text_encoder_are_counted_and_said(
    tiny_parts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """117 classes: T1, T2 and CT ask alike as far as the encoder reads (128 tokens, a letter each)."""
    models = load_models(load_profile("lite", {**tiny_parts, "instructor": "prompt"}), "cpu", lambda _: None)
    seen = SubjectImages("s", NUMBERS, None)
    report = BuildReport()
    written = answer(seen, card(", ".join(f"class {number}" for number in range(117))), models, timing=report.timing)
    assert written.cut == 6
    assert np.allclose(written.embeddings[0, 0], written.embeddings[0, 1])
    report.cut_by_encoder += written.cut
    _say_report(report)
    said = " ".join(capsys.readouterr().err.split())
    assert "6 of 6 texts longer than the text encoder reads" in said and "--per-class" in said
