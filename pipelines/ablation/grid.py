"""Grids of an ablation: a YAML file -> the rows of a table, each with the options of `zeus-segment train`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.leaks import leaking
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose, nearest, warn
from zeus_union.stage1_instruct.profiles.named_yaml import names_in, read_named_yaml
from zeus_union.stage2_segment.baselines.pretrained import PUBLISHED
from zeus_union.stage2_segment.choices import MLP, TEXTS, ZEUS, default_aligner
from zeus_union.stage2_segment.options import foreign_options, read_row

FOLDER = Path(__file__).parents[1] / "grids"
KEYS = ("title", "options", "rows", "lists", "controls", "seeds", "folds", "minutes", "reference")
ROW_KEYS = ("name", "set", "paper")
PROMPT = "prompt"  # the control that is an instruction layer of its own: the question, unanswered
UPPER_BOUND = "oracle"  # the control whose text was made from the true labels
CONTROLS = (*(name for name in TEXTS if name != "instruction"), PROMPT)
PAPER_DATASETS = {"chaos": "CHAOS", "msd-prostate": "MSD-Prostate", "msd-brain": "MSD-Brain"}


@dataclass(frozen=True)
class GridRow:
    """One row of the table.

    Attributes:
        options: of `plan_run`.
        paper: the paper's data set -> its DSC and mIoU there, in per cent.
        control: which of `CONTROLS` stands in the instruction's place; None: none.
    """

    name: str
    options: Mapping[str, Any]
    paper: Mapping[str, Sequence[float]] = field(default_factory=dict)
    control: str | None = None


@dataclass(frozen=True)
class AblationGrid:
    """A table to be made.

    Attributes:
        seeds: every row is trained with each.
        folds: every row is trained with each of the cache's folds held out; None: all there are.
        reference: the row that the others are compared with.
        minutes: of training for every run, in place of a number of epochs; None: the rows' epochs.
    """

    title: str
    rows: tuple[GridRow, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...] | None
    reference: str
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.minutes is None:
            return
        if isinstance(self.minutes, bool) or not isinstance(self.minutes, (int, float)) or not self.minutes > 0:
            raise UserError(f"minutes is {self.minutes!r}, expected a number above 0")
        if any("epochs" in row.options for row in self.rows):
            raise UserError("minutes and epochs exclude one another; give one of them")


def grid_names() -> tuple[str, ...]:
    return names_in(FOLDER)


def read_grid(
    name_or_yaml: str,
    overrides: Mapping[str, Any],
    controls: Sequence[str] | None = None,
    weights: Mapping[str, Path] | None = None,
) -> AblationGrid:
    """The grid of that name, or in that YAML file.

    Args:
        overrides: train options that replace those of every row.
        weights: model -> the file that its rows' encoders begin from, in place of the rows' own.
        controls: rows to add in which the first row's instruction is replaced (`CONTROLS`); None: those the grid names.

    Raises:
        UserError: no such grid; a key, option or value that does not exist; two rows of one name.
    """
    path, values = read_named_yaml(FOLDER, name_or_yaml, "grid")
    if "pretrained" in overrides and not Path(overrides["pretrained"]).is_file():
        raise UserError(f"--set pretrained={overrides['pretrained']}: the file does not exist")
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: expected a mapping with the keys {', '.join(KEYS)}; found a {type(values).__name__}")
    unknown = [str(key) for key in values if key not in KEYS]
    if unknown:
        raise UserError(
            f"{path} has the unknown key {', '.join(unknown)}; there are: {', '.join(KEYS)}{nearest(unknown[0], KEYS)}"
        )
    for key, kind in {"options": dict, "rows": list, "lists": dict, "controls": list}.items():
        if not isinstance(values.get(key, kind()), kind):
            raise UserError(f"{path}, {key}: expected a {'list' if kind is list else 'mapping'}, found {values[key]!r}")
    common = values.get("options", {})
    rows = [
        _row(value, common, overrides, weights or {}, f"{path}, row {number}")
        for number, value in enumerate(values.get("rows") or [{"name": path.stem, "set": {}}], 1)
    ]
    rows = _times_lists(rows, values.get("lists", {}), str(path))
    rows += _controls(rows[0], values.get("controls", []) if controls is None else controls)
    names = [row.name for row in rows]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path} names {', '.join(doubled)} twice; rows need names of their own")
    reference = str(values.get("reference", names[0]))
    choose([reference], names, "reference row")
    folds = values.get("folds", [0])
    return AblationGrid(
        title=str(values.get("title", path.stem)),
        rows=tuple(rows),
        seeds=_numbers(values.get("seeds", [0]), f"{path}, seeds"),
        folds=None if folds == "all" else _numbers(folds, f"{path}, folds"),
        reference=reference,
        minutes=values.get("minutes"),
    )


def read_weights(assignments: Sequence[str]) -> dict[str, Path]:
    """--pretrained MODEL=FILE, as often as it was given -> model -> file.

    Raises:
        UserError: a model without published weights; no such file.
    """
    weights = {}
    for text in assignments:
        model, _, file = text.partition("=")
        if model not in PUBLISHED or not Path(file).is_file():
            what = f"no weights at {file}" if model in PUBLISHED else f"{model!r} is not a model with published weights"
            raise UserError(
                f"--pretrained {text}: {what}; expected MODEL=FILE with a MODEL of {', '.join(PUBLISHED)}, "
                "e.g. --pretrained pretrained_unet=efficientnet-b0.pth"
            )
        weights[model] = Path(file)
    return weights


def _row(
    value: Any, common: Mapping[str, Any], overrides: Mapping[str, Any], weights: Mapping[str, Path], where: str
) -> GridRow:
    if not isinstance(value, dict) or set(value) - set(ROW_KEYS) or not isinstance(value.get("set", {}), dict):
        raise UserError(f"{where} is {value!r}, expected {', '.join(ROW_KEYS)} (set: option: value)")
    if not value.get("name"):
        raise UserError(f"{where} has no name")
    paper = value.get("paper", {})
    for numbers in paper.values() if isinstance(paper, dict) else [None]:
        if not isinstance(numbers, list) or len(numbers) != 2:
            raise UserError(f"{where}, paper: expected DATASET: [DSC, mIoU], found {paper!r}")
    for_all, row = (read_row(part, where) for part in (common, value.get("set", {})))
    above = read_row(overrides, "--set")
    options = {**for_all, **row, **above}
    if options.get("model") in weights:
        options["pretrained"] = weights[options["model"]]
    foreign = {*foreign_options(options.get("model", ZEUS), (*for_all, *above)), *_needs_text(options)} - set(row)
    return GridRow(str(value["name"]), {name: options[name] for name in options if name not in foreign}, paper)


def _needs_text(options: Mapping[str, Any]) -> set[str]:
    """The options that mean nothing in a row, by its text and its aligner."""
    if options.get("text") == "none":
        return {"variant", "text_drop"}
    aligner = options.get("aligner") or default_aligner(options.get("recipe"))
    return {"text_drop"} if aligner == MLP else set()


def _times_lists(rows: list[GridRow], lists: Mapping[str, Any], where: str) -> list[GridRow]:
    """Every row with every combination of the lists' values."""
    for option, values in lists.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}, lists: {option} is {values!r}, expected a list of values")
    combined = []
    for row in rows:
        for values in itertools.product(*lists.values()):
            chosen = dict(zip(lists, values))
            named = [f"{option}={'+'.join(map(str, v)) if isinstance(v, list) else v}" for option, v in chosen.items()]
            options = {**row.options, **read_row(chosen, f"{where}, lists")}
            needless = _needs_text(options) - _needs_text(row.options) - set(chosen)
            options = {option: value for option, value in options.items() if option not in needless}
            alone = len(rows) == 1 and named
            name = ", ".join(named) if alone else ", ".join([row.name, *named])
            combined.append(GridRow(name, options, row.paper))
    return combined


def _controls(base: GridRow, wanted: Sequence[str]) -> list[GridRow]:
    rows = []
    for control in choose(wanted, CONTROLS, "control"):
        options = {key: value for key, value in base.options.items() if key != "text"}
        if control == UPPER_BOUND:
            options.pop("variant", None)
            options["allow_leak"] = True
        if control == PROMPT:
            options["variant"] = (PROMPT,)
        else:
            options["text"] = control
        needless = _needs_text(options)
        options = {option: value for option, value in options.items() if option not in needless}
        rows.append(GridRow(f"{base.name}, text: {control}", options, control=control))
    return rows


def with_possible_oracle(grid: AblationGrid, cache: Cache) -> AblationGrid:
    """The grid without the upper bound where the cache has no captions from the true labels, which is said."""
    rows = tuple(row for row in grid.rows if row.control != UPPER_BOUND)
    if len(rows) == len(grid.rows) or leaking(cache, cache.variants):
        return grid
    warn(f"no upper bound: {cache.path} has no captions from the true labels; zeus-instruct make-oracle {cache.path}")
    return replace(grid, rows=rows)


def _numbers(values: Any, where: str) -> tuple[int, ...]:
    if isinstance(values, int):
        values = [values]
    if not isinstance(values, list) or not values or not all(isinstance(v, int) and v >= 0 for v in values):
        raise UserError(f"{where} is {values!r}, expected a list of numbers from 0")
    return tuple(dict.fromkeys(values))


def paper_figures(grid_rows: Sequence[GridRow], cache: Cache) -> dict[str, dict[str, float]]:
    """Row -> the paper's 'dsc' and 'miou' on the data set the cache was made from; on the only one it has otherwise."""
    dataset = PAPER_DATASETS.get(cache.card.name)
    figures = {}
    for row in grid_rows:
        known = row.paper.get(dataset or "") or (next(iter(row.paper.values())) if len(row.paper) == 1 else None)
        if known:
            figures[row.name] = {"dsc": float(known[0]), "miou": float(known[1])}
    return figures
