"""Profiles are data; any part can be replaced, no part misspelt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.profiles.named_yaml import names_in
from zeus_union.stage1_instruct.profiles.profile import FOLDER, load_profile, parse_overrides, profile_from
from zeus_union.stage1_instruct.weights.sources import SOURCES


@pytest.mark.parametrize("name", names_in(FOLDER))
def test_every_profile_that_ships_loads_and_needs_only_what_fetch_knows(name: str) -> None:
    profile = load_profile(name)
    example = {profile.model} if profile.instructor == "vlm" else set()
    assert set(profile.needs) - example <= set(SOURCES)


def test_profile_takes_what_it_does_not_say_from_the_one_it_is_like(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nlike: vlm\nmax_new_tokens: 20\n")
    mine, vlm, lite = (load_profile(name) for name in (str(tmp_path / "mine.yaml"), "vlm", "lite"))
    assert (mine.name, mine.max_new_tokens, mine.instructor, mine.model) == ("mine", 20, "vlm", vlm.model)
    assert mine.encoder == lite.encoder and mine.no_repeat_ngram_size == 0
    (tmp_path / "round.yaml").write_text(f"like: {tmp_path / 'round.yaml'}\n")
    with pytest.raises(UserError, match=r"round\.yaml is like itself"):
        load_profile(str(tmp_path / "round.yaml"))


def test_numbers_may_be_left_open() -> None:
    profile = load_profile("lite", {"max_new_tokens": "auto", "llm_batch": "auto"})
    assert profile.max_new_tokens is None and profile.llm_batch is None
    assert load_profile("paper").max_new_tokens is None
    with pytest.raises(UserError, match="vision_grid = 'auto', expected a number"):
        load_profile("lite", {"vision_grid": "auto"})


def test_a_profile_is_read_again_from_its_lines_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "vicuna").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there")
    profile = load_profile("lite", {"llm": "vicuna", "llm_batch": "auto", "keep_states": "yes"})
    lines = json.loads(json.dumps(profile.to_json()))
    monkeypatch.chdir(tmp_path)
    again = profile_from(lines, "a run")
    assert again == replace(profile, llm=str(tmp_path / "there" / "vicuna"))
    assert profile_from(lines, "a run", {"llm": "hf:a/b", "top_p": "0.5"}).llm == "hf:a/b"
    with pytest.raises(UserError, match="unknown part wings in a run"):
        profile_from({**lines, "wings": 2}, "a run")


def test_overrides_replace_parts_with_their_types() -> None:
    profile = load_profile("lite", {"max_new_tokens": "32", "repetition_penalty": "1.5", "encoder": "sam_vit_b"})
    assert (profile.max_new_tokens, profile.repetition_penalty, profile.encoder) == (32, 1.5, "sam_vit_b")


def test_part_given_as_a_path_need_not_be_fetched(tmp_path: Path) -> None:
    assert "smollm2-135m-instruct" not in load_profile("lite", {"llm": str(tmp_path)}).needs
    assert "hf:owner/name" in load_profile("lite", {"llm": "hf:owner/name"}).needs


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    assert parse_overrides(("llm=/a=b", "template=xraygpt")) == {"llm": "/a=b", "template": "xraygpt"}


@pytest.mark.parametrize("assignment", ["llm", "=x", "llm=", ""])
def test_assignment_without_a_part_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(UserError, match="expected part=value"):
        parse_overrides((assignment,))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lmm": "x"}, "unknown part lmm"),
        ({"max_new_tokens": "many"}, "expected a number"),
        ({"max_new_tokens": "1.5"}, "expected a number"),
        ({"max_new_tokens": "0"}, "expected 1 or more"),
        ({"encoder": "resnet"}, "litemedsam, sam_vit_b"),
        ({"template": "alpaca"}, "zeus, xraygpt"),
        ({"vision_grid": "5"}, "divisor of 64"),
        ({"repetition_penalty": "0.5"}, "repetition_penalty"),
        ({"text_window": "mean"}, "text_window = mean is for MedCLIP's text encoder and text_kind is bert; give"),
        ({"text_window": "extended", "text_kind": "clip"}, "text_kind is clip; give text_window=truncate or"),
        ({"encoder_precision": "bf16"}, "encoder_precision = bf16, but litemedsam computes in fp32 only; give"),
        ({"instructor": "prompt", "keep_states": "yes"}, "no language model has states; give keep_states=no"),
    ],
)
def test_wrong_part_or_value_is_one_clear_error(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_profile("lite", overrides)


def test_settings_of_another_model_are_taken_where_that_model_is() -> None:
    assert load_profile("paper", {"text_window": "mean"}).text_window == "mean"
    assert load_profile("lite", {"encoder": "sam_vit_b", "encoder_precision": "bf16"}).encoder_precision == "bf16"


def test_bare_prompt_needs_the_text_encoder_and_no_model_that_speaks() -> None:
    assert load_profile("lite", {"instructor": "prompt"}).needs == ("litemedsam", "all-minilm-l6-v2")
    paper = load_profile("paper", {"instructor": "prompt", "vision_weights": "none", "llm": "none", "temperature": "1"})
    assert paper.needs == ("sam_vit_h", "medclip-vit", "bio-clinicalbert")
    assert not paper.samples and paper.sees == "nothing"


def test_an_encoder_alone_needs_no_other_weights(tmp_path: Path) -> None:
    assert load_profile("paper").text_needs.needs == ("medclip-vit", "bio-clinicalbert")
    assert load_profile("lite").text_needs.needs == ("all-minilm-l6-v2",)
    assert load_profile("lite", {"text_encoder": str(tmp_path)}).text_needs.needs == ()
    assert load_profile("paper").image_needs.needs == ("sam_vit_h",)


def test_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(UserError, match="there are: lite"):
        load_profile("tiny")


@pytest.mark.parametrize(
    ("text", "message"), [("name: x\n", "lacks encoder"), ("- a\n", "found a list"), ("a: [", "is not YAML")]
)
def test_broken_profile_file_is_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_profile(str(tmp_path / "mine.yaml"))
