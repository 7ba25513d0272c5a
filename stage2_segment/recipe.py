"""How training goes, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How training goes.

    Attributes:
        epochs: passes over the training slices.
        min_steps: more epochs where that many optimiser steps would not be reached (tiny data); not with --epochs.
        batch_size: slices, each with all modalities.
        optimizer: 'adamw' or 'adam' (weight decay as an L2 term, as the paper's).
        lr_pretrained, lr_new: highest learning rates, by where the weights come from: Zeus's decoder is pretrained, its
            aligner starts from nothing. A baseline has one rate for all its weights (`BASELINE_LR`), and both are that.
        warmup: share of all steps over which the learning rate rises from 0; at least `min_warmup_steps`, unless 0.
        decay_per: 'step' or 'epoch', the unit of lr x (1 - t / T)^0.9.
        clip: largest gradient norm; 0 = no clipping.
        dice_over: see `segmentation_losses`.
        foreground_share: smallest share of slices with foreground in a batch; 0 = as they come.
        patience: stop after that many epochs without a lower training loss; 0 = never.
        accumulate: batches whose gradients make one optimiser step.
        ema: decay, after its warm-up (`ema_decay`), of the running mean of the weights that is validated and kept;
            0 = the weights themselves.
        class_weights: 'equal', or 'inverse': classes weigh as 1 / sqrt(pixels in the training slices), mean 1.
        modality_drop: chance of each modality to be left out of a step (one always stays).
        text_drop: chance of each slice to be answered without its text in a step; with the residual aligner only.
        augment: whether a baseline's training slices are changed at random before each step (`cache.augmentation`).
        views: augmented copies of each slice that a step draws from, beside the slice itself.
        precision: 'fp32', or 'bf16': the forward pass under autocast, weights and losses in fp32.
    """

    name: str
    epochs: int
    min_steps: int
    batch_size: int
    optimizer: str
    lr_pretrained: float
    lr_new: float
    weight_decay: float
    warmup: float
    min_warmup_steps: int
    decay_per: str
    clip: float
    dice_over: str
    foreground_share: float
    patience: int
    accumulate: int = 1
    ema: float = 0.0
    class_weights: str = "equal"
    modality_drop: float = 0.0
    text_drop: float = 0.0
    augment: bool = False
    precision: str = "fp32"
    views: int = 0


BASELINE_LR = 1e-3
# Of the stable recipe, for a network that starts from nothing.
BASELINE_EPOCHS = 30

RECIPES = {
    # From 10 slices to 10,000: warm-up and clipping keep the pretrained decoder from collapsing to empty masks; Dice
    # over the batch and a set share of foreground keep empty slices from being the cheapest answer. Rate and epochs were
    # chosen among 17 changes on four CHAOS subjects (docs/results): 2e-4 loses 0.02 of DSC, 30 epochs gain nothing.
    "stable": Recipe(
        name="stable",
        epochs=15,
        min_steps=300,
        batch_size=4,
        optimizer="adamw",
        lr_pretrained=4e-4,
        lr_new=4e-4,
        weight_decay=1e-2,
        warmup=0.05,
        min_warmup_steps=10,
        decay_per="step",
        clip=1.0,
        dice_over="batch",
        foreground_share=2 / 3,
        patience=0,
        text_drop=0.1,
        augment=True,
    ),
    # Zeus, section 4.1.
    "paper": Recipe(
        name="paper",
        epochs=300,
        min_steps=0,
        batch_size=10,
        optimizer="adam",
        lr_pretrained=1e-3,
        lr_new=1e-3,
        weight_decay=5e-4,
        warmup=0.0,
        min_warmup_steps=0,
        decay_per="epoch",
        clip=0.0,
        dice_over="slice",
        foreground_share=0.0,
        patience=75,
    ),
}


def chosen_recipe(name: str, fields: Mapping[str, Any], *, one_rate: bool, slices: int) -> Recipe:
    """The recipe of that name with the given fields in place of its own.

    Args:
        fields: lr_pretrained is the rate of all weights where there is one; alone, it takes lr_new along.
        one_rate: of a baseline, which trains all its weights from nothing at one rate: `BASELINE_LR` if none is given.
        slices: to train on; without epochs there are as many as make the recipe's least number of steps.
    """
    recipe = RECIPES[name]
    chosen = dict(fields)
    lr = chosen.get("lr_pretrained")
    if one_rate:
        chosen["lr_pretrained"] = chosen["lr_new"] = BASELINE_LR if lr is None else lr
        recipe = replace(recipe, epochs=max(recipe.epochs, BASELINE_EPOCHS))
    elif lr is not None:
        chosen.setdefault("lr_new", lr)
    recipe = replace(recipe, **chosen)
    if "epochs" in chosen:
        return recipe
    steps = math.ceil(slices / (recipe.batch_size * recipe.accumulate))
    return replace(recipe, epochs=max(recipe.epochs, math.ceil(recipe.min_steps / steps)))
