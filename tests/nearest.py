"""The way back from a square by nearest neighbour, as oracle of sampling and to compare interpolated logits with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def from_square(squares: NDArray[Any], shape: tuple[int, int], spacing: tuple[float, float]) -> NDArray[Any]:
    """(..., size, size) -> (..., rows, columns): each voxel is the pixel that its centre lies in.

    Args:
        shape: (rows, columns) of the slice.
        spacing: mm of (rows, columns).
    """
    size = squares.shape[-1]
    side_mm = max(shape[0] * spacing[0], shape[1] * spacing[1])
    index = []
    for count, step in zip(shape, spacing):
        position_mm = (np.arange(count) + 0.5) * step + (side_mm - count * step) / 2
        index.append(np.clip(np.floor(position_mm * size / side_mm + 1e-9).astype(np.intp), 0, size - 1))
    return squares[..., index[0][:, None], index[1][None, :]]
