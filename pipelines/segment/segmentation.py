"""A segmented study, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.grid import Grid
from zeus_union.cache.instructions import Instruction
from zeus_union.stage1_instruct.studies.dicom import Series

MADE_BY = "made_by.json"  # in a folder of results: `Segmentation.made_by`


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The mask of a study and what belongs to it; volumes are in the array order and grid of the reference modality.

    Attributes:
        study: its name, as the folder of its results is called.
        classes: label k is classes[k - 1].
        mask: uint8 (grid.shape).
        grid: of the reference modality, the first of the run's that the study has; cut into the run's view.
        images: modality -> float32 (grid.shape), of those that were read, in the run's order.
        missing: modalities of the run that the study does not have.
        instructions: what was said of every slice and modality, in the order of the slices; variant -> texts, one variant a
            class where each has its own; empty of a run without text.
        segmented: numbers of the slices (in the grid's view) that were segmented; the others are filled between or stay 0.
        series: the reference modality's DICOM series; None of NIfTI input.
        probabilities: class -> uint16 (grid.shape), see `nifti.write_probabilities`; empty unless asked for.
        disagreement: float32 (grid.shape), fraction of an ensemble's members whose label is another; None of one run.
        agreement: class -> mean DSC between the members; empty of one run.
        seconds: by part of the work.
        made_by: the runs with the digests of their weights, the post-processing and the slice step; what decides the mask.
    """

    study: str
    classes: tuple[str, ...]
    mask: NDArray[np.uint8]
    grid: Grid
    images: Mapping[str, NDArray[np.float32]]
    missing: tuple[str, ...] = ()
    instructions: Mapping[str, tuple[Instruction, ...]] = field(default_factory=dict)
    segmented: tuple[int, ...] = ()
    series: Series | None = None
    probabilities: Mapping[str, NDArray[np.uint16]] = field(default_factory=dict)
    disagreement: NDArray[np.float32] | None = None
    agreement: Mapping[str, float | None] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[str, ...]:
        """Name and beginning of the digest of each run that the mask comes from."""
        members = self.made_by.get("members", ())
        return tuple(f"{member['run']} {member['weights_sha256'][:8]}" for member in members)
