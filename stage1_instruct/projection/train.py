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
from torch import Tensor

from zeus_union.cache.devices import computes_bf16
from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import counted
from zeus_union.cache.terminal import say as say_to_terminal
from zeus_union.stage1_instruct.models.bridge.connectors import (
    Connector,
    load_connector,
    read_connector,
    save_connector,
)
from zeus_union.stage1_instruct.models.language.lora import add_lora, save_lora
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.models.projected_llm import trained_projection
from zeus_union.stage1_instruct.profiles.profile import NONE
from zeus_union.stage1_instruct.projection.loop import Progress, TrainingRecipe, fit, steps_in_all
from zeus_union.stage1_instruct.projection.objective import Captioning
from zeus_union.stage1_instruct.projection.pairs import Pair, read_pairs, vision_features

if TYPE_CHECKING:
    from zeus_union.cache.reader import Cache
    from zeus_union.stage1_instruct.models.assembly import Models

__all__ = ["Pair", "lora_path", "read_pairs", "train_projection"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TAKES_FP16 = ("cuda",)  # devices whose fp16 is fast and complete


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
        out: where to save; by default in ZEUS_HOME, one file for each vision, language model and kind of connector, where
            build-cache finds it.
        start: a saved projection of the same kind, or an XrayGPT or MiniGPT-4 checkpoint, to begin from.
        options: of TrainingRecipe.
    Returns:
        where it was saved, with losses and a sample caption before and after as metadata.
    Raises:
        UserError: a profile with nothing to train; the loss is not finite; an unfinished training of other options.
    """
    recipe = TrainingRecipe(**options)
    out = out or trained_projection(models.projected_llm.belongs_to())
    # The precision is the recipe's: what `accelerate config` says of mixed precision changes no weight.
    accelerator = Accelerator(cpu=models.device.type == "cpu", mixed_precision="no")
    if not accelerator.is_main_process:
        say = _nothing
    task = _task(pairs, models, cache, recipe, start)
    training, held_out = split_by_patient(pairs, recipe.held_out, recipe.seed)
    if start is None and task.connector.kind != "none":
        task.connector.standardise_by(task.features[training].to(models.device))
    steps = steps_in_all(len(training), recipe)
    say(
        f"{counted(len(training), 'training pair')}, {len(held_out)} held out, {counted(steps, 'step')}; in {precision_name(task)}"
    )
    if recipe.held_out and not held_out:
        say(f"all pairs are of {pairs[0].patient}: none is held out, so the loss on unseen subjects is unknown")

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
        "training": {**asdict(recipe), "pairs": len(training), "computed_in": precision_name(task)},
        "subjects": sorted(_subjects(pairs, training) | _subjects_of_start(start)),
        "held_out_subjects": sorted(_subjects(pairs, held_out)),
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
    if recipe.precision == "fp16" and models.device.type not in TAKES_FP16:
        raise UserError("training in fp16 needs a GPU; use --precision bf16 or fp32")
    whole = models.profile.llm_precision == "fp32"
    if recipe.precision == "fp32" and not whole:
        raise UserError(
            f"precision fp32, but the language model's weights are in {models.profile.llm_precision}; "
            "--set llm_precision=fp32, or --precision auto"
        )
    connector = _connector(models, recipe, start).to(models.device)
    if recipe.lora_rank:
        if models.profile.lora != NONE:
            raise UserError(f"the profile has a LoRA already ({models.profile.lora}); --set lora=none trains a new one")
        for parameter in add_lora(models.projected_llm.llm.model, recipe.lora_rank, recipe.seed):
            parameter.data = parameter.data.float()
    elif connector.kind == "none":
        raise UserError("a BLIP-2 profile has no projection to train; give --lora-rank to train a LoRA")
    features = vision_features(pairs, models, cache)
    questions = [_question(pair, cache) for pair in pairs]
    return captioning(models, connector, features, questions, [pair.caption for pair in pairs], recipe)


def captioning(
    models: Models,
    connector: Connector,
    features: Tensor,
    questions: Sequence[str],
    captions: Sequence[str],
    recipe: TrainingRecipe,
) -> Captioning:
    """The objective in the recipe's precision.

    Args:
        features: float32 (N, T, C) of N images with a question and a caption each.
    """
    precision = recipe.precision
    if precision == "auto" and models.profile.llm_precision == "fp32" and computes_bf16(models.device):
        precision = "bf16"
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    llm = models.projected_llm.llm
    return Captioning(connector, llm, features, questions, captions, recipe.caption_tokens, autocast)


def precision_name(task: Captioning) -> str:
    """The precision a task is computed in: autocast's, or that of the language model's weights."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names[task.autocast or task.llm.embedding.weight.dtype]


def _subjects(pairs: Sequence[Pair], chosen: Sequence[int]) -> set[str]:
    """The subjects of some pairs; pairs of pictures may name none."""
    return {pairs[i].subject for i in chosen} - {""}


def _subjects_of_start(start: Path | None) -> set[str]:
    """Those that the projection was trained on from which this one begins."""
    return set() if start is None else set(read_connector(start)[1].get("subjects", ()))


def _connector(models: Models, recipe: TrainingRecipe, start: Path | None) -> Connector:
    if start is None:
        return models.projected_llm.new_projection(recipe.seed)
    connector, _ = load_connector(start, models.projected_llm.vision.width, models.projected_llm.llm.width)
    if connector.kind != models.profile.connector:
        raise UserError(f"{start} is of the kind {connector.kind}, the profile asks for {models.profile.connector}")
    return connector


def split_by_patient(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: neighbouring slices of one subject are nearly the same picture.

    Pairs of one subject stay together (of one picture, where they name no subject); where there are several, one at least
    is trained on and, for any share above 0, one at least held out.
    """
    patients = sorted({pair.patient for pair in pairs})
    order = torch.randperm(len(patients), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(round(share * len(patients)), 1 if share else 0), len(patients) - 1)
    chosen = {patients[i] for i in order[:count]}
    held_out = [i for i, pair in enumerate(pairs) if pair.patient in chosen]
    return [i for i, pair in enumerate(pairs) if pair.patient not in chosen], held_out


def _question(pair: Pair, cache: Cache | None) -> str:
    if pair.image is not None or cache is None:
        return question(pair.instance, pair.modality)
    return question(pair.instance or cache.card.instance, cache.card.terms[pair.modality])


def _plan(pairs: Sequence[Pair], models: Models, recipe: TrainingRecipe) -> dict[str, Any]:
    """What an unfinished training must share with the one that goes on with it."""
    lines = json.dumps([[*pair.source, pair.patient, pair.caption, pair.instance, pair.modality] for pair in pairs])
    return {
        **asdict(recipe),
        "connector": models.profile.connector,
        "llm": models.projected_llm.llm.digest,
        "vision": json.dumps(models.projected_llm.vision_recipe(), sort_keys=True),
        "pairs": hashlib.sha256(lines.encode()).hexdigest(),
    }


def _nothing(message: str) -> None:
    """What the processes beside the first say."""
