"""Masks from a trained run: as label maps of cached slices, and as NIfTI in the study's own grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid, from_square
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import choose, progress, say
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.chosen_postprocessing import PostProcessing, load_postprocessing
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
        UserError: the run's is not where it was, from the run's folder; else as `Cache`.
    """
    if path is None:
        path = Path(os.path.normpath(run / checkpoint.load_config(run).inputs.cache))
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


def load_run(run: Path, which: str = "last", device: str | None = None) -> TrainedRun:
    """A trained run, ready to predict.

    Args:
        run: the folder that `train_run` wrote.
        which: 'last' weights, or 'best': those of the epoch with the best DSC on the validation subjects.
        device: 'cpu', 'cuda', ...; the best there is for None.

    Raises:
        UserError: no run there; weights that are missing, damaged, or of another model; no such device.
    """
    config, on = checkpoint.load_config(run), pick_device(device)
    model = build_model(config.architecture)
    try:
        model.load_state_dict(checkpoint.load_weights(run, which))
    except RuntimeError as error:
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


def to_native_slices(labels: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """Label maps (n, 256, 256) -> (n, rows, columns) of the view of `grid` at the native resolution."""
    return from_square(labels, grid.slice_shape[1:], grid.slice_spacing[1:])


def to_native_volume(
    labels: NDArray[np.uint8], numbers: NDArray[np.int32], grid: Grid, postprocessing: PostProcessing | None = None
) -> NDArray[np.uint8]:
    """Label maps (n, 256, 256) of slices `numbers` -> a volume in the array order of the source; other slices are 0."""
    native = to_native_slices(labels, grid)
    slices = np.zeros(grid.slice_shape, np.uint8)
    slices[numbers] = native if postprocessing is None else postprocessing(native)
    return grid.from_slices(slices)


def predict_run(
    run: Path,
    cache: Cache,
    out: Path,
    *,
    subjects: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    which: str = "last",
    device: str | None = None,
    postprocess: bool = True,
) -> list[Path]:
    """Writes SUBJECT.nii.gz with the study's own shape and geometry for every subject; the files written.

    Args:
        subjects: all of the cache if None.
        modalities: to predict from, of those the run was trained with; all if None.
        which: 'last' or 'best' weights.
        postprocess: with what was chosen for these weights (`load_postprocessing`).
    """
    opened = load_run(run, which, device)
    wanted = check_cache(opened.config, cache, modalities)
    postprocessing = load_postprocessing(run, opened.config, which, postprocess)
    chosen = choose(subjects, cache.subjects, "subject")
    written = []
    for subject in progress(chosen, "predicting"):
        rows, grid = cache.rows_of([subject]), cache.grid(subject)
        data = SliceData(cache, opened.config.inputs.encoder, wanted, rows, opened.device, labelled=False)
        labels = predict_slices(opened.model, opened.config, data, wanted)
        volume = to_native_volume(labels, cache.rows["number"][rows], grid, postprocessing)
        written.append(write_labels(out / f"{subject}.nii.gz", volume, grid))
        missing = grid.slice_shape[0] - len(rows)
        if missing:
            say(f"{subject}: {missing} of {grid.slice_shape[0]} slices are not in the cache and stay 0")
    say(postprocessing.summary)
    return written


def write_labels(path: Path, volume: NDArray[np.uint8], grid: Grid) -> Path:
    """A label map uint8 (grid.shape) as NIfTI, whole under its name or not there.

    Its header says where it lies in the very fields of the NIfTI file that the study came from (both transforms, their
    codes, the unit), so that every program lays it over that file; without such a file both transforms are the affine.
    """
    if grid.header is not None:
        image = nibabel.Nifti1Image(volume, None, grid.header.new_header())
    else:
        image = nibabel.Nifti1Image(volume, grid.affine)
        image.set_qform(grid.affine, code="scanner")
        image.set_sform(grid.affine, code="scanner")
        image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nibabel.save(image, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
