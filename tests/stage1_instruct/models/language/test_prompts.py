"""The templates say what the papers say."""

from __future__ import annotations

import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.models.language.prompts import TEMPLATES, question, template

ASKED = (
    "Please analyze the given prostate MRI-T2 image and give as much important information in such a MRI-T2 for "
    "segmenting prostate as you can."
)


def test_question_names_instance_and_modality() -> None:
    assert question("prostate", "MRI-T2") == ASKED


def test_zeus_template_is_the_papers_word_for_word() -> None:
    before, after = template("zeus").pieces(ASKED)
    assert before == "###Assistant: You are a helpful healthcare virtual assistant. ###Doctor: "
    assert after == f" {ASKED} ###Assistant:"


def test_xraygpt_template_puts_the_image_between_its_markers() -> None:
    assert template("xraygpt").prompt("Describe.") == "###Patient: <Img><image></Img> Describe. ###Doctor:"


@pytest.mark.parametrize("name", TEMPLATES)
def test_image_and_question_stand_once_in_every_template(name: str) -> None:
    prompt = template(name).prompt("QUESTION")
    assert prompt.count("<image>") == prompt.count("QUESTION") == 1
    assert "{" not in prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_target_ends_with_the_marker(name: str) -> None:
    assert template(name).answer_end.strip(" ") == template(name).marker


def test_question_with_braces_is_left_as_it_is() -> None:
    assert "{image} {question}" in template("zeus").prompt(question("{image} {question}", "MRI"))


def test_unknown_template_names_those_there_are() -> None:
    with pytest.raises(UserError, match="zeus, xraygpt"):
        template("vicuna")
