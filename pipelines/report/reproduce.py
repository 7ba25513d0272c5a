"""What decides a run, digests included, and the command that trains it again, from its config."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeus_union.cache.recipe import sha256_file
from zeus_union.stage2_segment.checkpoint import weights_path
from zeus_union.stage2_segment.choices import TEXTS, ZEUS
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.marks import spoken
from zeus_union.stage2_segment.options import BY_NAME, NAMES, Option
from zeus_union.stage2_segment.recipe import BASELINE_LR, RECIPES
from zeus_union.stage2_segment.run_file import options_of


def train_command(config: RunConfig, out: str) -> str:
    """`zeus-segment train` with every option that differs from what it does without it; '' of a run that was exported.

    Args:
        out: the run's folder, as it is to be called.
    """
    if config.is_shared:
        return ""
    words = ["zeus-segment", "train", "--cache", Path(config.inputs.cache).name]
    for name, value in options_of(config).items():
        words += _words(BY_NAME[name], value, config)
    return shlex.join([*words, "--out", out])


def _words(option: Option, value: Any, config: RunConfig) -> Iterator[str]:
    if option.name == "pretrained":
        yield from (option.flag, "FILE")
    elif value == _without(option, config):
        return
    elif isinstance(value, bool):
        yield option.flag if value else f"--no-{option.flag[2:]}"
    else:
        yield from (option.flag, ",".join(value) if option.type is NAMES else str(value))


def _without(option: Option, config: RunConfig) -> Any:
    """What the config would hold without the option; None where that depends on the cache."""
    recipe, is_zeus = RECIPES[config.recipe.name], config.architecture.model == ZEUS
    if option.name == "modalities":
        return config.inputs.card.modalities
    if option.name == "text":
        return "instruction" if is_zeus else "none"
    if option.name == "text_drop" and not config.architecture.text_is_a_part:
        return 0.0
    if option.name == "lr" and not is_zeus:
        return BASELINE_LR
    if option.place.startswith("recipe.") and option.name not in ("recipe", "views"):
        return getattr(recipe, option.place.partition(".")[2])
    return option.default


def facts(config: RunConfig, folder: Path) -> dict[str, dict[str, str]]:
    """Heading -> name -> value: all that decides the run, digests included; subjects that were not shared are counted."""
    architecture, inputs, recipe = config.architecture, config.inputs, config.recipe
    weights = weights_path(folder, "last")
    model = {
        "model": architecture.model,
        "fusion": architecture.fusion,
        **({"combine": architecture.combine, "aligner": architecture.aligner} if config.is_zeus else {}),
        "encoder": inputs.encoder or "-",
        "text": f"{inputs.text}: {TEXTS[inputs.text]}",
        "instructions": ", ".join(inputs.variants) or "-",
        "modalities": ", ".join(inputs.modalities),
        "classes": ", ".join(inputs.classes),
    }
    split = {
        "fold": "-" if config.split.fold is None else str(config.split.fold),
        "trained on": spoken(config.split.train) or "-",
        "held out": spoken(config.split.test) or "-",
        "validated on": spoken(config.split.validation) or "-",
        "seed": str(config.seed),
    }
    training = {
        key.replace("_", " "): f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in vars(recipe).items()
    }
    digests = {
        "weights (last), sha256": sha256_file(weights) if weights.is_file() else "-",
        **{f"recipe of {layer}": digest for layer, digest in inputs.fingerprints.items()},
        **{f"content of {layer}": digest for layer, digest in inputs.content.items()},
    }
    return {"Model": model, "Split": split, "Training": training, "Versions": dict(config.versions), "Digests": digests}
