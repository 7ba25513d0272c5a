"""The price of freezing: the image encoder trained too (LoRA, no cache) against the decoder alone, in one run.

    python tests/benchmarks/bench_freezing.py cache/chaos.h5 [--fold 0] [--steps 100] [--rank 8] [--augment] [--device cuda]

Both rows see the same batches from the same start, read the cache's pictures and embed them anew in every step, without
text; the schedule ends after `steps`. With --augment every slice is changed anew before each step, as a baseline's are.
Prints the test subjects' DSC at 256 and the seconds a step takes; beside them the seconds of a step that reads the
embeddings from the cache, which only the frozen row can. peft makes the LoRA.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from zeus_union.cache.devices import synchronise
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.device import pick_device
from zeus_union.stage2_segment.evaluation.metrics import dsc, mean_defined, overlap_counts
from zeus_union.stage2_segment.inputs.slices import SliceData, epoch_batches
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.model.zeus import Zeus, class_map
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.training.losses import known_pixels, one_hot, segmentation_losses
from zeus_union.stage2_segment.training.schedule import build_optimizer, lr_factor

TARGETS = ["qkv", "proj", "fc1", "fc2"]  # of LiteMedSAM's transformer blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-4, help="of the LoRA; the decoder's is the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augment", action="store_true", help="change every slice at random before each step")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with Cache(given.cache) as cache:
        config = plan_run(cache, run=Path("run"), fold=given.fold, text="none", fusion="hybrid", seed=given.seed)
        config = replace(config, recipe=replace(config.recipe, epochs=1, augment=given.augment))
        device = pick_device(given.device)
        print(f"{given.steps} steps of {config.recipe.batch_size} slices; tested on {', '.join(config.split.test)}")
        for rank in (0, given.rank):
            scores, seconds, trained = train(cache, config, given.steps, rank, given.lr, device)
            row = f"LoRA of rank {rank}" if rank else "frozen"
            subjects = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
            print(
                f"{row}: DSC {np.mean(list(scores.values())):.3f} ({subjects}); {seconds:.3f} s a step; {trained:,} trained"
            )
        print(f"frozen, from the cache: {seconds_from_cache(cache, config, device):.3f} s a step")


def train(
    cache: Cache, config: RunConfig, steps: int, rank: int, lr: float, device: torch.device
) -> tuple[dict[str, float], float, int]:
    """DSC of each test subject, seconds a step, trained parameters."""
    torch.manual_seed(config.seed)
    model = pretrained(cache, config, device)
    encoder = LiteMedSAM(device=device)._model
    optimizer = build_optimizer(model, config.recipe)
    if rank:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), encoder)
        added = [weights for name, weights in encoder.named_parameters() if "lora_" in name]
        optimizer.add_param_group({"params": added, "lr": lr, "highest_lr": lr})
    rows, augment = cache.rows_of(config.split.train), config.recipe.augment
    data = SliceData(cache, None, config.inputs.modalities, rows, device, augmented=augment)
    drawn = list(batches(cache, config, steps))
    seeds = ([(config.seed, step, place) for place in range(len(positions))] for step, positions in enumerate(drawn))
    started = time.perf_counter()
    for step, batch in enumerate(data.batches(drawn, seeds if augment else None)):
        assert batch.masks is not None
        with torch.set_grad_enabled(rank > 0):
            embeddings = embed(encoder, batch.images)
        update(config, model, optimizer, embeddings, batch.masks, step, steps)
    synchronise(device)
    seconds = (time.perf_counter() - started) / steps
    trained = sum(weights.numel() for group in optimizer.param_groups for weights in group["params"])
    return {name: test(cache, config, encoder, model, name, device) for name in config.split.test}, seconds, trained


def update(
    config: RunConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    embeddings: Tensor,
    masks: Tensor,
    step: int,
    steps: int,
) -> None:
    """A step of the run's recipe whose schedule has `steps`."""
    logits = model(embeddings, embeddings.new_zeros(*embeddings.shape[:2], 0))
    targets = one_hot(masks, logits.shape[1])
    segmentation_losses(logits, targets, config.recipe.dice_over, known=known_pixels(masks)).total.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, config.recipe.clip)
    for group in optimizer.param_groups:
        group["lr"] = group["highest_lr"] * lr_factor(config.recipe, step, steps)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def batches(cache: Cache, config: RunConfig, steps: int) -> Iterator[NDArray[np.intp]]:
    foreground = cache.rows["foreground"][cache.rows_of(config.split.train)] > 0
    recipe, epoch = config.recipe, 0
    while True:
        epoch += 1
        for positions in epoch_batches(foreground, recipe.batch_size, recipe.foreground_share, config.seed, epoch):
            if steps == 0:
                return
            steps -= 1
            yield positions


def embed(encoder: nn.Module, images: Tensor) -> Tensor:
    """Pictures (B, M, 256, 256) as LiteMedSAM reads them -> (B, M, 256, 64, 64)."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = ((images - low) / (high - low).clamp_min(1 / 255)).flatten(0, 1)
    pictures = flat[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return encoder(pictures).unflatten(0, images.shape[:2])


@torch.inference_mode()
def test(
    cache: Cache, config: RunConfig, encoder: nn.Module, model: nn.Module, subject: str, device: torch.device
) -> float:
    rows = cache.rows_of([subject])
    data = SliceData(cache, None, config.inputs.modalities, rows, device)
    counts: list[NDArray[np.int64]] = []
    for _, batch in data.in_order(4):
        embeddings = embed(encoder, batch.images)
        predicted = class_map(model.eval()(embeddings, embeddings.new_zeros(*embeddings.shape[:2], 0)))
        counts.append(overlap_counts(predicted.cpu().numpy(), batch.masks.cpu().numpy(), len(config.inputs.classes)))
    return mean_defined(dsc(np.sum(counts, axis=0))[1:])


def seconds_from_cache(cache: Cache, config: RunConfig, device: torch.device, steps: int = 20) -> float:
    model = pretrained(cache, config, device)
    optimizer = build_optimizer(model, config.recipe)
    rows = cache.rows_of(config.split.train)
    data = SliceData(cache, config.inputs.encoder, config.inputs.modalities, rows, device)
    positions: Sequence[NDArray[np.intp]] = list(batches(cache, config, steps))
    started = time.perf_counter()
    for step, batch in enumerate(data.batches(positions)):
        assert batch.masks is not None
        update(config, model, optimizer, batch.images, batch.masks, step, steps)
    synchronise(device)
    return (time.perf_counter() - started) / steps


def pretrained(cache: Cache, config: RunConfig, device: torch.device) -> Zeus:
    """The decoder as a run begins with it."""
    model = build_model(config.architecture)
    assert isinstance(model, Zeus)
    model.load_pretrained(cache.constants(config.inputs.embedding_layer))
    return model.to(device)


if __name__ == "__main__":
    main()
