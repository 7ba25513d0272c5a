"""Grids are data: the paper's load, and every row of them is a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import kind_of
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building.variants import FOLDER, class_variants, read_grid
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.text.bert import encode_distinct
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.named_yaml import names_in
from zeus_union.stage1_instruct.profiles.profile import load_profile

ROWS = {"table3": 5, "table4": 9}


@pytest.mark.parametrize("name", names_in(FOLDER))
def test_every_row_of_the_papers_grids_is_a_profile(name: str) -> None:
    rows = read_grid(name)
    assert len(rows) == ROWS[name]
    for row in rows:
        load_profile("paper", row.parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {variant: a, set: {}}\n- {variant: a, set: {}}\n", "names a twice"),
        ("- {variant: a b, set: {}}\n", "is not a layer name"),
        ("- {variant: a}\n", r"row 1 is .*expected 'variant' and 'set'"),
        ("- {variant: a, set: {}, model: x}\n", "row 1"),
        ("variant: a\n", "expected a list of rows"),
        ("[", "is not YAML"),
    ],
)
def test_broken_grid_is_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_grid(str(tmp_path / "grid.yaml"))


def test_unknown_grid_names_those_there_are() -> None:
    with pytest.raises(UserError, match="there are: table3, table4"):
        read_grid("table9")


@dataclass(frozen=True)
class Demo:
    """Builds a cache of one phantom in two modalities with tiny models."""

    path: Path
    command: tuple[str, ...]

    def build(self, *more: str) -> Result:
        return CliRunner().invoke(main, [*self.command, *more])


@pytest.fixture
def demo(phantom: Path, tiny_parts: dict[str, str], tmp_path: Path) -> Demo:
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(phantom), "--slice-step", "12"]
    command += ["--modalities", "T1-DUAL-in,T2-SPIR", "--out", str(tmp_path / "c.h5"), "--device", "cpu"]
    for part, value in {**tiny_parts, "projection": "untrained"}.items():
        command += ["--set", f"{part}={value}"]
    return Demo(tmp_path / "c.h5", tuple(command))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=1, seed=1)
    return root


def test_one_command_builds_a_layer_for_every_row(demo: Demo, tiny_blip2: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "- {variant: mlp, set: {connector: mlp}}\n"
        "- {variant: linear, set: {connector: linear}}\n"
        "- {variant: qformer, set: {connector: qformer}}\n"
        "- {variant: chat, set: {template: xraygpt}}\n"
        "- {variant: prompt, set: {instructor: prompt}}\n"
        f"- {{variant: blip2, set: {{instructor: blip2, blip2: {tiny_blip2}}}}}\n"
    )
    grid = ("--grid", str(tmp_path / "grid.yaml"))
    done = demo.build(*grid)
    assert done.exit_code == 0, done.output
    with Cache(demo.path) as cache:
        assert set(cache.variants) == {"mlp", "linear", "qformer", "chat", "blip2", "prompt"}
        rows = np.arange(len(cache.rows))
        texts = {variant: cache.text_embeddings(variant, rows).tobytes() for variant in cache.variants}
        assert len(set(texts.values())) > 1
    again = demo.build(*grid)
    assert again.exit_code == 0 and "finished already" in again.output


def test_classes_become_names_that_a_layer_can_have() -> None:
    names = class_variants("lite", ("liver", "right kidney", "non-enhancing_tumour", "edema (FLAIR)", "肝"))
    assert names == {
        "lite.liver": "liver",
        "lite.right-kidney": "right kidney",
        "lite.non-enhancing_tumour": "non-enhancing_tumour",
        "lite.edema-FLAIR": "edema (FLAIR)",
        "lite.5": "肝",
    }
    assert len(next(iter(class_variants("lite", ("long " * 100,))))) <= len("lite.") + 60


@given(st.text(min_size=1))
def test_any_class_has_a_layer(name: str) -> None:
    assert kind_of(f"instructions/{next(iter(class_variants('v', (name,))))}") == "instructions"


def test_classes_of_one_name_and_variants_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"'a b' and 'a-b' would share the layer v\.a-b"):
        class_variants("v", ("a b", "a-b"))
    with pytest.raises(UserError, match="is not a layer name"):
        class_variants("a b", ("liver",))


def test_bare_prompt_is_the_question_in_every_slice(demo: Demo) -> None:
    done = demo.build("--slice-step", "6", "--variant", "prompt", "--set", "instructor=prompt", "--set", "llm=none")
    assert done.exit_code == 0, done.output
    assert "LLM" not in done.output and "UNTRAINED" not in done.output
    assert "prompt: 4 instructions, 2 distinct: 4 equal to another slice's, 0 empty" in " ".join(done.output.split())
    assert "warning" not in done.output  # it says nothing on purpose
    with Cache(demo.path) as cache:
        table = cache.instructions("prompt").to_pylist()
        rows = np.arange(len(cache.rows))
        assert len(table) == 2 * len(rows) == 4
        for row in table:
            assert row["text"] == row["prompt"] == question(cache.card.instance, cache.card.terms[row["modality"]])
            assert (row["stop_reason"], row["prompt_tokens"], row["output_tokens"]) == ("prompt", 0, 0)
        vectors = cache.text_embeddings("prompt", rows)
        assert (vectors == vectors[:1]).all() and (vectors[0, 0] != vectors[0, 1]).any()
        recipe = cache.recipe("instructions/prompt")
        assert set(recipe) == {"slices", "terms", "instance", "instructor", "question", "text_encoder"}
        assert recipe["instructor"] == "prompt"


def test_text_that_comes_again_is_encoded_once() -> None:
    encoded: list[str] = []

    class Lengths:
        width = 1

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            encoded.extend(texts)
            return np.array([[len(text)] for text in texts], np.float32)

        def recipe(self) -> dict[str, str]:
            return {}

    assert encode_distinct(Lengths(), ["bb", "a", "bb", ""]).tolist() == [[2], [1], [2], [0]]
    assert encoded == ["bb", "a", ""]


def test_each_class_has_a_layer_that_asks_for_it_alone(demo: Demo) -> None:
    done = demo.build("--variant", "own", "--per-class", "--set", "instructor=prompt")
    assert done.exit_code == 0, done.output
    names = "own.liver,own.right-kidney,own.left-kidney,own.spleen"
    assert f"Next: zeus-segment train --cache {demo.path} --variant {names} --instructions class" in done.output
    with Cache(demo.path) as cache:
        assert "own" not in cache.variants
        for variant, name in zip(names.split(","), cache.classes):
            assert cache.recipe(f"instructions/{variant}")["instance"] == name
            prompts = {row["prompt"] for row in cache.instructions(variant).to_pylist()}
            assert prompts == {question(name, cache.card.terms[modality]) for modality in cache.modalities}
        assert cache.card.instance == "liver, right kidney, left kidney and spleen"


def test_grid_with_classes_makes_a_layer_for_every_row_and_class(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "- {variant: prompt, set: {instructor: prompt}}\n- {variant: chat, set: {template: xraygpt}}\n"
    )
    done = demo.build("--grid", str(tmp_path / "grid.yaml"), "--per-class", "--labels", "binary")
    assert done.exit_code == 0, done.output
    with Cache(demo.path) as cache:
        merged = "liver-right-kidney-left-kidney-and-spleen"
        assert len(cache.classes) == 1
        assert set(cache.variants) == {f"prompt.{merged}", f"chat.{merged}"}
    for variant in (f"prompt.{merged}", f"chat.{merged}"):
        assert f"--variant {variant} --instructions class" in done.output


def test_classes_without_instructions_are_refused(demo: Demo) -> None:
    done = demo.build("--per-class", "--layers", "embeddings")
    assert done.exit_code == 2 and "error: --per-class makes layers of instructions" in done.output
    assert not demo.path.exists()
