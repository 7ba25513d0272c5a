"""A trained run, opened to predict: its label maps of cached slices, at 256 x 256."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import timed
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.compatibility import check_cache
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.device import pick_device
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.model.zeus import class_map

BATCH = 8


def open_cache(run: Path, path: Path | None = None, allow_partial: bool = False) -> Cache:
    """The cache at `path`, or the one that `run` was trained on.

    Raises:
        UserError: the run's is not where it was, from the run's folder, or the run was exported; else as `Cache`.
    """
    if path is None:
        config = checkpoint.load_config(run)
        if config.is_shared:
            raise UserError(
                f"{checkpoint.name_of(run)} was shared without the cache it was trained on; give --cache FILE"
            )
        path = Path(os.path.normpath(run / config.inputs.cache))
        if not path.is_file():
            raise UserError(
                f"{run} was trained on {path}, which is not there (was one of them moved?); give --cache FILE"
            )
    return Cache(path, allow_partial=allow_partial)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run folder, opened to predict.

    Attributes:
        folder: where it lies.
        config: what it is.
        model: with its weights, on `device`, in evaluation mode.
    """

    folder: Path
    config: RunConfig
    model: nn.Module
    device: torch.device

    def predict(self, cache: Cache, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Label maps uint8 (len(rows), 256, 256) of rows of a cache: 0 background, k the run's k-th class.

        Raises:
            UserError: as `check_cache`.
        """
        modalities = check_cache(self.config, cache)
        data = SliceData(cache, self.config.inputs.encoder, modalities, rows, self.device, labelled=False)
        return predict_slices(self.model, self.config, data)


def load_trained(run: Path, which: str = "last", device: str | None = None) -> TrainedRun:
    """A trained run, ready to predict.

    Args:
        run: the folder that `train_run` wrote.
        which: 'last' weights, or 'best': those of the epoch with the best DSC on the validation subjects.
        device: 'cpu', 'cuda', ...; the best there is for None.

    Raises:
        UserError: no run there; weights that are missing, damaged, or of another model; no such device.
    """
    config, on = checkpoint.load_config(run), pick_device(device)
    try:
        with timed(f"{checkpoint.weights_path(run, which)} loaded"):
            weights = checkpoint.load_weights(run, which)
            model = build_model(config.architecture)
            model.load_state_dict(weights)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:  # whatever somebody wrote into the file
        raise UserError(
            f"{checkpoint.weights_path(run, which)} does not fit the run's {checkpoint.CONFIG}; train again"
        ) from error
    return TrainedRun(run, config, model.to(on).eval(), on)


def predict_slices(
    model: nn.Module,
    config: RunConfig,
    data: SliceData,
    available: Sequence[str] | None = None,
    batch_size: int = BATCH,
) -> NDArray[np.uint8]:
    """Label maps uint8 (n, 256, 256) of all of `data`, in its order.

    Args:
        available: modalities there are, of the run's; None: all.
    """
    return predict_inputs(model, RunInputs(config, data, available), data, batch_size)


@torch.inference_mode()
def predict_inputs(
    model: nn.Module, inputs: RunInputs, data: SliceData, batch_size: int = BATCH, use_text: bool = True
) -> NDArray[np.uint8]:
    """As `predict_slices`, from inputs that are there; without `use_text` by the learned token alone (`Zeus.forward`)."""
    model.eval()
    parts = []
    for positions, batch in data.in_order(batch_size):
        used = None if use_text else np.zeros(len(positions), bool)
        parts.append(class_map(inputs.logits(model, positions, batch, use_text=used)).cpu().numpy())
    return np.concatenate(parts)
