"""From logits at 256 x 256 to a subject's masks in its native grid: the one way of evaluate, predict and segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.grid import Grid, square_weights
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.ensemble import Agreement, LogitOfMean
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model.zeus import class_map
from zeus_union.stage2_segment.nifti import stored_probabilities
from zeus_union.stage2_segment.trained import BATCH, TrainedRun


@dataclass(frozen=True, eq=False)
class SubjectPrediction:
    """What runs say of all cached slices of a subject, in their order.

    Attributes:
        labels_256: uint8 (n, 256, 256), as the decoder sees the slices.
        labels: uint8 (n, rows, columns), in the view of the native grid; the mask.
        probabilities: `stored_probabilities` (K, n, rows, columns), on the disk until they are no longer used; None where
            they were not asked for.
        differing: whole numbers (n, rows, columns), see `ensemble.Agreement`; None of one run.
        agreement: class -> see `ensemble.Agreement`; empty of one run.
    """

    labels_256: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.uint16] | None
    differing: NDArray[np.unsignedinteger] | None
    agreement: dict[str, float | None]


class NativeSlices:
    """Logits of square pictures, interpolated onto the slices of a grid (`cache.grid.square_weights`)."""

    def __init__(self, grid: Grid, device: torch.device) -> None:
        self._grid, self._device = grid, device
        self._weights: dict[int, tuple[Tensor, ...]] = {}  # pixels of a side -> of the rows and the columns

    def __call__(self, logits: Tensor) -> Tensor:
        """Float (..., 256, 256) -> (..., rows, columns)."""
        side = logits.shape[-1]
        if side not in self._weights:
            self._weights[side] = self._weights_of(side)
        rows, columns = self._weights[side]
        return rows @ logits @ columns.T

    def _weights_of(self, side: int) -> tuple[Tensor, ...]:
        counts, spacings = self._grid.slice_shape[1:], self._grid.slice_spacing[1:]
        side_mm = max(count * spacing for count, spacing in zip(counts, spacings))
        return tuple(
            torch.from_numpy(square_weights(count, spacing, side_mm, side)).float().to(self._device)
            for count, spacing in zip(counts, spacings)
        )


def read_subject(
    cache: Cache, subject: str, members: Sequence[TrainedRun], modalities: Sequence[str]
) -> dict[str | None, SliceData]:
    """Encoder -> the subject's slices, of each encoder that a member reads (None: the pictures)."""
    rows, device = cache.rows_of([subject]), members[0].device
    encoders = dict.fromkeys(member.config.inputs.encoder for member in members)
    return {name: SliceData(cache, name, modalities, rows, device, labelled=False) for name in encoders}


@torch.inference_mode()
def predict_subject(
    members: Sequence[TrainedRun],
    data: Mapping[str | None, SliceData],
    grid: Grid,
    available: Sequence[str] | None = None,
    *,
    probabilities_in: Path | None = None,
    batch_size: int = BATCH,
) -> SubjectPrediction:
    """The mask of one subject from one run, or from the mean of the probabilities of several.

    The mean is taken at 256 x 256; its logits are interpolated onto the native slices and only there the class is decided.
    Of all slices only labels are held, and on the disk probabilities where they are asked for.

    Args:
        data: what `read_subject` gives: all cached slices of the subject.
        grid: the subject's.
        available: modalities there are, of the runs'; None: all.
        probabilities_in: a folder, on whose disk the probabilities are kept; None: they are not.
    """
    classes = members[0].config.inputs.classes
    inputs = [RunInputs(member.config, data[member.config.inputs.encoder], available) for member in members]
    first = next(iter(data.values()))
    to_native = NativeSlices(grid, first.device)
    count, shape = len(first), grid.slice_shape[1:]
    of_squares: list[NDArray[np.uint8]] = []
    labels = np.empty((count, *shape), np.uint8)
    stored = None if probabilities_in is None else _on_disk((len(classes), count, *shape), probabilities_in)
    agreement = Agreement(classes, len(members), (count, *shape)) if len(members) > 1 else None
    for batches in zip(*(slices.in_order(batch_size) for slices in data.values())):
        positions = batches[0][0]
        batch_of = dict(zip(data, (batch for _, batch in batches)))
        mean, of_members = LogitOfMean(), []
        for member, member_inputs in zip(members, inputs):
            member.model.eval()
            logits = member_inputs.logits(member.model, positions, batch_of[member.config.inputs.encoder])
            mean.add(logits)
            if agreement is not None:
                of_members.append(torch.stack([class_map(to_native(one)[None])[0] for one in logits]))
        logits = mean.logits()
        of_squares.append(class_map(logits).cpu().numpy())
        for index, position in enumerate(positions):  # one slice at a time: K x 1024 x 1024 may be 64 MiB
            native = to_native(logits[index])
            mask = class_map(native[None])[0]
            labels[position] = mask.cpu().numpy()
            if stored is not None:
                stored[:, position] = stored_probabilities(native)
            if agreement is not None:
                agreement.add(position, torch.stack([member_labels[index] for member_labels in of_members]), mask)
    return SubjectPrediction(
        np.concatenate(of_squares),
        labels,
        stored,
        None if agreement is None else agreement.differing,
        {} if agreement is None else agreement.pairwise_dsc(),
    )


def _on_disk(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint16]:
    """An array in a temporary file of a folder, which has no name and goes with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint16, "w+", shape=shape)
