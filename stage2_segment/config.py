"""What a run is: the frozen description that a run folder carries as config.json, planned from options and a cache."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import choose
from zeus_union.stage2_segment.choices import (
    COMBINES,
    FORMS,
    FUSIONS,
    INSTRUCTIONS,
    MERGES,
    MODELS,
    OF_BASELINES,
    OF_ZEUS,
    PRESETS,
    TEXTS,
    ZEUS,
)
from zeus_union.stage2_segment.model.aligner import HIDDEN
from zeus_union.stage2_segment.recipe import RECIPES, Recipe, chosen_recipe


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's weights.

    Attributes:
        model: 'zeus', or a baseline, which sees the pictures and no text.
        merge, preset: of a baseline, keys of `choices.MERGES` and `choices.PRESETS`.
        pretrained: sha256 of the weights that a baseline's encoders began from; None: none.
        encoder: whose embeddings are read; None: the pictures.
        text: what the aligner reads, a key of `choices.TEXTS`.
        instructions: 'modality' (one for all classes) or 'class' (one for each, a binary mask from each).
        form: 'sentence' or 'tokens', a key of `choices.FORMS`.
        variants: whose instructions are read: one, or one a class; none without text.
        fold: the held-out fold; None where the subjects were named.
        cache: its path relative to the run folder.
        fingerprints: layer -> fingerprint of its recipe, of the layers that the run reads.
        embedding_recipe: what the embeddings were made from, to recognise another cache of the same encoder.
        versions: of the packages that compute.
    """

    model: str
    fusion: str
    combine: str
    merge: str
    preset: str
    pretrained: str | None
    keep_iou_token: bool
    aligner_hidden: int
    aligner_depth: int
    encoder: str | None
    text: str
    instructions: str
    form: str
    variants: tuple[str, ...]
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
    def is_zeus(self) -> bool:
        return self.model == ZEUS

    @property
    def embedding_layer(self) -> str:
        """Of a run that reads embeddings."""
        return f"embeddings/{self.encoder}"

    @property
    def texts_read(self) -> tuple[str, ...]:
        """The instruction layers that a prediction reads."""
        return () if self.text in ("none", "constant", "random") else self.variants


def plan_run(
    cache: Cache,
    *,
    run: Path,
    recipe: str = "stable",
    model: str = "zeus",
    fusion: str = "late",
    combine: str = "mean",
    merge: str = "concat",
    preset: str = "published",
    pretrained: Path | None = None,
    keep_iou_token: bool = False,
    aligner_hidden: int = HIDDEN,
    aligner_depth: int = 2,
    encoder: str | None = None,
    text: str | None = None,
    instructions: str = "modality",
    form: str = "sentence",
    variant: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    fold: int | None = None,
    train_subjects: Sequence[str] | None = None,
    test_subjects: Sequence[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    aligner_lr: float | None = None,
    seed: int = 0,
    **recipe_options: Any,
) -> RunConfig:
    """Checks the options against the cache and fills in what was not given.

    Args:
        run: the folder the run will be written to.
        pretrained: weights for a baseline's encoders to begin from.
        text: None: 'instruction', or 'none' for a baseline.
        variant: names of instruction layers, one, or with instructions='class' one a class in the classes' order.
        lr: highest learning rate of the decoder; the aligner's keeps the recipe's ratio to it unless it is given too.
        recipe_options: further fields of `Recipe`; None keeps the recipe's own.

    Raises:
        UserError: an encoder, variant, modality, fold or subject that the cache lacks, naming what there is; a cache
            without labels, a split with nothing to train or test on, options that exclude one another.
    """
    text = text or ("instruction" if model == ZEUS else "none")
    chosen_of: dict[str, tuple[str, Iterable[str]]] = {
        "text": (text, TEXTS),
        "instructions": (instructions, INSTRUCTIONS),
        "form": (form, FORMS),
        "recipe": (recipe, RECIPES),
        "model": (model, MODELS),
        "fusion": (fusion, FUSIONS),
        "combine": (combine, COMBINES),
        "merge": (merge, MERGES),
        "preset": (preset, PRESETS),
    }
    for what, (value, known) in chosen_of.items():
        choose([value], tuple(known), what)
    changed_of = {
        "encoder": encoder is not None,
        "variant": bool(variant),
        "text": text != "none",
        "instructions": instructions != "modality",
        "form": form != "sentence",
        "combine": combine != "mean",
        "keep_iou_token": keep_iou_token,
        "aligner_depth": aligner_depth != 2,
        "merge": merge != "concat",
        "preset": preset != "published",
        "pretrained": pretrained is not None,
    }
    wrong = [name for name in (OF_BASELINES if model == ZEUS else OF_ZEUS) if changed_of[name]]
    if wrong:
        names = ", ".join(f"--{name.removeprefix('keep_').replace('_', '-')}" for name in wrong)
        why = "zeus starts from the cache's decoder" if model == ZEUS else f"{model} sees the pictures alone"
        raise UserError(f"{why}; leave out {names}")
    if model == ZEUS:
        if fusion == "early":
            raise UserError(
                "zeus has no early fusion, since its image encoder sees one modality at a time; --fusion hybrid"
            )
        encoder = _only(encoder, cache.encoders, "encoder", "embeddings")
    variants = _variants(cache, text, instructions, variant)
    if text == "shuffled-modalities" and len(cache.modalities) < 2:
        raise UserError("text shuffled-modalities needs a cache of two or more modalities; this one has one")
    possible = ("instruction", "shuffled-slices", "shuffled-modalities")
    if form == "tokens" and (instructions == "class" or text not in possible):
        raise UserError(f"form tokens goes with --instructions modality and --text {', '.join(possible)}")
    train, test, fold = _split(cache, fold, train_subjects, test_subjects)
    chosen = chosen_recipe(recipe, lr, aligner_lr, {**recipe_options, "batch_size": batch_size})
    if epochs is None:
        steps = math.ceil(len(cache.rows_of(train)) / (chosen.batch_size * chosen.accumulate))
        epochs = max(chosen.epochs, math.ceil(chosen.min_steps / steps))
    embeddings = [f"embeddings/{encoder}"] if encoder else []
    layers = ["slices", *embeddings, *(f"instructions/{name}" for name in variants)]
    return RunConfig(
        model=model,
        fusion=fusion,
        combine=combine,
        merge=merge,
        preset=preset,
        pretrained=sha256_file(pretrained) if pretrained else None,
        keep_iou_token=keep_iou_token,
        aligner_hidden=aligner_hidden,
        aligner_depth=aligner_depth,
        encoder=encoder,
        text=text,
        instructions=instructions,
        form=form,
        variants=variants,
        modalities=choose(modalities, cache.modalities, "modality"),
        classes=tuple(cache.classes),
        text_width=text_width(cache, variants, form),
        fold=fold,
        train_subjects=train,
        test_subjects=test,
        recipe=replace(chosen, epochs=epochs),
        seed=seed,
        cache=os.path.relpath(cache.path, run),
        fingerprints={layer: cache.fingerprint(layer) for layer in layers},
        embedding_recipe=cache.recipe(embeddings[0]) if embeddings else {},
        versions={name: version(name) for name in ("zeus-union", "torch", "monai", "numpy")},
    )


def text_width(cache: Cache, variants: Sequence[str], form: str) -> int:
    """D of the text embeddings, or of the language model's states; 0 without text."""
    if not variants:
        return 0
    return cache.states(variants[0], [0]).shape[-1] if form == "tokens" else cache.text_width(variants[0])


def _variants(cache: Cache, text: str, instructions: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The instruction layers a run reads: none without text, one, or one a class."""
    if text == "none":
        if wanted:
            raise UserError("text none reads no instructions; leave out --variant")
        return ()
    if instructions == "modality":
        if wanted and len(wanted) > 1:
            raise UserError(
                f"--variant names {len(wanted)} layers, one is read; --instructions class reads one for each class"
            )
        return (_only(wanted[0] if wanted else None, cache.variants, "variant", "instructions"),)
    if not wanted or len(wanted) != len(cache.classes):
        raise UserError(
            f"--instructions class needs one layer for each of {', '.join(cache.classes)}: --variant A,B,...; "
            "zeus-instruct build-cache --per-class makes them"
        )
    for name in wanted:
        _only(name, cache.variants, "variant", "instructions")
    widths = {cache.text_width(name) for name in wanted}
    if len(widths) > 1:
        raise UserError(f"the layers {', '.join(wanted)} come from text encoders of different widths")
    return tuple(wanted)


def _only(wanted: str | None, available: Sequence[str], what: str, kind: str) -> str:
    """The one `wanted`, or the only one there is."""
    if not available:
        raise UserError(f"the cache has no {kind} layer; zeus-instruct build-cache --layers {kind} adds one")
    if wanted is not None and wanted not in available:
        how = f"--variant {wanted} --set ..." if what == "variant" else "--models ..."
        raise UserError(
            f"the cache has no layer {kind}/{wanted}; it has {', '.join(available)}; "
            f"zeus-instruct build-cache {how} with the cache's --dataset and --out adds it"
        )
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
