"""How much of one grid another covers."""

from __future__ import annotations

import numpy as np

from zeus_union.cache.grid import Grid

_MOST_PER_AXIS = 32


def overlap_of(grid: Grid, reference: Grid) -> float:
    """The share of the reference's voxels that lie in `grid`, of at most 32 along each axis."""
    axes = [np.unique(np.linspace(0, count - 1, min(count, _MOST_PER_AXIS)).round()) for count in reference.shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    matrix = np.linalg.inv(grid.affine) @ reference.affine
    where = matrix[:3, :3] @ voxels + matrix[:3, 3:]
    limits = np.array(grid.shape)[:, None] - 0.5
    return float(((where >= -0.5 - 1e-6) & (where <= limits + 1e-6)).all(axis=0).mean())
