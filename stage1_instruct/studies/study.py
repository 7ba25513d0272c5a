"""What every reader gives: a study on one grid, and the dataset it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import DatasetCard


@dataclass(frozen=True, eq=False)
class Study:
    """One subject: all modalities on one grid, in the array order of the file they came in.

    Attributes:
        subject: its name, unique within the dataset; letters, digits, '.', '_' and '-'.
        grid: shape and affine shared by everything below.
        images: modality -> float32 (grid.shape), in the order of the dataset's modalities.
        labels: uint8 (grid.shape), 0 background, k = classes[k - 1]; None for a study without labels.
        modality_labels: modality -> uint8 (grid.shape), where a modality was labelled on its own (CHAOS).
        sources: name relative to the data root -> file, of everything that was read (for the digests).
    """

    subject: str
    grid: Grid
    images: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.uint8] | None
    modality_labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    sources: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A folder of studies, known without reading a voxel.

    Attributes:
        card: name, modalities, classes and subjects, as a cache of it will hold them; how many slices are kept is for the
            build to say, here it is all of them.
        load: reads one subject.
        facts: anything that decides how voxels are read (label mapping and so on); becomes part of the recipe.
        labelled: subject -> the case's name in the data set, of those with labels, where the files say it without being
            read; None where they do not.
        folds: subject -> the fold it is tested in, -1 for those that none tests; None: the cache draws them.
        cached_recipe: what the slices were made from, of a data set that is known from its cache alone, since its studies
            are not here; None: they can be read.
    """

    card: DatasetCard
    load: Callable[[str], Study]
    facts: Mapping[str, Any] = field(default_factory=dict)
    labelled: Mapping[str, str] | None = None
    folds: Mapping[str, int] | None = None
    cached_recipe: Mapping[str, Any] | None = None
