"""Trains the projection f_vt, and a LoRA where one is asked for; language model and vision encoder stay frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import say as say_to_terminal
from zeus_union.stage1_instruct.models.bridge.connectors import Connector, load_connector, save_connector
from zeus_union.stage1_instruct.models.language.lora import add_lora, save_lora
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.projected_llm import trained_projection
from zeus_union.stage1_instruct.profiles.profile import NONE
from zeus_union.stage1_instruct.projection.loop import Progress, TrainingRecipe, fit, steps_in_all
from zeus_union.stage1_instruct.projection.objective import Captioning, computes_bf16
from zeus_union.stage1_instruct.projection.pairs import Pair, read_pairs, vision_features

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.models.assembly import Models

__all__ = ["Pair", "lora_path", "read_pairs", "train_projection"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def lora_path(out: Path) -> Path:
    """Where the LoRA lies that was trained with a projection."""
    return out.with_name(f"{out.stem}.lora.safetensors")


def train_projection(
    pairs: Sequence[Pair],
    models: Models,
    cache: Cache | None = None,
    out: Path | None = None,
    start: Path | None = None,
    say: Callable[[str], None] = say_to_terminal,
    **options: Any,
) -> Path:
    """Trains a projection for a profile's models and saves it; two runs with one seed on a CPU give equal weights.

    A training that was stopped goes on with the same call, and ends with the weights of an uninterrupted one. Under
    accelerate launch the batches are split over the processes.

    Args:
        pairs: what to learn from; rows of a cache need `cache`.
        out: where to save; with the models in ZEUS_HOME, where build-cache finds it, by default.
        start: a saved projection of the same kind, or an XrayGPT or MiniGPT-4 checkpoint, to begin from.
        options: of TrainingRecipe.
    Returns:
        where it was saved, with losses and a sample caption before and after as metadata.
    Raises:
        UserError: a profile with nothing to train; the loss is not finite; an unfinished training of other options.
    """
    recipe = TrainingRecipe(**options)
    out = out or trained_projection(models.profile)
    accelerator = Accelerator(cpu=models.device.type == "cpu")
    if not accelerator.is_main_process:
        say = _nothing
    task = _task(pairs, models, cache, recipe, start)
    training, held_out = split_by_image(pairs, recipe.held_out, recipe.seed)
    if start is None and task.connector.kind != "none":
        task.connector.standardise_by(task.features[training].to(models.device))
    steps = steps_in_all(len(training), recipe)
    say(f"{len(training)} pairs to learn from, {len(held_out)} held out, {steps} steps")

    sample = (held_out or training)[0]
    before = task.say(sample)
    held_out_before = task.mean_loss(held_out, recipe.batch_size)
    progress = Progress(out.with_name(f"{out.name}.state"), _plan(pairs, models, recipe), sample)
    training_loss = fit(task, training, held_out, recipe, accelerator, progress, say)
    held_out_after = task.mean_loss(held_out, recipe.batch_size)
    after = task.say(sample)
    if held_out_before is not None and held_out_after is not None:
        say(f"held-out loss {held_out_before:.3f} before, {held_out_after:.3f} after")
    say(f"one {'held-out' if held_out else 'training'} image, before: {before}")
    say(f"  after: {after}")
    say(f"  its caption: {task.captions[sample]}")
    facts = {
        "vision": models.projected_llm.vision_recipe(),
        "llm_sha256": models.projected_llm.llm.digest,
        "template": models.projected_llm.llm.template.name,
        "training": {**asdict(recipe), "pairs": len(training), "bf16": task.bf16},
        "loss": {"training": training_loss, "held_out_before": held_out_before, "held_out": held_out_after},
        "sample": {"before": before, "after": after, "caption": task.captions[sample]},
    }
    if accelerator.is_main_process:
        if recipe.lora_rank:
            save_lora(models.projected_llm.llm.model, lora_path(out), recipe.lora_rank, facts)
            say(f"LoRA saved: {lora_path(out)}; use both: --set projection={out} --set lora={lora_path(out)}")
        if task.connector.kind != "none":
            save_connector(task.connector, out, facts)
            say(f"projection saved: {out}")
        progress.forget()
    accelerator.wait_for_everyone()
    return lora_path(out) if task.connector.kind == "none" else out


def _task(
    pairs: Sequence[Pair], models: Models, cache: Cache | None, recipe: TrainingRecipe, start: Path | None
) -> Captioning:
    if recipe.precision not in PRECISIONS:
        raise UserError(f"precision {recipe.precision!r} is unknown; there are: {', '.join(PRECISIONS)}")
    if recipe.precision == "fp16" and models.device.type != "cuda":
        raise UserError("training in fp16 needs a GPU; take precision bf16 or fp32 here")
    connector = _connector(models, recipe, start).to(models.device)
    if recipe.lora_rank:
        if models.profile.lora != NONE:
            raise UserError(f"the profile has a LoRA already ({models.profile.lora}); --set lora=none trains a new one")
        add_lora(models.projected_llm.llm.model, recipe.lora_rank, recipe.seed)
    elif connector.kind == "none":
        raise UserError("a BLIP-2 profile has no projection to train; give --lora-rank to train a LoRA")
    features = vision_features(pairs, models, cache)
    questions = [_question(pair, cache) for pair in pairs]
    whole = models.profile.llm_precision == "fp32"
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and whole and computes_bf16(models.device))
    captions = [pair.caption for pair in pairs]
    return Captioning(connector, models.projected_llm.llm, features, questions, captions, recipe.caption_tokens, bf16)


def _connector(models: Models, recipe: TrainingRecipe, start: Path | None) -> Connector:
    if start is None:
        return models.projected_llm.new_projection(recipe.seed)
    connector, _ = load_connector(start, models.projected_llm.vision.width, models.projected_llm.llm.width)
    if connector.kind != models.profile.connector:
        raise UserError(f"{start} is of the kind {connector.kind}, the profile wants {models.profile.connector}")
    return connector


def split_by_image(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; pairs of one image stay together, one image at least is trained on."""
    sources = sorted({pair.source for pair in pairs})
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(round(share * len(sources)), len(sources) - 1)
    chosen = {sources[i] for i in order[:count]}
    held_out = [i for i, pair in enumerate(pairs) if pair.source in chosen]
    return [i for i, pair in enumerate(pairs) if pair.source not in chosen], held_out


def _question(pair: Pair, cache: Cache | None) -> str:
    if pair.image is not None or cache is None:
        return question(pair.instance, pair.modality)
    return question(pair.instance or cache.card.instance, cache.card.terms[pair.modality])


def _plan(pairs: Sequence[Pair], models: Models, recipe: TrainingRecipe) -> dict[str, Any]:
    """What an unfinished training must share with the one that goes on with it."""
    lines = json.dumps([[*pair.source, pair.caption, pair.instance, pair.modality] for pair in pairs])
    return {
        **asdict(recipe),
        "connector": models.profile.connector,
        "llm": models.projected_llm.llm.digest,
        "vision": json.dumps(models.projected_llm.vision_recipe(), sort_keys=True),
        "pairs": hashlib.sha256(lines.encode()).hexdigest(),
    }


def _nothing(message: str) -> None:
    """What the processes beside the first say."""
