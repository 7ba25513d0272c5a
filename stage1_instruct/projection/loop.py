"""The loop that trains a projection: AdamW, warm-up and cosine, several processes, and going on after a kill."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from zeus_union.cache.atomic import write_atomically
from zeus_union.cache.errors import UserError
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.terminal import progress_bar
from zeus_union.stage1_instruct.models.language.lora import lora_state
from zeus_union.stage1_instruct.projection.objective import Captioning

SAVE_EVERY_S = 60  # a Q-Former's state is 1.2 GB: not after every epoch of a second


@dataclass(frozen=True)
class TrainingRecipe:
    """How the projection is trained.

    Attributes:
        epochs: passes over the training pairs; None: as many as make about `steps` steps.
        lr: the highest learning rate of AdamW after a warm-up, then cosine to a tenth of it. Twice LLaVA's for this
            stage, because steps are few: 96 steps on 96 pairs took the loss on held-out patients from 2.74 to 0.59.
        batch_size: pairs a step, over all processes.
        at_once: pairs of a batch computed together in a process (gradient accumulation); None: all. Changes the
            gradient by rounding only.
        warm_up: share of the steps.
        caption_tokens: captions are cut to this many, with the end marker.
        held_out: share of the subjects (images, of pairs without a subject) that is never trained on.
        precision: of the computation: 'fp32', 'bf16', 'fp16'; 'auto' is the language model's own where that is not fp32,
            else bf16 where the device is fast in it, else fp32. What is trained is fp32 always.
        lora_rank: of a LoRA on the language model, trained too; 0: none.
    """

    epochs: int | None = None
    steps: int = 150
    lr: float = 2e-3
    batch_size: int = 4
    at_once: int | None = None
    seed: int = 0
    warm_up: float = 0.05
    weight_decay: float = 0.0
    caption_tokens: int = 64
    held_out: float = 0.1
    gradient_clip: float = 1.0
    precision: str = "auto"
    lora_rank: int = 0


class Processes(Protocol):
    """What the training asks of accelerate."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...

    @property
    def is_main_process(self) -> bool: ...

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor: ...


@dataclass(frozen=True)
class Alone:
    """This process by itself, whatever a launcher has started beside it."""

    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


@dataclass(frozen=True)
class Progress:
    """Where an unfinished training is kept, and what it is a training of.

    Attributes:
        path: the state file; gone when the training is finished.
        plan: options and digests that must be the same to go on.
        sample: the row whose caption is said four times on the way; None: none.
    """

    path: Path
    plan: Mapping[str, Any]
    sample: int | None

    def save(
        self, task: Captioning, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, epoch: int
    ) -> None:
        """After `epoch` epochs; atomic."""
        buffer = io.BytesIO()
        weights = {"connector": task.connector.state_dict(), "lora": lora_state(task.llm.model)}
        steps = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        torch.save({"plan": dict(self.plan), "epoch": epoch, **steps, **weights}, buffer)
        write_atomically(self.path, buffer.getvalue())

    def restore(self, task: Captioning, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
        """Puts weights, optimiser and loss scale back; the epochs that are done, 0 where there is nothing to go on from.

        Raises:
            UserError: the file is damaged, or belongs to another training.
        """
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            before, epoch = state["plan"], int(state["epoch"])
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{self.path} is not the state of an unfinished training; delete it to start again ({error})"
            ) from error
        changed = differences(before, dict(self.plan))
        if changed:
            raise UserError(
                f"{self.path} is of a training with other options ({describe(changed)}); "
                "repeat them to resume, or delete it to start again"
            )
        task.connector.load_state_dict(state["connector"])
        task.llm.model.load_state_dict(state["lora"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        if scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        return epoch

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def fit(
    task: Captioning,
    training: Sequence[int],
    held_out: Sequence[int],
    recipe: TrainingRecipe,
    accelerator: Processes,
    progress: Progress | None,
    say: Callable[[str], None],
    title: str = "training the projection",
) -> float:
    """Trains the task's connector (and LoRA) in place; returns the last epoch's mean loss.

    Every process computes its share of each batch; gradients are summed, the loss is a mean over the tokens of the whole
    batch, so that the number of processes changes the weights by rounding only.

    Args:
        training, held_out: rows of the task.
        progress: where to keep the state; None keeps none.
        title: what the progress bar says.
    Raises:
        UserError: the loss is not finite.
    """
    parameters = task.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(task.device.type, enabled=task.in_fp16)
    epochs = epochs_in_all(len(training), recipe)
    total = steps_in_all(len(training), recipe)
    begun = progress.restore(task, optimizer, scaler) if progress else 0
    if begun:
        say(f"resuming after epoch {begun} of {epochs}")
    quarter = max(1, round(epochs / 4))
    epoch_loss, saved = math.nan, time.monotonic()
    with progress_bar() as bar:
        advancing = bar.add_task(title, total=total, completed=begun * (total // epochs))
        for epoch in range(begun + 1, epochs + 1):
            batches = _batches(training, recipe, epoch)
            task.connector.train()
            losses = []
            for index, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * rate((epoch - 1) * len(batches) + index, total, recipe.warm_up)
                losses.append(_step(task, batch, parameters, optimizer, scaler, recipe, accelerator))
                bar.advance(advancing)
            task.connector.eval()
            epoch_loss = sum(losses) / len(losses)
            if not math.isfinite(epoch_loss):
                raise UserError(f"the projection's loss became {epoch_loss} at lr {recipe.lr}; try a lower --lr")
            held = task.mean_loss(held_out, recipe.batch_size)
            say(
                f"epoch {epoch}: training loss {epoch_loss:.3f}"
                + (f", held-out {held:.3f}" if held is not None else "")
            )
            if progress:
                if progress.sample is not None and epoch % quarter == 0 and epoch < epochs:
                    say(f"  it now says: {task.say(progress.sample)}")
                if epoch < epochs and time.monotonic() - saved >= SAVE_EVERY_S and accelerator.is_main_process:
                    progress.save(task, optimizer, scaler, epoch)
                    saved = time.monotonic()
    return epoch_loss


def _step(
    task: Captioning,
    batch: Sequence[int],
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: TrainingRecipe,
    accelerator: Processes,
) -> float:
    """One step of the optimiser; the batch's loss."""
    total = task.tokens(batch)
    share = batch[accelerator.process_index :: accelerator.num_processes]
    at_once = recipe.at_once or max(len(share), 1)
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=task.device)
    for at in range(0, len(share), at_once):
        part = task.loss(share[at : at + at_once], total)
        scaler.scale(part).backward()
        loss += part.detach()
    if accelerator.num_processes > 1:
        loss = accelerator.reduce(loss, "sum")
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(gradient, "sum")
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


def _batches(training: Sequence[int], recipe: TrainingRecipe, epoch: int) -> list[list[int]]:
    """The batches of an epoch, decided by seed and epoch alone, so that a resumed training draws the same."""
    drawn = np.random.default_rng([recipe.seed, epoch]).permutation(len(training))
    order = [training[i] for i in drawn]
    return [order[at : at + recipe.batch_size] for at in range(0, len(order), recipe.batch_size)]


def epochs_in_all(count: int, recipe: TrainingRecipe) -> int:
    """Epochs for `count` training pairs."""
    return recipe.epochs or math.ceil(recipe.steps / math.ceil(count / recipe.batch_size))


def steps_in_all(count: int, recipe: TrainingRecipe) -> int:
    """Steps of the optimiser for `count` training pairs."""
    return epochs_in_all(count, recipe) * math.ceil(count / recipe.batch_size)


def rate(step: int, total: int, warm_up: float) -> float:
    """Share of the highest learning rate: linear warm-up, then cosine to 0.1."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
