"""From options and a cache to a run's config: everything is checked here, before anything is written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from zeus_union.cache.errors import UserError
from zeus_union.cache.fold_layers import base_of, base_variants, find_variant
from zeus_union.cache.projections import FACTS
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import sha256_file
from zeus_union.cache.terminal import choose, counted, nearest, some_of
from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.baselines.pretrained import PUBLISHED, NoWeights, fitting_weights
from zeus_union.stage2_segment.choices import MLP, NEEDS_PRETRAINED, ZEUS, default_aligner
from zeus_union.stage2_segment.config import Architecture, Inputs, RunConfig, Split
from zeus_union.stage2_segment.inputs.pictures import windows_of
from zeus_union.stage2_segment.inputs.texts import STATE_PARTS
from zeus_union.stage2_segment.inputs.views import layers_of_views, views_read
from zeus_union.stage2_segment.leaks import check_leaks, oracle_variants, without_leaks
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.options import check_model_has, complete, placed
from zeus_union.stage2_segment.recipe import chosen_recipe
from zeus_union.stage2_segment.split import choose_split
from zeus_union.stage2_segment.training_subjects import check_unseen, sources_of

TOKEN_TEXTS = ("instruction", "shuffled-slices", "shuffled-modalities")  # those that --form tokens goes with


def plan_run(cache: Cache, *, run: Path, **given: Any) -> RunConfig:
    """Checks the options against the cache and fills in what was not given.

    Args:
        run: the folder the run will be written to.
        given: options by name, see `options.OPTIONS`; None counts as not given.

    Raises:
        UserError: an option that does not exist or that the model does not have; an encoder, variant, view, modality, fold
            or subject that the cache lacks, naming what there is; a cache without labels, a split with nothing to train or
            test on, or with test subjects that the projection has seen; instructions from the true labels; options that
            exclude one another; weights that do not fit, or are not there (`NoWeights`).
    """
    options = complete(given)
    check_model_has(options)
    check_weights_are_there(options)
    split = choose_split(
        cache, options["fold"], options["train_subjects"], options["test_subjects"], options["validation_subjects"]
    )
    options["aligner"] = options["aligner"] or default_aligner(options["recipe"])
    inputs = _inputs(cache, options, run, split)
    if inputs.encoder is not None:
        options["views"] = _views(cache, options, inputs)
        inputs = _with_views(cache, inputs, split, options["views"])
    architecture = Architecture(
        **placed(options, "architecture"),
        constant_text=inputs.text == "constant",
        modalities=len(inputs.modalities),
        classes=len(inputs.classes),
        text_width=text_width(cache, inputs.variants, options["form"], options["aligner"]),
    )
    if options["pretrained"]:
        with torch.device("meta"):
            model = build_model(architecture)
        assert isinstance(model, FusedNetwork)
        fitting_weights(model, options["pretrained"])
    # Zeus reads embeddings, which cannot be augmented any more.
    recipe = chosen_recipe(
        options["recipe"],
        placed(options, "recipe")
        | _text_drop(options, architecture)
        | ({"augment": False} if options["model"] == ZEUS else {}),
        one_rate=options["model"] != ZEUS,
        slices=len(cache.rows_of(split.train)),
    )
    versions = {name: version(name) for name in ("zeus-union", "torch", "monai", "numpy")}
    return RunConfig(architecture, inputs, split, recipe, options["seed"], versions)


def check_weights_are_there(options: Mapping[str, Any]) -> None:
    """Raises NoWeights: a model that begins from published weights has none, or they are not where they are said to be."""
    model, path = options["model"], options["pretrained"]
    if model not in PUBLISHED:
        return
    if path is not None and not path.is_file():
        raise NoWeights(f"no weights at {path}; {PUBLISHED[model].expected}")
    if path is None and model in NEEDS_PRETRAINED:
        raise NoWeights(
            f"{model} begins from published weights, which no package brings along: --pretrained FILE, "
            f"{PUBLISHED[model].expected}; --model unet begins from nothing"
        )


def _inputs(cache: Cache, options: Mapping[str, Any], run: Path, split: Split) -> Inputs:
    is_zeus = options["model"] == ZEUS
    text = options["text"] or ("instruction" if is_zeus else "none")
    if is_zeus and options["fusion"] == "early":
        raise UserError(
            "zeus has no early fusion, since its image encoder sees one modality at a time; --fusion hybrid"
        )
    if text == "shuffled-modalities" and len(cache.modalities) < 2:
        raise UserError("text shuffled-modalities needs a cache of two or more modalities; this one has one")
    if options["form"] == "tokens" and (options["instructions"] == "class" or text not in TOKEN_TEXTS):
        raise UserError(f"form tokens goes with --instructions modality and --text {', '.join(TOKEN_TEXTS)}")
    encoder = _only(options["encoder"], cache.encoders, "encoder", "embeddings") if is_zeus else None
    variants = _variants(cache, text, options["instructions"], options["variant"], split)
    embeddings = [f"embeddings/{encoder}"] if encoder else []
    layers = ["slices", *embeddings, *(f"instructions/{name}" for name in variants)]
    modalities = choose(options["modalities"], cache.modalities, "modality")
    views = Counter(cache.grid(subject).view for subject in cache.subjects)
    inputs = Inputs(
        card=replace(cache.card, subjects=()),
        encoder=encoder,
        text=text,
        variants=variants,
        modalities=modalities,
        classes=tuple(cache.classes),
        channels={name: cache.card.channels[name] for name in modalities if name in cache.card.channels},
        views=tuple(view for view, _ in views.most_common()),
        windows={name: value for name, value in windows_of(cache).items() if name in modalities},
        pretrained=sha256_file(options["pretrained"]) if options["pretrained"] else None,
        cache=os.path.relpath(cache.path, run),
        fingerprints={layer: cache.fingerprint(layer) for layer in layers},
        embedding_recipe=cache.recipe(embeddings[0]) if embeddings else {},
        preprocessing=dict(cache.recipe("slices").get("preprocessing") or {}),
        instruction_recipes={name: cache.recipe(f"instructions/{name}") for name in variants},
        content={
            layer: cache.content_digest(layer, (*split.train, *split.test, *split.validation)) for layer in layers
        },
        training_sources=sources_of(cache, split.train),
        seen=(),
        leaks=(),
    )
    return replace(
        inputs,
        seen=check_unseen(cache, inputs.texts_read, (*split.test, *split.validation), options["allow_seen"]),
        leaks=check_leaks(cache, inputs.texts_read, options["allow_leak"]),
    )


def _views(cache: Cache, options: Mapping[str, Any], inputs: Inputs) -> int:
    """How many views of each training slice a run reads: those asked for, or all; the paper trained without any."""
    assert inputs.encoder is not None
    wanted = 0 if options["views"] is None and options["recipe"] == "paper" else options["views"]
    return views_read(cache, inputs.encoder, wanted, reads_text=bool(inputs.texts_read))


def _with_views(cache: Cache, inputs: Inputs, split: Split, views: int) -> Inputs:
    """With what the views are and hold, so that a resumed run notices others."""
    assert inputs.encoder is not None
    layers = tuple(layers_of_views(inputs.encoder, views))
    subjects = (*split.train, *split.test, *split.validation)
    return replace(
        inputs,
        fingerprints=inputs.fingerprints | {layer: cache.fingerprint(layer) for layer in layers},
        content=inputs.content | {layer: cache.content_digest(layer, subjects) for layer in layers},
    )


def text_width(cache: Cache, variants: Sequence[str], form: str, aligner: str) -> int:
    """D of the text embeddings, or of the language model's states as the aligner reads them; 0 without text."""
    if not variants:
        return 0
    if form == "sentence":
        return cache.text_width(variants[0])
    width = cache.states(variants[0], [0]).shape[-1]
    return width if aligner == MLP else width * STATE_PARTS


def _text_drop(options: Mapping[str, Any], architecture: Architecture) -> dict[str, float]:
    """No text can be left out where there is none, or where it is all that makes the token."""
    if architecture.text_is_a_part:
        return {}
    if options["text_drop"]:
        raise UserError("--text-drop leaves out the text's part of a token: it needs a --text, and --aligner residual")
    return {"text_drop": 0.0}


def _variants(
    cache: Cache, text: str, instructions: str, wanted: Sequence[str] | None, split: Split
) -> tuple[str, ...]:
    """The instruction layers a run reads: none without text, one, or one a class."""
    if text == "none":
        if wanted:
            raise UserError("text none reads no instructions; leave out --variant")
        return ()
    if text == "oracle":
        return oracle_variants(cache, instructions, wanted)
    if instructions == "modality":
        if wanted and len(wanted) > 1:
            raise UserError(
                f"--variant names {counted(len(wanted), 'layer')}, one is read; --instructions class reads one for each class"
            )
        return (_variant(cache, wanted[0] if wanted else None, split),)
    if not wanted or len(wanted) != len(cache.classes):
        raise UserError(
            f"--instructions class needs one layer for each of {', '.join(cache.classes)}: --variant A,B,...; "
            "zeus-instruct build-cache --per-class makes them"
        )
    wanted = [_variant(cache, name, split) for name in wanted]
    widths = {cache.text_width(name) for name in wanted}
    if len(widths) > 1:
        raise UserError(f"the layers {', '.join(wanted)} come from text encoders of different widths")
    return tuple(wanted)


def _variant(cache: Cache, wanted: str | None, split: Split) -> str:
    """The layer of the split of the variant that is `wanted`, or of the only one there is."""
    if wanted not in cache.variants:
        available = cache.variants if wanted else without_leaks(cache)
        wanted = _only(wanted, base_variants(available), "variant", "instructions")
    variant = find_variant(cache.variants, wanted, split.fold, split.train)
    if variant is None:
        others = [name for name in cache.variants if base_of(name) == wanted]
        add = "--folds all" if split.fold is not None else f"--train-subjects {','.join(split.train)}"
        of = f"fold {split.fold}" if split.fold is not None else f"training on {some_of(list(split.train))}"
        raise UserError(
            f"the texts of instructions/{wanted} for {of} are not in {cache.path}, which has {some_of(others)}: the "
            f"projection behind them is trained for each split; the cache's build-cache command with {add} adds them"
            f"{_minutes(cache, others)}"
        )
    return variant


def _minutes(cache: Cache, variants: Sequence[str]) -> str:
    """How long the projection of another split took to train."""
    constants = cache.constants(f"instructions/{variants[0]}")
    seconds = json.loads(constants[FACTS].tobytes()).get("seconds") if FACTS in constants else None
    return "" if seconds is None else f" (about {max(1, round(seconds / 60))} min each, and the texts)"


def _only(wanted: str | None, available: Sequence[str], what: str, kind: str) -> str:
    """The one `wanted`, or the only one there is."""
    if not available:
        raise UserError(f"the cache has no {kind} layer; zeus-instruct build-cache --layers {kind} adds one")
    if wanted is not None and wanted not in available:
        how = f"--variant {wanted} --set ..." if what == "variant" else "--models ..."
        close = nearest(wanted, available)
        raise UserError(
            f"the cache has no layer {kind}/{wanted}; it has {', '.join(available)}{close or ';'} "
            f"zeus-instruct build-cache {how} with the cache's --dataset and --out adds it"
        )
    if wanted is None and len(available) > 1:
        raise UserError(f"the cache has several layers of {kind}: {', '.join(available)}; choose one with --{what}")
    return choose(None if wanted is None else [wanted], available, what)[0]
