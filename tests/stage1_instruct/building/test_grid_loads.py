"""A grid loads each of its language models once, in whichever order its rows stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.stage1_instruct.building.quick_encoder import QuickEncoder
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building.variants import VariantRow, read_grid
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.commands.build import _by_language_model
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.models.language import blip2, llm
from zeus_union.stage1_instruct.models.language.loaded_once import LoadedOnce
from zeus_union.stage1_instruct.phantom.write import write_demo


@pytest.mark.slow
def test_rows_of_one_language_model_are_built_one_after_another_and_load_it_once(
    tiny_parts: dict[str, str], tiny_blip2: Path, beginning_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grid.yaml").write_text(
        f"- {{variant: mlp, set: {{llm: {tiny_parts['llm']}}}}}\n"
        f"- {{variant: blip2, set: {{instructor: blip2, blip2: {tiny_blip2}}}}}\n"
        f"- {{variant: other, set: {{llm: {beginning_llama}}}}}\n"
        f"- {{variant: chat, set: {{llm: {tiny_parts['llm']}, template: xraygpt}}}}\n"
        f"- {{variant: blip2-short, set: {{instructor: blip2, blip2: {tiny_blip2}, template: blip2}}}}\n"
        f"- {{variant: other-linear, set: {{llm: {beginning_llama}, connector: linear}}}}\n"
    )
    loads: list[str] = []
    for module in (llm, blip2):
        load = module.load_pretrained
        monkeypatch.setattr(
            module,
            "load_pretrained",
            lambda kind, part, *rest, load=load: loads.append(part) or load(kind, part, *rest),
        )
    monkeypatch.setattr(Models, "encoder", QuickEncoder())
    write_demo("nnunet", tmp_path / "raw", subjects=1, seed=1)
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(tmp_path / "raw"), "--slice-step", "24"]
    command += ["--modalities", "T2-SPIR", "--out", str(tmp_path / "c.h5"), "--device", "cpu"]
    for part, value in {**tiny_parts, "projection": "untrained", "max_new_tokens": "2"}.items():
        if part != "llm":
            command += ["--set", f"{part}={value}"]
    rows = read_grid(str(tmp_path / "grid.yaml"))
    command += ["--grid", str(tmp_path / "grid.yaml")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert sorted(loads) == sorted([tiny_parts["llm"], str(tiny_blip2), str(beginning_llama)])
    with Cache(tmp_path / "c.h5") as cache:
        assert set(cache.variants) == {row.variant for row in rows}


def test_a_lora_comes_after_the_rows_without_it_and_two_of_them_load_twice() -> None:
    order = _by_language_model(
        [
            VariantRow("a", {"llm": "x", "lora": "one"}),
            VariantRow("b", {"llm": "y"}),
            VariantRow("c", {"llm": "x"}),
            VariantRow("d", {"llm": "x", "lora": "two"}),
            VariantRow("e", {"llm": "y"}),
        ],
        "lite",
    )
    assert [row.variant for row in order] == ["c", "a", "d", "b", "e"]
    loaded, loads = LoadedOnce(), []

    def load() -> object:
        loads.append(1)
        return object()

    given = [loaded.get("x", lora, load) for lora in ("none", "none", "one", "one", "two")]
    assert [has_lora for _, has_lora in given] == [True, True, False, True, False]
    assert len(loads) == 2 and given[0][0] is given[3][0] and given[4][0] is not given[3][0]
