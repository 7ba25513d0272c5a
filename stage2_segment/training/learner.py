"""One run in training: its model, optimiser, place in the schedule, history and folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from zeus_union.cache.devices import random_numbers_kept
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import IGNORE
from zeus_union.cache.reader import Cache
from zeus_union.cache.recipe import describe, differences
from zeus_union.cache.terminal import counted, say
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.baselines.pretrained import load_pretrained
from zeus_union.stage2_segment.carried import carry
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.texts import text_statistics, typical_text
from zeus_union.stage2_segment.model import Zeus, build_model
from zeus_union.stage2_segment.training.losses import Losses, known_pixels, one_hot, segmentation_losses
from zeus_union.stage2_segment.training.processes import add_up, share_buffers
from zeus_union.stage2_segment.training.schedule import build_optimizer, load_optimizer, lr_factor, running_mean

LOOKED_AT = 64  # training slices whose prompt tokens are measured after an epoch


class Learner:
    """Takes batches in the order of the run's schedule, wherever that was left, and keeps the run's folder.

    Nothing in a step is random but what follows from seed, epoch, batch and process, dropout included. So a run that is
    stopped at any moment and resumed ends with the same weights, on a CPU bit for bit, whoever else is trained beside it.

    Args:
        run: folder to write: config.json, metrics.parquet, tensorboard/, weights/, state.pt.
        resume: train a complete run for more epochs than it was planned with.
        overwrite: start again where the folder holds a run.
        pretrained: the weights whose sha256 the plan names.

    Attributes:
        epoch, index: the next batch: epoch from 1, batch of it from 0.
        stopped: why the run ended before its time; None while it has not.

    Raises:
        UserError: the folder holds another run, or something else.
    """

    inputs: RunInputs

    def __init__(
        self,
        cache: Cache,
        config: RunConfig,
        run: Path,
        accelerator: Accelerator,
        resume: bool = False,
        pretrained: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.config, self.run, self._cache = config, run, cache
        self._accelerator = accelerator
        state = _open_folder(run, config, resume, overwrite, accelerator)
        self._described = state is not None
        if state and state["epochs"] != config.recipe.epochs:
            self.config = replace(config, extended=(*state["extended"], state["place"][0] - 1))
            self._described = False
        elif state:
            self.config = replace(config, extended=tuple(state["extended"]))
        config = self.config
        recipe = config.recipe
        torch.manual_seed(config.seed)
        model = build_model(config.architecture)
        if isinstance(model, Zeus):
            model.load_pretrained(cache.constants(config.inputs.embedding_layer))
            if not state:  # they are kept with the weights
                self._read_statistics(cache, model)
        elif pretrained is not None:
            taken, total = load_pretrained(model, pretrained)
            if accelerator.is_main_process:
                say(f"{pretrained}: {taken} of {total} tensors of the encoders taken")
        self._class_weights: Tensor | None = None
        if recipe.class_weights == "inverse":
            self._class_weights = inverse_weights(cache, config).to(accelerator.device)
        if state:
            model.load_state_dict(state["model"])
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":  # there is none for the CPU
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # The model is moved before the optimiser sees its parameters.
        self.model: nn.Module = accelerator.prepare_model(model)
        self.bare = accelerator.unwrap_model(self.model)
        self.optimizer = build_optimizer(self.bare, recipe)
        self._average = None
        if recipe.ema:
            self._average = running_mean(self.bare, recipe.ema)
        self.epoch, self.index, self._sums = 1, 0, np.zeros(3)
        self._best_dsc, self._best_loss, self._best_loss_epoch = -1.0, math.inf, 0
        self._first_tokens: Tensor | None = None
        self.history: list[dict[str, Any]] = []
        self.stopped: str | None = None
        if state:
            load_optimizer(self.optimizer, state["optimizer"])
            if self._average is not None:
                self._average.load_state_dict(state["average"])
            self._first_tokens = state.get("tokens")
            self.epoch, self.index = state["place"]
            self._sums = np.array(state["sums"])
            self._best_dsc, self._best_loss, self._best_loss_epoch = state["best"]
            self.history = _read_history(run, self.epoch - 1)
        self._board: SummaryWriter | None = None
        self._saved, self._saving = time.monotonic(), 0.0

    def _read_statistics(self, cache: Cache, model: Zeus) -> None:
        """What a model keeps of the training slices' texts."""
        rows = cache.rows_of(self.config.split.train)
        if self.config.architecture.constant_text:
            model.set_constant_text(torch.from_numpy(typical_text(cache, self.config, rows)))
        if self.config.architecture.text_is_a_part:
            mean, scale = text_statistics(cache, self.config, rows)
            model.set_text_statistics(torch.from_numpy(mean), scale)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train: all epochs, no lower loss for too long, or stopped."""
        return bool(self.stopped) or _is_complete(self.config, (self.epoch, self.index), self._best_loss_epoch)

    @property
    def predictor(self) -> nn.Module:
        """The model that is validated and kept: the running mean where there is one."""
        return self.bare if self._average is None or not self._average.n_averaged else self._average.module

    def keep(self) -> list[int] | None:
        """Which of the run's modalities the next step sees; None: all."""
        chance, count = self.config.recipe.modality_drop, len(self.inputs.present)
        if not chance or count == 1:
            return None
        random = np.random.default_rng([self.config.seed, self.epoch, self.index, count])
        kept = np.flatnonzero(random.random(count) >= chance)
        return kept.tolist() if len(kept) else [int(random.integers(count))]

    def use_text(self, slices: int) -> NDArray[np.bool_] | None:
        """Whose text this process's slices of the next batch, of `slices`, are answered with; None: all."""
        chance = self.config.recipe.text_drop
        if not chance:
            return None
        random = np.random.default_rng([self.config.seed, self.epoch, self.index, slices, 1])
        used = random.random(slices) >= chance  # of the whole batch: the same in however many processes
        return used[self._accelerator.process_index :: self._accelerator.num_processes]

    def begin(self, inputs: RunInputs) -> None:
        """Takes what the run reads, and notes the tokens that it starts from."""
        self.inputs = inputs
        if self.config.is_zeus and self._first_tokens is None:
            self._first_tokens = self._tokens()[0]

    @torch.no_grad()
    def _tokens(self) -> tuple[Tensor, Tensor]:
        """Prompt tokens of some training slices, (n, m, P, 256), and those without their text."""
        count = len(self.inputs.text)
        places = torch.linspace(0, count - 1, min(count, LOOKED_AT), device=self.inputs.text.device).long()
        text = self.inputs.text[places].float()
        with_text, _ = self.bare.prompts(text, self.inputs.present)
        if not self.config.architecture.text_is_a_part:
            return with_text, with_text
        return with_text, self.bare.prompts(text, self.inputs.present, text.new_zeros(len(text)))[0]

    def _token_figures(self) -> dict[str, float]:
        """Mean norms: of the prompt token, of its way since the start, and of what the text adds to it."""
        if self._first_tokens is None:
            return {}
        tokens, without = self._tokens()
        parts = {
            "token_norm": tokens,
            "token_drift": tokens - self._first_tokens.to(tokens.device),
            "text_part": tokens - without,
        }
        return {name: float(part.norm(dim=-1).mean()) for name, part in parts.items()}

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Around a step's forward pass: what is drawn follows from seed, epoch, batch and process, and leaves no trace."""
        key = [self.config.seed, self.epoch, self.index, self._accelerator.process_index]
        with random_numbers_kept(self._accelerator.device):
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
            yield

    def backward_alone(self, batches: int) -> AbstractContextManager[None]:
        """Around forward and backward of a batch without an optimiser step: the processes need not add up yet."""
        # Not with dropped modalities: what the last batch leaves out of the model, DDP would never add up.
        if self._steps_at(batches) or self.config.recipe.modality_drop:
            return nullcontext()
        return self._accelerator.no_sync(self.model)

    def losses(self, logits: Tensor, masks: Tensor, slices: int) -> Losses:
        """Of this process's part of a batch of `slices`; the numbers are the whole batch's."""
        return segmentation_losses(
            logits,
            one_hot(masks, logits.shape[1]),
            self.config.recipe.dice_over,
            known=known_pixels(masks),
            class_weights=self._class_weights,
            slices=slices,
            add_up=add_up,
        )

    def share(self, batches: int) -> int:
        """How many batches the optimiser step that the next one belongs to is made of."""
        accumulate = self.config.recipe.accumulate
        return min(accumulate, batches - self.index // accumulate * accumulate)

    def _steps_at(self, batches: int) -> bool:
        """Whether the optimiser steps after the next batch, of so many in the epoch."""
        return (self.index + 1) % self.config.recipe.accumulate == 0 or self.index + 1 == batches

    def gradient_norm(self, batches: int) -> Tensor:
        """Norm of the gradient before it is clipped, which this does; a scalar on the device, 0 where no step is due."""
        if not self._steps_at(batches):
            return torch.zeros((), device=self._accelerator.device)
        return nn.utils.clip_grad_norm_(self.bare.parameters(), self.config.recipe.clip or math.inf)

    def take(self, values: NDArray[np.float64], norm: float, batches: int) -> None:
        """After the gradients of a batch are there: notes its losses, and steps where the optimiser's batch is whole.

        A loss or gradient that is not finite changes no weight: the run is `stopped`, its last good weights kept.

        Args:
            values: (3,), `Losses` as numbers.
            norm: of `gradient_norm`.
        """
        recipe = self.config.recipe
        if not (np.isfinite(values).all() and math.isfinite(norm)):
            self._stop(
                f"the loss became {values[0]:.3g}, its gradient {norm:.3g} in epoch {self.epoch}, step "
                f"{self.index + 1}; the last good weights are kept; train with a lower --lr into another --out"
            )
            return
        whole = self._steps_at(batches)
        self._sums += values
        if whole:
            steps = math.ceil(batches / recipe.accumulate)
            factor = lr_factor(recipe, (self.epoch - 1) * steps + self.index // recipe.accumulate, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["highest_lr"] * factor
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self._average is not None:
                self._average.update_parameters(self.bare)
        self.index += 1
        self._describe()
        if whole and self.index < batches and self._due():  # not where a step's gradient is half gathered
            self.save()

    def save_between_steps(self) -> None:
        """Saves, but not what has taken no step yet, nor where a step's gradient is half gathered."""
        if self._described and all(parameter.grad is None for parameter in self.bare.parameters()):
            self.save()

    def end_epoch(self, batches: int, more: dict[str, float]) -> dict[str, Any]:
        """Notes an epoch, `more` being its validation and timing; saves where it is due. Returns its record."""
        loss, dice, cross_entropy = (self._sums / batches).tolist()
        record = {"epoch": self.epoch, "loss": loss, "dice_loss": dice, "cross_entropy": cross_entropy}
        record |= {"lr": self.optimizer.param_groups[0]["lr"], **self._token_figures(), **more}
        self.history.append(record)
        if self._accelerator.is_main_process:
            if self._board is None:
                self._board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.epoch)
            for name, value in record.items():
                self._board.add_scalar(name, value, self.epoch)
        if loss < self._best_loss:
            self._best_loss, self._best_loss_epoch = loss, self.epoch
        if record.get("validation_dsc", -1.0) > self._best_dsc:
            self._best_dsc = record["validation_dsc"]
            if self._accelerator.is_main_process:
                checkpoint.save_weights(self.run, "best", self.predictor.state_dict(), self.epoch)
        self.epoch, self.index, self._sums = self.epoch + 1, 0, np.zeros(3)
        if self.finished or self._due():
            self.save()
        if self.finished:
            self.close()
        return record

    def _due(self) -> bool:
        pause = max(checkpoint.SAVE_EVERY_S, self._saving / checkpoint.SAVING_SHARE)
        return time.monotonic() - self._saved >= pause

    def save(self) -> None:
        """Metrics, weights and the state to go on from, in this order, each whole or not at all."""
        self._describe()
        if not self._accelerator.is_main_process:
            return
        start = time.monotonic()
        state = {
            "place": (self.epoch, self.index),
            "epochs": self.config.recipe.epochs,
            "extended": list(self.config.extended),
            "sums": self._sums.tolist(),
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": (self._best_dsc, self._best_loss, self._best_loss_epoch),
        }
        if self._average is not None:
            state["average"] = self._average.state_dict()
        if self._first_tokens is not None:
            state["tokens"] = self._first_tokens.cpu()
        if self.history:
            checkpoint.write_table(self.run / checkpoint.METRICS, self.history)
        checkpoint.save_weights(self.run, "last", self.predictor.state_dict(), self.epoch - 1)
        checkpoint.save_state(self.run, state)
        self._saved = time.monotonic()
        self._saving = self._saved - start

    def share_buffers(self) -> None:
        """Before an epoch is judged: what a batch norm has seen is the first process's in all of them."""
        share_buffers(self.bare, *([] if self._average is None else [self._average.module]))

    def _describe(self) -> None:
        """Writes config.json once a step has been taken: a start that fails (no memory, no disk) leaves no run folder."""
        if not self._described and self._accelerator.is_main_process:
            checkpoint.write_json(self.run / checkpoint.CONFIG, self.config.to_json())
            carry(self._cache, self.config, self.run)
        self._described = True

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.optimizer.zero_grad(set_to_none=True)
        if all(torch.isfinite(parameter).all() for parameter in self.bare.parameters()):
            self.save()
        self.close()


def inverse_weights(cache: Cache, config: RunConfig) -> Tensor:
    """Per class 1 / sqrt(its pixels in the training slices), mean 1; a class that none shows weighs as the rarest."""
    counts = np.zeros(len(config.inputs.classes) + 1, np.int64)
    for subject in config.split.train:
        counts += np.bincount(cache.masks(cache.rows_of([subject])).ravel(), minlength=IGNORE)[: len(counts)]
    pixels = counts[1:].astype(np.float64)
    pixels[pixels == 0] = pixels[pixels > 0].min()
    weights = pixels**-0.5
    return torch.from_numpy(weights / weights.mean()).float()


def take_batch(steps: Sequence[tuple[Learner, Losses]], batches: int) -> None:
    """`Learner.take` of each, after one wait for the device: losses and norms of all learners come over together."""
    if not steps:
        return
    figures = torch.stack(
        [
            torch.stack([*(loss.detach().float() for loss in losses), learner.gradient_norm(batches).float()])
            for learner, losses in steps
        ]
    )
    for (learner, _), row in zip(steps, figures.cpu().double().numpy()):
        learner.take(row[:-1], float(row[-1]), batches)


def _is_complete(config: RunConfig, position: Sequence[int], best_loss_epoch: int) -> bool:
    """Whether a run that is at `position` (epoch from 1, batch) has had its epochs, or none with a lower loss for too long."""
    (epoch, index), patience = position, config.recipe.patience
    waited = patience and epoch - 1 - best_loss_epoch >= patience
    return epoch > config.recipe.epochs or bool(waited and index == 0)


def _open_folder(
    run: Path, config: RunConfig, resume: bool, overwrite: bool, accelerator: Accelerator
) -> dict[str, Any] | None:
    """Checks that the run folder is empty or holds this run; the state to go on from, if any.

    Writes nothing; removes the run that is there where it is to be overwritten.
    """
    begun = (run / checkpoint.CONFIG).exists()
    accelerator.wait_for_everyone()
    if begun and overwrite:
        if accelerator.is_main_process:
            shutil.rmtree(run)
        accelerator.wait_for_everyone()
        return None
    if not begun:
        if run.exists() and any(run.iterdir()):
            raise UserError(f"{run} exists and is not a run folder; choose another --out")
        return None
    state = checkpoint.load_state(run) if (run / checkpoint.STATE).exists() else None
    before = checkpoint.load_config(run)
    if before.is_shared:
        raise UserError(f"{run} was imported, without what training goes on from; choose another --out")
    complete = state is not None and _is_complete(before, state["place"], state["best"][2])
    more = config.recipe.epochs > before.recipe.epochs
    if more and complete and not resume:
        raise UserError(
            f"{run} is complete ({counted(before.recipe.epochs, 'epoch')}); --resume with --epochs {config.recipe.epochs} trains "
            "it further, --overwrite starts again"
        )
    # More epochs go on from where the run is; all else has to be as it was.
    planned = replace(before.recipe, epochs=config.recipe.epochs) if more and resume else before.recipe
    check_same_plan(run, config, replace(before, recipe=planned))
    if state is not None and not complete and accelerator.is_main_process:
        epoch, batch = state["place"]
        say(f"{run} resumes in epoch {epoch}" + (f", after {batch} of its batches" if batch else ""))
    return state


def check_same_plan(run: Path, config: RunConfig, before: RunConfig | None = None) -> None:
    """Raises UserError: the run in that folder was started with other options or on other data, naming what differs.

    Args:
        before: what the run was planned as; None: as its folder says.
    """
    changed = differences((before or checkpoint.load_config(run)).to_json(), config.to_json())
    ignored = ("versions", "inputs.cache", "extended")
    changed = {name: pair for name, pair in changed.items() if not name.startswith(ignored)}
    data = sorted(name.removeprefix("inputs.content.") for name in changed if name.startswith("inputs.content."))
    if data and all(name.startswith(("inputs.content.", "inputs.training_sources")) for name in changed):
        raise UserError(
            f"{run} was started on other data: the cache's {', '.join(data)} of its subjects were built again since, from "
            "other images or labels; choose another --out, or give the cache as it was"
        )
    if changed:
        raise UserError(
            f"{run} was started with other options ({describe(changed)}); repeat them, or choose another --out; "
            "--overwrite starts again"
        )


def _read_history(run: Path, epoch: int) -> list[dict[str, Any]]:
    """The finished epochs' records; there are none where the run was stopped within its first."""
    if epoch == 0:
        return []
    return [row for row in pq.read_table(run / checkpoint.METRICS).to_pylist() if row["epoch"] <= epoch]
