"""What a run is: recipes as data, and the frozen description that a run folder carries as config.json."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UserError
from cache.reader import Cache
from cache.terminal import choose
from stage2_segment.model.aligner import HIDDEN


@dataclass(frozen=True)
class Recipe:
    """How training goes.

    Attributes:
        epochs: passes over the training slices.
        min_steps: more epochs where that many optimiser steps would not be reached (tiny data); not with --epochs.
        batch_size: slices, each with all modalities.
        optimizer: 'adamw' or 'adam' (weight decay as an L2 term, as the paper's).
        lr: highest learning rate of the pretrained decoder.
        aligner_lr: highest learning rate of the rest, which starts from nothing.
        warmup: share of all steps over which the learning rate rises from 0; at least `min_warmup_steps`, unless 0.
        decay_per: 'step' or 'epoch', the unit of lr x (1 - t / T)^0.9.
        clip: largest gradient norm; 0 = no clipping.
        dice_over: see `segmentation_losses`.
        foreground_share: smallest share of slices with foreground in a batch; 0 = as they come.
        patience: stop after that many epochs without a lower training loss; 0 = never.
    """

    name: str
    epochs: int
    min_steps: int
    batch_size: int
    optimizer: str
    lr: float
    aligner_lr: float
    weight_decay: float
    warmup: float
    min_warmup_steps: int
    decay_per: str
    clip: float
    dice_over: str
    foreground_share: float
    patience: int


RECIPES = {
    # From 10 slices to 10,000: warm-up and clipping keep the pretrained decoder from collapsing to empty masks; Dice
    # over the batch and a set share of foreground keep empty slices from being the cheapest answer.
    "stable": Recipe(
        name="stable",
        epochs=30,
        min_steps=300,
        batch_size=4,
        optimizer="adamw",
        lr=2e-4,
        aligner_lr=1e-3,
        weight_decay=1e-2,
        warmup=0.05,
        min_warmup_steps=10,
        decay_per="step",
        clip=1.0,
        dice_over="batch",
        foreground_share=2 / 3,
        patience=0,
    ),
    # Zeus, section 4.1.
    "paper": Recipe(
        name="paper",
        epochs=300,
        min_steps=0,
        batch_size=10,
        optimizer="adam",
        lr=1e-3,
        aligner_lr=1e-3,
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

MODELS = ("zeus",)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's weights.

    Attributes:
        variant: whose instructions are read; None: no text, a learned token instead.
        fold: the held-out fold; None where the subjects were named.
        cache: its path relative to the run folder.
        fingerprints: layer -> fingerprint of its recipe, of the layers that the run reads.
        embedding_recipe: what the embeddings were made from, to recognise another cache of the same encoder.
        versions: of the packages that compute.
    """

    model: str
    fusion: str
    combine: str
    keep_iou_token: bool
    aligner_hidden: int
    aligner_depth: int
    encoder: str
    variant: str | None
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    text_width: int
    fold: int | None
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]
    recipe: Recipe
    seed: int
    cache: str
    fingerprints: dict[str, str]
    embedding_recipe: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunConfig:
        """Raises TypeError or KeyError where fields are missing or unknown."""
        names = {field.name for field in fields(cls) if field.type == "tuple[str, ...]"}
        values = {name: tuple(value) if name in names else value for name, value in values.items()}
        return cls(**{**values, "recipe": Recipe(**values["recipe"])})

    @property
    def embedding_layer(self) -> str:
        return f"embeddings/{self.encoder}"


def plan_run(
    cache: Cache,
    *,
    run: Path,
    recipe: str = "stable",
    model: str = "zeus",
    fusion: str = "late",
    combine: str = "mean",
    keep_iou_token: bool = False,
    aligner_hidden: int = HIDDEN,
    aligner_depth: int = 2,
    encoder: str | None = None,
    variant: str | None = None,
    modalities: Sequence[str] | None = None,
    fold: int | None = None,
    train_subjects: Sequence[str] | None = None,
    test_subjects: Sequence[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    aligner_lr: float | None = None,
    foreground_share: float | None = None,
    text: bool = True,
    seed: int = 0,
) -> RunConfig:
    """Checks the options against the cache and fills in what was not given.

    Args:
        run: the folder the run will be written to.
        lr: highest learning rate of the decoder; the aligner's keeps the recipe's ratio to it unless it is given too.

        text: False trains a learned token in place of the instructions.

    Raises:
        UserError: an encoder, variant, modality, fold or subject that the cache lacks, naming what there is; a cache
            without labels, or a split with nothing to train or test on.
    """
    encoder = _only(encoder, cache.encoders, "encoder", "embeddings")
    if text:
        variant = _only(variant, cache.variants, "variant", "instructions")
    elif variant is not None:
        raise UserError("--no-text reads no instructions; leave out --variant")
    train, test, fold = _split(cache, fold, train_subjects, test_subjects)
    chosen = RECIPES[recipe]
    if lr is not None:
        chosen = replace(chosen, lr=lr, aligner_lr=chosen.aligner_lr * lr / chosen.lr)
    if aligner_lr is not None:
        chosen = replace(chosen, aligner_lr=aligner_lr)
    if foreground_share is not None:
        chosen = replace(chosen, foreground_share=foreground_share)
    chosen = replace(chosen, batch_size=batch_size or chosen.batch_size)
    if epochs is None:
        steps = math.ceil(len(cache.rows_of(train)) / chosen.batch_size)
        epochs = max(chosen.epochs, math.ceil(chosen.min_steps / steps))
    layers = ["slices", f"embeddings/{encoder}", *([f"instructions/{variant}"] if variant else [])]
    return RunConfig(
        model=model,
        fusion=fusion,
        combine=combine,
        keep_iou_token=keep_iou_token,
        aligner_hidden=aligner_hidden,
        aligner_depth=aligner_depth,
        encoder=encoder,
        variant=variant,
        modalities=choose(modalities, cache.modalities, "modality"),
        classes=tuple(cache.classes),
        text_width=cache.text_width(variant) if variant else 0,
        fold=fold,
        train_subjects=train,
        test_subjects=test,
        recipe=replace(chosen, epochs=epochs),
        seed=seed,
        cache=os.path.relpath(cache.path, run),
        fingerprints={layer: cache.fingerprint(layer) for layer in layers},
        embedding_recipe=cache.recipe(f"embeddings/{encoder}"),
        versions={name: version(name) for name in ("zeus-union", "torch", "monai", "numpy")},
    )


def _only(wanted: str | None, available: Sequence[str], what: str, kind: str) -> str:
    """The one `wanted`, or the only one there is."""
    if not available:
        raise UserError(f"the cache has no {kind} layer; zeus-instruct build-cache --layers {kind} adds one")
    if wanted is None and len(available) > 1:
        raise UserError(f"the cache has several layers of {kind}: {', '.join(available)}; choose one with --{what}")
    return choose(None if wanted is None else [wanted], available, what)[0]


def _split(
    cache: Cache, fold: int | None, train: Sequence[str] | None, test: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...], int | None]:
    """Subjects to train on, held-out subjects, and the fold (None where subjects were named)."""
    folds = _folds(cache)
    if not folds:
        raise UserError("none of the cache's subjects has labels; training needs labelled studies")
    for name in (*(train or ()), *(test or ())):
        if name in cache.subjects and name not in folds:
            raise UserError(f"subject {name} has no labels; those with labels: {', '.join(folds)}")
    train = None if train is None else choose(train, tuple(folds), "subject")
    test = None if test is None else choose(test, tuple(folds), "subject")
    if train is None and test is None:
        fold = fold or 0
        if fold not in folds.values():
            there = ", ".join(str(k) for k in sorted(set(folds.values())))
            raise UserError(f"there is no fold {fold}; folds of this cache: {there}")
        test = tuple(name for name, k in folds.items() if k == fold)
    elif fold is not None:
        raise UserError("--fold and named subjects exclude one another; give one of them")
    train = tuple(name for name in folds if name not in (test or ())) if train is None else train
    test = tuple(name for name in folds if name not in train) if test is None else test
    both = sorted(set(train) & set(test))
    if both:
        raise UserError(f"{', '.join(both)} would be trained on and tested on; name each subject once")
    if not train or not test:
        what = "to train on" if not train else "to test on"
        raise UserError(f"no labelled subject is left {what} of: {', '.join(folds)}; name both groups, or build more")
    if not (cache.rows["foreground"][cache.rows_of(train)] > 0).any():
        raise UserError(
            f"no slice of {', '.join(train)} shows any of {', '.join(cache.classes)}; nothing to learn from"
        )
    return train, test, fold


def _folds(cache: Cache) -> dict[str, int]:
    """Fold of every labelled subject."""
    rows = cache.rows
    index, first = np.unique(rows["subject"], return_index=True)
    return {cache.subjects[i]: int(rows["fold"][f]) for i, f in zip(index, first) if rows["labelled"][f]}
