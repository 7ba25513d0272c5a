"""The training loop: from a cache and a plan to a run folder."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from cache.errors import UserError
from cache.reader import Cache
from cache.terminal import progress_bar, say
from stage2_segment import checkpoint
from stage2_segment.config import Recipe, RunConfig, plan_run
from stage2_segment.data import SliceData, epoch_batches
from stage2_segment.losses import one_hot, segmentation_losses
from stage2_segment.metrics import dsc, iou, mean_defined, overlap_counts
from stage2_segment.model import Zeus, build_model
from stage2_segment.predict import pick_device, predict_slices

SAVE_EVERY_S = 20  # a state is 12 bytes a parameter: not after every epoch of a second


def train_run(
    cache_path: Path,
    run: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    allow_partial: bool = False,
    **options: Any,
) -> None:
    """Plans a run with the options of `plan_run` and trains it; see `train`."""
    with Cache(cache_path, allow_partial=allow_partial) as cache:
        train(cache, plan_run(cache, run=run, **options), run, resume=resume, device=device)


def train(cache: Cache, config: RunConfig, run: Path, *, resume: bool = False, device: str | None = None) -> None:
    """Trains the decoder and the aligner, validates on the held-out subjects after every epoch.

    Nothing in a step is random: the order of the slices follows from seed and epoch. So a run that is stopped at any
    moment and resumed ends with the same weights, on a CPU bit for bit.

    Args:
        run: folder to write: config.json, metrics.parquet, tensorboard/, weights/, state.pt.
        resume: go on with an unfinished run of the same plan.
        device: 'cpu', 'cuda', 'cuda:1', ...; the best there is if None.

    Raises:
        UserError: the folder holds another run; no such device; the loss is not finite.
    """
    chosen = pick_device(device)
    accelerator = Accelerator(cpu=chosen.type == "cpu")
    if accelerator.num_processes > 1:
        raise UserError("training runs in one process; start it without accelerate launch, or with --num_processes 1")
    state = _enter(run, config, resume)
    recipe = config.recipe
    begin = state["epoch"] if state else 0
    if begin == recipe.epochs:
        say(f"{run} has had its {begin} epochs; nothing is left to do")
        return
    torch.manual_seed(config.seed)
    model = build_model(config)
    model.load_pretrained(cache.constants(config.embedding_layer))
    optimizer = build_optimizer(model, recipe)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    model, optimizer = accelerator.prepare(model, optimizer)

    train_rows, test_rows = cache.rows_of(config.train_subjects), cache.rows_of(config.test_subjects)
    train_data = SliceData(cache, config, train_rows, accelerator.device)
    test_data = SliceData(cache, config, test_rows, accelerator.device)
    foreground = cache.rows["foreground"][train_rows] > 0
    say(_what(config, len(train_rows), len(test_rows), accelerator.device))

    best_dsc, best_loss, best_loss_epoch = state["best"] if state else (-1.0, math.inf, 0)
    history = _read_history(run, begin) if state else []
    saved = time.monotonic()
    with progress_bar() as bar, SummaryWriter(str(run / "tensorboard"), purge_step=begin + 1) as board:
        task = bar.add_task("training", total=recipe.epochs, completed=begin)
        for epoch in range(begin + 1, recipe.epochs + 1):
            if recipe.patience and epoch - 1 - best_loss_epoch >= recipe.patience:
                say(f"stopped after epoch {epoch - 1}: no lower training loss for {recipe.patience} epochs")
                break
            started = time.monotonic()
            batches = epoch_batches(foreground, recipe.batch_size, recipe.foreground_share, config.seed, epoch)
            record = {"epoch": epoch, **_train_epoch(model, optimizer, train_data, batches, recipe, epoch, accelerator)}
            record["slices_per_s"] = len(train_rows) / (time.monotonic() - started)
            record |= _validate(model, test_data, test_rows, config)
            record["seconds"] = time.monotonic() - started
            history.append(record)
            for name, value in record.items():
                board.add_scalar(name, value, epoch)

            weights = accelerator.unwrap_model(model).state_dict()
            if record["loss"] < best_loss:
                best_loss, best_loss_epoch = record["loss"], epoch
            if record["validation_dsc"] > best_dsc:
                best_dsc = record["validation_dsc"]
                checkpoint.save_weights(run, "best", weights, epoch)
            last = epoch == recipe.epochs or (recipe.patience and epoch - best_loss_epoch >= recipe.patience)
            if last or time.monotonic() - saved >= SAVE_EVERY_S:
                best = (best_dsc, best_loss, best_loss_epoch)
                state = {"epoch": epoch, "model": weights, "optimizer": optimizer.state_dict(), "best": best}
                checkpoint.write_table(run / checkpoint.METRICS, history)
                checkpoint.save_weights(run, "last", weights, epoch)
                checkpoint.save_state(run, state)
                saved = time.monotonic()
            bar.update(task, advance=1, description=f"loss {record['loss']:.3f} DSC {record['validation_dsc']:.3f}")
            if last or epoch % max(1, recipe.epochs // 10) == 0:
                say(_line(record, recipe.epochs))


def build_optimizer(model: Zeus, recipe: Recipe) -> torch.optim.Optimizer:
    """Two groups: the pretrained decoders, and what starts from nothing. 'highest_lr' is what the schedule scales."""
    decoder = list(model.decoders.parameters())
    known = {id(parameter) for parameter in decoder}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [
        {"params": decoder, "lr": recipe.lr, "highest_lr": recipe.lr},
        {"params": rest, "lr": recipe.aligner_lr, "highest_lr": recipe.aligner_lr},
    ]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=recipe.weight_decay)


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Share of the highest learning rate at optimiser step `step` (from 0): linear warm-up times (1 - t / T)^0.9."""
    total = recipe.epochs * steps_per_epoch
    done = step / total if recipe.decay_per == "step" else (step // steps_per_epoch) / recipe.epochs
    factor = (1 - done) ** 0.9
    if recipe.warmup:
        steps = min(max(recipe.min_warmup_steps, math.ceil(recipe.warmup * total)), math.ceil(total / 2))
        factor *= min(1.0, (step + 1) / steps)
    return factor


def _train_epoch(
    model: Zeus,
    optimizer: torch.optim.Optimizer,
    data: SliceData,
    batches: list[NDArray[np.intp]],
    recipe: Recipe,
    epoch: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One pass; the means of the losses over its steps, and the last learning rate."""
    model.train()
    sums = np.zeros(3)
    for index, positions in enumerate(batches):
        factor = lr_factor(recipe, (epoch - 1) * len(batches) + index, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = group["highest_lr"] * factor
        batch = data.batch(positions)
        assert batch.masks is not None
        logits = model(batch.embeddings, batch.text)
        losses = segmentation_losses(logits, one_hot(batch.masks, logits.shape[1]), recipe.dice_over)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(losses.total)
        norm = accelerator.clip_grad_norm_(model.parameters(), recipe.clip or math.inf)
        values = np.array([loss.item() for loss in losses])
        if not (np.isfinite(values).all() and torch.isfinite(norm)):
            raise UserError(
                f"the loss became {values[0]:.3g}, its gradient {norm.item():.3g} in epoch {epoch}, step {index + 1}; "
                "the weights saved last are kept; train with a lower --lr into another --out"
            )
        optimizer.step()
        sums += values
    loss, dice, cross_entropy = (sums / len(batches)).tolist()
    return {
        "loss": loss,
        "dice_loss": dice,
        "cross_entropy": cross_entropy,
        "lr": optimizer.param_groups[0]["lr"],
    }


def _validate(model: Zeus, data: SliceData, rows: NDArray[np.intp], config: RunConfig) -> dict[str, float]:
    """Mean over subjects of DSC (mean over the classes) and mIoU (with background), per volume at 256 x 256."""
    predicted = predict_slices(model, data, config.recipe.batch_size)
    truth = data.cache.masks(rows)
    subject = data.cache.rows["subject"][rows]
    counts = np.stack(
        [overlap_counts(predicted[subject == s], truth[subject == s], len(config.classes)) for s in np.unique(subject)]
    )
    per_class = dsc(counts)[:, 1:]
    values = {"validation_dsc": mean_defined(np.array([mean_defined(row) for row in per_class]))}
    values["validation_miou"] = mean_defined(np.array([mean_defined(row) for row in iou(counts)]))
    for index, name in enumerate(config.classes):
        values[f"validation_dsc_{name}"] = mean_defined(per_class[:, index])
    return values


def _enter(run: Path, config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """Makes the run folder, or checks that it holds this run; the state to go on from, if any."""
    if not (run / checkpoint.CONFIG).exists():
        if run.exists() and any(run.iterdir()):
            raise UserError(f"{run} exists and is no run folder; choose another --out")
        checkpoint.write_json(run / checkpoint.CONFIG, config.to_json())
        return None
    if not resume:
        raise UserError(f"{run} exists; go on with it by --resume, or choose another --out")
    before, now = checkpoint.load_config(run).to_json(), config.to_json()
    before, now = ({**values, **values["recipe"]} for values in (before, now))
    changed = [name for name in now if name not in ("recipe", "versions", "cache") and before.get(name) != now[name]]
    if changed:
        what = "; ".join(f"{name}: {before.get(name)} -> {now[name]}" for name in changed)
        raise UserError(f"{run} was begun with other options ({what}); repeat them, or choose another --out")
    return checkpoint.load_state(run) if (run / checkpoint.STATE).exists() else None


def _read_history(run: Path, epoch: int) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(run / checkpoint.METRICS).to_pylist() if row["epoch"] <= epoch]


def _line(record: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.3f}, held-out DSC {record['validation_dsc']:.3f}, "
        f"mIoU {record['validation_miou']:.3f}, {record['slices_per_s']:.1f} slices/s"
    )


def _what(config: RunConfig, train: int, test: int, device: torch.device) -> str:
    recipe = config.recipe
    text = f"instructions {config.variant}" if config.variant else "a learned token in place of text"
    return (
        f"{config.fusion} fusion of {', '.join(config.modalities)}, classes {', '.join(config.classes)}; {text}; "
        f"{train} slices of {len(config.train_subjects)} subjects to train on, "
        f"{test} slices of {', '.join(config.test_subjects)} held out; "
        f"recipe {recipe.name}: {recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}; on {device}"
    )
