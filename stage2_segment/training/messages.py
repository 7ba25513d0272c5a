"""What training says to the one who waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator

from zeus_union.cache.devices import computes_bf16
from zeus_union.cache.folds import VALIDATED_FROM
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import counted, say, some_of, warn
from zeus_union.stage2_segment.choices import BASELINES, TEXTS
from zeus_union.stage2_segment.config import Inputs, RunConfig, Split
from zeus_union.stage2_segment.training_subjects import learned_their_texts


def warn_of_what_is_known(inputs: Inputs) -> None:
    """Of texts that know what the run is tested on, where the user insisted on them."""
    if inputs.leaks:
        warn(
            f"instructions {', '.join(inputs.leaks)} were made from the true labels: this run is an upper bound, not a result"
        )
    if inputs.seen:
        warn(
            f"the projection was trained on {some_of(inputs.seen)}, which this run is tested on: its DSC will be too good"
        )


def say_what_is_faster(configs: Iterable[RunConfig], device: torch.device, option: str) -> None:
    """That a processor trains Zeus's decoder faster in bf16 than in fp32; not measured for baselines and GPUs.

    Args:
        option: that would choose it.
    """
    in_fp32 = any(config.is_zeus and config.recipe.precision == "fp32" for config in configs)
    if in_fp32 and device.type == "cpu" and computes_bf16(device):
        say(
            f"this processor computes bf16: with {option} a step takes about two thirds of the time, for masks that are as good"
        )


def say_what_views_bring(cache: Cache, configs: Iterable[RunConfig]) -> None:
    """That a cache without augmented copies can have them; the paper's recipe reads none."""
    encoders = {config.inputs.encoder for config in configs if config.is_zeus and config.recipe.name != "paper"}
    if any(not cache.views(encoder) for encoder in encoders if encoder):
        say(
            f"{cache.path} has no augmented copies of its slices: its build-cache command with --views 2 adds them, and masks "
            "of new subjects are better for it"
        )


def warn_of_learned_texts(cache: Cache, configs: Iterable[RunConfig]) -> None:
    """Of training subjects whose texts are better than those of any other subject will be."""
    read = dict.fromkeys((config.inputs.texts_read, config.split.train) for config in configs)
    learned = dict.fromkeys(name for texts, train in read for name in learned_their_texts(cache, texts, train))
    if learned:
        warn(
            f"the texts of {some_of(list(learned))}, to train on, come from a projection that was trained on them: texts of "
            "other subjects are worse, and their masks will follow these as far; --text none does without. Of two or more "
            "training subjects zeus-instruct build-cache makes each half's texts with a projection of the other half"
        )


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """A finished epoch of one run, of its record in the history."""
    validated = ""
    if "validation_dsc" in record:
        validated = f"validation DSC {record['validation_dsc']:.3f}, mIoU {record['validation_miou']:.3f}, "
    return f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.3f}, {validated}{speed_in_words(record['slices_per_s'])}"


def speed_in_words(slices_per_s: float) -> str:
    """For a reader: '6.3 slices/s', or '14.0 s a slice' of many runs side by side on a CPU."""
    if 0 < slices_per_s < 1:
        return f"{1 / slices_per_s:.1f} s a slice"
    return f"{slices_per_s:.1f} slices/s"


def _validated(split: Split) -> str:
    if split.validation:
        return f"validated on {', '.join(split.validation)}"
    few = f", as the fold has fewer than {VALIDATED_FROM} others" if split.fold is not None else ""
    return f"no subject to validate on{few}: the last weights are the result"


def plan_line(cache: Cache, config: RunConfig, accelerator: Accelerator) -> str:
    """What is about to be trained, on whom and how."""
    inputs, split, recipe = config.inputs, config.split, config.recipe
    model = "" if config.is_zeus else f"{BASELINES[config.architecture.model]}, "
    text = TEXTS[inputs.text] + (f" ({', '.join(inputs.variants)})" if inputs.variants else "")
    text = text if config.is_zeus else "pictures, no text"
    rates = f"lr {recipe.lr_pretrained:g}" + (f", {recipe.lr_new:g} for the aligner" if config.is_zeus else "")
    views = f" and {recipe.views} views of each slice" if recipe.views else ""
    many = f" in {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return (
        f"{model}{config.architecture.fusion} fusion of {', '.join(inputs.modalities)}, "
        f"classes {', '.join(inputs.classes)}; {text}; "
        f"{counted(len(cache.rows_of(split.train)), 'slice')} of {counted(len(split.train), 'subject')}{views} to train on, "
        f"{counted(len(cache.rows_of(split.test)), 'slice')} of {', '.join(split.test)} held out; {_validated(split)}; "
        f"recipe {recipe.name}: {counted(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, {rates}"
        f"{', slices augmented' if recipe.augment else ''}; "
        f"on {accelerator.device}{many}"
    )
