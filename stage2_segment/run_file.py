"""Options of training from a file: a YAML of one's own, or the config.json of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_variants
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.terminal import nearest
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.options import BY_NAME, NAMES, OPTIONS, foreign_options
from zeus_union.stage2_segment.recipe import RECIPES

CACHE = "cache"


def read_run_file(path: Path) -> dict[str, Any]:
    """Name of an option -> its value, as click takes it; `cache` is the path of the cache.

    A relative path of a cache is relative to the file's folder.

    Raises:
        UserError: not there, no mapping of options, an option that does not exist.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(
            f"--config {path}: expected a mapping of options, e.g. 'fusion: hybrid', or a run's config.json"
        )
    if path.suffix == ".json" and {"architecture", "recipe"} <= values.keys():
        return _of_run(path, values)
    options = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = [*BY_NAME, CACHE, "out"]
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"--config {path}: unknown option {unknown[0]}{nearest(unknown[0], known)}")
    if CACHE in options:
        options[CACHE] = path.parent / str(options[CACHE])
    return {name: _for_click(name, value) for name, value in options.items()}


def options_of(config: RunConfig) -> dict[str, Any]:
    """Option -> its value in a run, of those that its model has and that hold something.

    The subjects are left out where a fold was held out, which says them.
    """
    foreign = foreign_options(config.architecture.model, BY_NAME)
    options = {option.name: _at(config, option.place) for option in OPTIONS if option.name not in foreign}
    if config.split.fold is not None:
        options |= dict.fromkeys(("train_subjects", "test_subjects", "validation_subjects"))
    options["allow_seen"], options["allow_leak"] = bool(config.inputs.seen), bool(config.inputs.leaks)
    return {name: value for name, value in options.items() if value not in (None, ())}


def _of_run(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What would have to be said on the command line to plan that run again."""
    config = (
        checkpoint.load_config(path.parent) if path.name == checkpoint.CONFIG else RunConfig.from_json(dict(values))
    )
    if config.is_shared:
        raise UserError(f"--config {path}: the run was imported, without the names of its subjects; give the options")
    if config.inputs.pretrained is not None:
        raise UserError(
            f"--config {path}: the run began from pretrained weights; give its options, with --pretrained FILE"
        )
    options = options_of(config)
    if "variant" in options:
        options["variant"] = base_variants(options["variant"])
    _check_recipe(path, config)
    return {
        CACHE: path.parent / config.inputs.cache,
        **{name: _for_click(name, value) for name, value in options.items()},
    }


def _check_recipe(path: Path, config: RunConfig) -> None:
    """Raises UserError: what no option says of the run's recipe has changed since, so that its options give another one."""
    settable = {option.place.partition(".")[2] for option in OPTIONS}
    now = asdict(RECIPES[config.recipe.name]) if config.recipe.name in RECIPES else {}
    fixed = {name: value for name, value in asdict(config.recipe).items() if name not in settable}
    if changed := differences(fixed, {name: value for name, value in now.items() if name not in settable}):
        raise UserError(
            f"--config {path}: recipe {config.recipe.name} has changed since the run was trained ({describe(changed)}); "
            "give the options"
        )


def _at(config: RunConfig, place: str) -> Any:
    part: Any = config
    for name in place.split("."):
        part = getattr(part, name)
    return part


def _for_click(name: str, value: Any) -> Any:
    is_names = name in BY_NAME and BY_NAME[name].type is NAMES
    return ",".join(map(str, value)) if is_names and isinstance(value, (list, tuple)) else value
