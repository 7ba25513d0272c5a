"""How long training takes, from one measured step of each architecture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zeus_union.cache.devices import synchronise
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.training.losses import one_hot, segmentation_losses

AUGMENTED = 32  # slices, for the measurement: what is done to a slice is drawn
TOKENS = 64  # of an instruction in the form of tokens, for the measurement


class StepTimes:
    """Seconds of a training step of each architecture on one device, the second of two on noise; each measured once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[Any, ...], float] = {}

    def of(self, config: RunConfig) -> float:
        """A forward and backward pass of one batch and a step of the optimiser, with the batch's augmentation."""
        key = step_key(config)
        if key not in self._known:
            self._known[key] = _seconds_a_step(config, self._device)
        return self._known[key]


def batches_an_epoch(cache: Cache, config: RunConfig) -> int:
    return math.ceil(len(cache.rows_of(config.split.train)) / config.recipe.batch_size)


def step_key(config: RunConfig) -> tuple[Any, ...]:
    """Runs that agree in it take the same time and memory for a step."""
    return (config.architecture, config.recipe.batch_size, config.recipe.precision, config.recipe.augment)


def _seconds_a_step(config: RunConfig, device: torch.device) -> float:
    step = noise_step(config, device)
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        step()
        synchronise(device)
        seconds = time.monotonic() - start
    if not config.recipe.augment:
        return seconds
    augmentation = config.recipe.batch_size * _seconds_a_slice(config.architecture.modalities)
    # Batches are augmented ahead: beside a GPU's work, but on the cores that a CPU's step is computed on.
    return seconds + augmentation if device.type == "cpu" else max(seconds, augmentation)


def _seconds_a_slice(modalities: int) -> float:
    """Of augmenting one slice, the mean over `AUGMENTED` of them."""
    from zeus_union.cache.augmentation import augment

    images = np.random.default_rng(0).integers(0, 256, (modalities, 256, 256), dtype=np.uint8)
    augment(images, images[0], [0], range(modalities))
    start = time.monotonic()
    for seed in range(AUGMENTED):
        augment(images, images[0], [seed], range(modalities))
    return (time.monotonic() - start) / AUGMENTED


def noise_step(config: RunConfig, device: torch.device) -> Callable[[], None]:
    """A forward and backward pass and a step of the optimiser, on noise, with weights of its own."""
    torch.manual_seed(0)
    shape, size = config.architecture, config.recipe.batch_size
    model = build_model(shape).to(device)
    image = (256, 64, 64) if config.is_zeus else (256, 256)
    images = torch.randn(size, shape.modalities, *image, device=device)
    per_class = (shape.classes,) if shape.instructions == "class" else ()
    tokens = (TOKENS,) if shape.form == "tokens" else ()
    text = torch.randn(size, shape.modalities, *per_class, *tokens, shape.text_width, device=device)
    masks = torch.zeros(size, 256, 256, dtype=torch.uint8, device=device)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.recipe.precision == "bf16"):
            logits = model(images, text) if config.is_zeus else model(images)
        segmentation_losses(logits.float(), one_hot(masks, logits.shape[1])).total.backward()
        optimizer.step()

    return step
