"""The patient's own grid, its axial slices, and the square pictures made of them; and the way back.

A volume keeps the array order it came in. Slices are always seen the same way: from inferior to superior, rows running to
posterior, columns running to the patient's left (DICOM's axial view), whatever the file's orientation. A square picture
covers a square field of view in millimetres, centred on the slice, so that anisotropic pixels and non-square slices keep
their shape; both ways sample the nearest voxel (Zeus, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume.

    Attributes:
        shape: voxels along each array axis.
        affine: float64 (4, 4), voxel indices to millimetres in RAS+ (nibabel's convention).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise UserError(f"the affine is not an invertible 4 x 4 matrix: {affine.tolist()}")
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along each array axis, in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @property
    def orientation(self) -> str:
        """The anatomical directions the array axes come closest to, e.g. 'RAS' or 'PSR'."""
        return "".join(nibabel.aff2axcodes(self.affine))

    def _to_view(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Array axes that make (slice, row, column) and whether each is reversed to run to superior, posterior, left."""
        orientation = nibabel.io_orientation(self.affine)
        wanted = ((2, +1), (1, -1), (0, -1))  # RAS axis and direction of: slices, rows, columns
        axes, flips = [], []
        for ras_axis, direction in wanted:
            axis = int(np.flatnonzero(orientation[:, 0] == ras_axis)[0])
            axes.append(axis)
            flips.append(bool(orientation[axis, 1] != direction))
        return tuple(axes), tuple(flips)  # type: ignore[return-value]

    @property
    def slice_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of the axial view."""
        axes, _ = self._to_view()
        return tuple(self.shape[axis] for axis in axes)  # type: ignore[return-value]

    @property
    def slice_spacing(self) -> tuple[float, float, float]:
        """Spacing in mm of (slices, rows, columns)."""
        axes, _ = self._to_view()
        return tuple(self.spacing[axis] for axis in axes)  # type: ignore[return-value]

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A view of `volume` (self.shape) as axial slices (slices, rows, columns)."""
        if volume.shape != self.shape:
            raise ValueError(f"volume of shape {volume.shape} on a grid of {self.shape}")
        axes, flips = self._to_view()
        view = volume.transpose(axes)
        return view[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]

    def from_slices(self, slices: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `to_slices`: axial slices back to the array order of the file."""
        if slices.shape != self.slice_shape:
            raise ValueError(f"slices of shape {slices.shape} for a grid with {self.slice_shape}")
        axes, flips = self._to_view()
        turned = slices[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
        return np.ascontiguousarray(turned.transpose(np.argsort(axes)))

    def same_as(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Whether every voxel of both grids lies at the same place, to `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], (1,), indexing="ij")).reshape(4, -1)
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Grid:
        return cls(tuple(values["shape"]), np.array(values["affine"]))


def _square_indices(count: int, spacing: float, side_mm: float, size: int) -> NDArray[np.intp]:
    """For each of `size` pixels across `side_mm`, the index it shows of `count` voxels centred in it; -1 outside."""
    position_mm = (np.arange(size) + 0.5) * (side_mm / size) - (side_mm - count * spacing) / 2
    index = np.floor(position_mm / spacing + 1e-9).astype(np.intp)
    index[(index < 0) | (index >= count)] = -1
    return index


def to_square(slices: NDArray[Any], spacing: tuple[float, float], size: int) -> NDArray[Any]:
    """Nearest-neighbour square pictures of slices; what lies outside the slice is 0.

    Args:
        slices: (..., rows, columns).
        spacing: mm of (rows, columns).
        size: pixels of a side, e.g. 256 or 1024.
    Returns:
        (..., size, size), same dtype.
    """
    rows, columns = slices.shape[-2:]
    side_mm = max(rows * spacing[0], columns * spacing[1])
    row = _square_indices(rows, spacing[0], side_mm, size)
    column = _square_indices(columns, spacing[1], side_mm, size)
    square = slices[..., row[:, None], column[None, :]]
    square[..., (row < 0)[:, None] | (column < 0)[None, :]] = 0
    return square


def from_square(squares: NDArray[Any], shape: tuple[int, int], spacing: tuple[float, float]) -> NDArray[Any]:
    """The inverse of `to_square` (nearest): (..., size, size) -> (..., rows, columns).

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
