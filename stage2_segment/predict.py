"""Masks from a trained run: as label maps of cached slices, and as NIfTI in the study's own grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import UserError
from cache.grid import Grid, from_square
from cache.reader import Cache
from cache.recipe import describe, differences
from cache.terminal import choose, progress, say
from stage2_segment import checkpoint
from stage2_segment.config import RunConfig
from stage2_segment.data import SliceData
from stage2_segment.model import Zeus, build_model
from stage2_segment.model.zeus import class_map

BATCH = 8


def open_run_cache(run: Path, config: RunConfig, path: Path | None, allow_partial: bool = False) -> Cache:
    """The cache at `path`, or the one the run was trained on, checked against what the run needs.

    Raises:
        UserError: it lacks a layer or modality, or its embeddings come from another encoder.
    """
    cache = Cache(path or Path(os.path.normpath(run / config.cache)), allow_partial=allow_partial)
    choose([config.encoder], cache.encoders, "encoder")
    choose([config.variant], cache.variants, "variant")
    choose(config.modalities, cache.modalities, "modality")
    # The slices themselves may be others, and so may the store: the run is not bound to its own patients.
    of_run, of_cache = (
        {key: value for key, value in recipe.items() if key not in ("slices", "store")}
        for recipe in (config.embedding_recipe, cache.recipe(config.embedding_layer))
    )
    changed = differences(of_run, of_cache)
    if changed:
        raise UserError(
            f"{cache.path} was made by another encoder than the run's ({describe(changed)}); build it with the run's"
        )
    if cache.text_width(config.variant) != config.text_width:
        raise UserError(
            f"{cache.path} has text embeddings of {cache.text_width(config.variant)} values, the run was trained on "
            f"{config.text_width}; build the cache with the run's text encoder"
        )
    return cache


def load_model(run: Path, config: RunConfig, which: str, device: torch.device) -> Zeus:
    """The run's model with its 'last' or 'best' weights, ready to predict.

    Raises:
        UserError: weights that are missing, damaged, or of another model.
    """
    model = build_model(config)
    try:
        model.load_state_dict(checkpoint.load_weights(run, which))
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint.weights_path(run, which)} does not fit the run's {checkpoint.CONFIG}; train again"
        ) from error
    return model.to(device).eval()


@torch.inference_mode()
def predict_slices(model: Zeus, data: SliceData, batch_size: int = BATCH) -> NDArray[np.uint8]:
    """Label maps uint8 (n, 256, 256) of all of `data`, in its order."""
    model.eval()
    parts = [class_map(model(batch.embeddings, batch.text)).cpu().numpy() for batch in data.in_order(batch_size)]
    return np.concatenate(parts)


def to_native_slices(labels: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """Label maps (n, 256, 256) -> (n, rows, columns) of the axial view at the native resolution."""
    return from_square(labels, grid.slice_shape[1:], grid.slice_spacing[1:])


def to_native_volume(labels: NDArray[np.uint8], numbers: NDArray[np.int32], grid: Grid) -> NDArray[np.uint8]:
    """Label maps (n, 256, 256) of slices `numbers` -> a volume in the array order of the source; other slices are 0."""
    slices = np.zeros(grid.slice_shape, np.uint8)
    slices[numbers] = to_native_slices(labels, grid)
    return grid.from_slices(slices)


def predict(
    run: Path,
    out: Path,
    *,
    cache: Path | None = None,
    subjects: Sequence[str] | None = None,
    which: str = "last",
    device: torch.device,
    allow_partial: bool = False,
) -> list[Path]:
    """Writes SUBJECT.nii.gz with the study's own shape and affine for every subject; the files written.

    Args:
        cache: another cache than the run's own.
        subjects: all of the cache if None.
        which: 'last' or 'best' weights.
    """
    config = checkpoint.read_config(run)
    written = []
    with open_run_cache(run, config, cache, allow_partial) as opened:
        chosen = choose(subjects, opened.subjects, "subject")
        model = load_model(run, config, which, device)
        for subject in progress(chosen, "predicting"):
            rows, grid = opened.rows_of([subject]), opened.grid(subject)
            labels = predict_slices(model, SliceData(opened, config, rows, device, labelled=False))
            volume = to_native_volume(labels, opened.rows["number"][rows], grid)
            written.append(write_labels(out / f"{subject}.nii.gz", volume, grid))
            missing = grid.slice_shape[0] - len(rows)
            if missing:
                say(f"{subject}: {missing} of {grid.slice_shape[0]} slices are not in the cache and stay 0")
    return written


def write_labels(path: Path, volume: NDArray[np.uint8], grid: Grid) -> Path:
    """A label map uint8 (grid.shape) as NIfTI, whole under its name or not there."""
    image = nibabel.Nifti1Image(volume, grid.affine)
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nibabel.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
