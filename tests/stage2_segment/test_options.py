"""One declaration of an option: the command line, a grid, a run's refusal and its config all come from it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import PanelCommand
from zeus_union.stage2_segment import config
from zeus_union.stage2_segment.choices import ZEUS
from zeus_union.stage2_segment.cli import main, train_command
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.options import (
    BY_NAME,
    NAMES,
    OF_BASELINES,
    OF_PRETRAINED,
    OF_ZEUS,
    OPTIONS,
    Option,
    read_row,
)
from zeus_union.stage2_segment.plan import plan_run

# A value for each, another than what leaving it out means on the toy cache, as a grid gives it.
OTHER: dict[str, Any] = {
    "fusion": "hybrid",
    "combine": "max",
    "aligner": "mlp",
    "aligner_depth": 1,
    "iou_token": True,
    "modalities": ["T2"],
    "text": "random",
    "train_subjects": ["ada", "ben"],
    "test_subjects": "cleo",
    "recipe": "paper",
    "epochs": 3,
    "batch_size": 2,
    "lr": 0.01,
    "lr_new": 0.02,
    "foreground_share": 0.5,
    "class_weights": "inverse",
    "accumulate": 2,
    "ema": 0.9,
    "modality_drop": 0.25,
    "text_drop": 0.5,
    "precision": "bf16",
}


def at(run: RunConfig, place: str) -> Any:
    value: Any = run
    for name in place.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_its_place_is_a_field_of_the_config(option: Option) -> None:
    part, _, name = option.place.rpartition(".")
    kind = {"": RunConfig, **{field.name: getattr(config, str(field.type), None) for field in fields(RunConfig)}}[part]
    assert is_dataclass(kind) and name in {field.name for field in fields(kind)}


def test_the_command_line_has_exactly_the_declared_options() -> None:
    assert isinstance(train_command, PanelCommand)
    declared = {option.name for option in OPTIONS}
    panel_of = {name: panel for panel, names in train_command.panels.items() for name in names}
    shown = [p for p in train_command.params if p.name in declared and isinstance(p, click.Option)]
    assert [(p.name, panel_of[p.name or ""], p.help, p.default) for p in shown] == [
        (option.name, option.panel, option.help, option.default) for option in OPTIONS
    ]


def test_help_shows_the_panels_and_every_option_in_its_own() -> None:
    text = CliRunner().invoke(main, ["train", "--help"]).output
    assert isinstance(train_command, PanelCommand)
    places = [text.index(f"\n{panel}:\n") for panel in train_command.panels]
    assert places == sorted(places)
    headings = {text.index(f"\n{panel}:\n"): panel for panel in train_command.panels}
    for option in OPTIONS:
        place = text.index(f"\n  {option.flag} ", min(headings))
        assert headings[max(start for start in headings if start < place)] == option.panel


@pytest.mark.parametrize("name", OTHER)
def test_a_grid_and_the_command_line_mean_the_same_and_it_stands_in_its_place(toy_cache: Path, name: str) -> None:
    option, value = BY_NAME[name], OTHER[name]
    typed = ",".join(value) if isinstance(value, list) else str(value)
    arguments = ["--cache", "x"] + ([option.flag] if value is True else [option.flag, typed])
    context = train_command.make_context("train", arguments)
    from_command_line = context.params[name]
    if option.type is NAMES:
        from_command_line = tuple(from_command_line.split(","))
    from_grid = read_row({name.replace("_", "-"): value}, "row 1")
    assert from_grid == {name: from_command_line}
    with Cache(toy_cache) as cache:
        plain, chosen = plan_run(cache, run=Path("run")), plan_run(cache, run=Path("run"), **from_grid)
    assert at(chosen, option.place) != at(plain, option.place)
    assert at(chosen, option.place) == from_command_line


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.of], ids=lambda option: option.name)
def test_a_model_refuses_what_it_does_not_have_by_the_flag_that_was_typed(
    toy_cache: Path, tmp_path: Path, option: Option
) -> None:
    model = "unet" if option.of == OF_ZEUS else ZEUS
    value = ("x",) if option.type is NAMES else OTHER.get(option.name, tmp_path)
    if isinstance(option.click_type, click.Choice):
        value = next(choice for choice in option.click_type.choices if option.is_given(choice))
    with Cache(toy_cache) as cache, pytest.raises(UserError, match=f"leave out {option.flag}$"):
        plan_run(cache, run=Path("run"), model=model, **{option.name: value})
    with Cache(toy_cache) as cache:  # what says the same as leaving it out is no contradiction
        for nothing in (None, option.default, option.without):
            plan_run(cache, run=Path("run"), model=model, **{option.name: nothing})


def test_every_option_belongs_to_all_models_or_to_one_kind() -> None:
    assert {option.of for option in OPTIONS} == {None, OF_ZEUS, OF_BASELINES, OF_PRETRAINED, OF_PRETRAINED}
    assert len(BY_NAME) == len(OPTIONS)


def test_unknown_options_are_refused_naming_those_there_are(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache, pytest.raises(UserError, match="unknown option epoch; there are: model, fusion"):
        plan_run(cache, run=Path("run"), epoch=3)
    for name in ("seed", "fold", "epoch"):
        with pytest.raises(UserError, match=f"row 1: unknown option {name}; there are: accumulate"):
            read_row({name: 1}, "row 1")


def test_a_baseline_has_a_rate_of_its_own_and_a_given_rate_is_that_of_all_weights(toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        default, given = (plan_run(cache, run=Path("run"), model="unet", **o).recipe for o in ({}, {"lr": 3e-4}))
        assert (default.lr_pretrained, default.lr_new) == (1e-3, 1e-3)
        assert (given.lr_pretrained, given.lr_new) == (3e-4, 3e-4)
        zeus = plan_run(cache, run=Path("run"), lr=3e-4).recipe
        assert (zeus.lr_pretrained, zeus.lr_new) == (3e-4, 3e-4)
