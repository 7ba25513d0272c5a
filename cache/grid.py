"""The patient's own grid, its slices, and the square pictures made of them; and the way back.

A volume keeps the array order it came in. Slices are seen as DICOM shows them, whatever the file's orientation: see `VIEWS`.
A square picture covers a square field of view in millimetres, centred on the slice, so that anisotropic pixels and
non-square slices keep their shape; a pixel shows the nearest voxel (Zeus, section 4.1). What is computed for the pixels is
read between them on the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.nifti_header import NiftiHeader

# View -> axis (0 left-right, 1 back-front, 2 bottom-top) and direction (+1 to right, front, top) of slices, rows, columns.
# The directions are those of DICOM; slices run along the right-handed normal: to the top, the back and the right.
VIEWS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "axial": ((2, +1), (1, -1), (0, -1)),
    "coronal": ((1, -1), (2, -1), (0, -1)),
    "sagittal": ((0, +1), (2, -1), (1, -1)),
}
# How many times larger than both others a spacing must be to be that between slices.
THICK = 1.5
# Smallest volume spanned by the axes' unit vectors: below it two of them point one way.
_INDEPENDENT = 1e-6
# Share of the smallest voxel side by which voxels of equal grids may differ.
SAME_PLACE = 0.05


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume, and how it is cut into slices.

    Attributes:
        shape: voxels along each array axis.
        affine: float64 (4, 4), voxel indices to millimetres in RAS+ (nibabel's convention).
        view: of the slices, a key of `VIEWS`.
        header: the geometry in the words of the NIfTI file it was read from; None where it was none.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    view: str = "axial"
    header: NiftiHeader | None = None

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not _is_invertible(affine):
            raise UserError(f"the affine is not an invertible 4 x 4 matrix: {affine.tolist()}")
        if self.view not in VIEWS:
            raise UserError(f"there is no view {self.view!r}; there are {', '.join(VIEWS)}")
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

    @property
    def acquired_view(self) -> str:
        """The view whose slices lie in the plane of acquisition.

        That is across the only axis with one voxel, or across the axis whose spacing is `THICK` times both others'. Where
        neither is so, the volume is near isotropic or its plane is not known: axial.
        """
        single = [axis for axis, count in enumerate(self.shape) if count == 1]
        thinner, thickest = sorted(self.spacing)[1:]
        if len(single) == 1:
            across = single[0]
        elif thickest >= THICK * thinner:
            across = int(np.argmax(self.spacing))
        else:
            return "axial"
        anatomical = int(nibabel.io_orientation(self.affine)[across, 0])
        return next(view for view, axes in VIEWS.items() if axes[0][0] == anatomical)

    def seen(self, view: str) -> Grid:
        """The same grid, cut into slices of `view`."""
        return replace(self, view=view)

    def _to_view(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Array axes that make (slice, row, column) and whether each is reversed to run as `VIEWS` says."""
        orientation = nibabel.io_orientation(self.affine)
        axes, flips = [], []
        for ras_axis, direction in VIEWS[self.view]:
            axis = int(np.flatnonzero(orientation[:, 0] == ras_axis)[0])
            axes.append(axis)
            flips.append(bool(orientation[axis, 1] != direction))
        return tuple(axes), tuple(flips)  # type: ignore[return-value]

    @property
    def slice_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of the view."""
        axes, _ = self._to_view()
        return tuple(self.shape[axis] for axis in axes)  # type: ignore[return-value]

    @property
    def slice_spacing(self) -> tuple[float, float, float]:
        """Spacing in mm of (slices, rows, columns)."""
        axes, _ = self._to_view()
        return tuple(self.spacing[axis] for axis in axes)  # type: ignore[return-value]

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A numpy view of `volume` (self.shape) as slices (slices, rows, columns)."""
        if volume.shape != self.shape:
            raise ValueError(f"volume of shape {volume.shape} on a grid of {self.shape}")
        axes, flips = self._to_view()
        turned = volume.transpose(axes)
        return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]

    def from_slices(self, slices: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `to_slices`: slices back to the array order of the file."""
        if slices.shape != self.slice_shape:
            raise ValueError(f"slices of shape {slices.shape} for a grid with {self.slice_shape}")
        axes, flips = self._to_view()
        turned = slices[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
        return np.ascontiguousarray(turned.transpose(np.argsort(axes)))

    def same_as(self, other: Grid, tolerance_mm: float | None = None) -> bool:
        """Whether every voxel of both grids lies at the same place.

        Args:
            tolerance_mm: how far two may lie apart; a twentieth of the smallest voxel side if None.
        """
        if self.shape != other.shape:
            return False
        if tolerance_mm is None:
            tolerance_mm = SAME_PLACE * min(*self.spacing, *other.spacing)
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], (1,), indexing="ij")).reshape(4, -1)
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "view": self.view,
            "header": None if self.header is None else self.header.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Grid:
        header = None if values["header"] is None else NiftiHeader.from_json(values["header"])
        return cls(tuple(values["shape"]), np.array(values["affine"]), values["view"], header)


def _is_invertible(affine: NDArray[np.float64]) -> bool:
    """Whether the axes of a (4, 4) affine are finite, none is 0 long, and they do not lie in one plane; in any unit."""
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) > _INDEPENDENT)


def _square_indices(count: int, spacing: float, side_mm: float, size: int) -> NDArray[np.intp]:
    """For each of `size` pixels across `side_mm`, the index it shows of `count` voxels centred in it; -1 outside."""
    position_mm = (np.arange(size) + 0.5) * (side_mm / size) - (side_mm - count * spacing) / 2
    index = np.floor(position_mm / spacing + 1e-9).astype(np.intp)
    index[(index < 0) | (index >= count)] = -1
    return index


def square_indices(
    shape: tuple[int, ...], spacing: tuple[float, float], size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The row and the column of a slice that each row and each column of `to_square` shows; -1 outside of it.

    Args:
        shape: (rows, columns) of the slice.
    """
    rows, columns = shape
    side_mm = max(rows * spacing[0], columns * spacing[1])
    return _square_indices(rows, spacing[0], side_mm, size), _square_indices(columns, spacing[1], side_mm, size)


def to_square(slices: NDArray[Any], spacing: tuple[float, float], size: int) -> NDArray[Any]:
    """Nearest-neighbour square pictures of slices; what lies outside the slice is 0.

    Args:
        slices: (..., rows, columns).
        spacing: mm of (rows, columns).
        size: pixels of a side, e.g. 256 or 1024.
    Returns:
        (..., size, size), same dtype.
    """
    row, column = square_indices(slices.shape[-2:], spacing, size)
    square = slices[..., row[:, None], column[None, :]]
    square[..., (row < 0)[:, None] | (column < 0)[None, :]] = 0
    return square


def square_weights(count: int, spacing: float, side_mm: float, size: int) -> NDArray[np.float64]:
    """The way back from a square, along one axis: what each voxel takes of what was computed for the square's pixels.

    A pixel speaks for the voxel that `to_square` showed in it, at that voxel's centre. A voxel shown by several pixels, in a
    slice that is coarser than the square, takes their mean, so that none is skipped; one shown by none, in a finer slice,
    is interpolated linearly between its neighbours that are; at the edge of the slice it takes the outermost one's. So any
    field that is linear between the voxels shown comes back exactly, and pixels beside the slice are never read.

    Pixel centres would be the wrong places: where they lie on the border of two voxels, as all do in a slice of 512 voxels
    on 256 pixels, every pixel shows, and is trained on, the voxel half a voxel further on; and where 240 voxels are put on 256
    pixels the two drift apart by up to half a voxel.

    Args:
        count, spacing: voxels of the slice and their mm, along this axis.
        side_mm, size: of the square, in mm and pixels.
    Returns:
        (count, size), every row of sum 1.
    """
    shown = _square_indices(count, spacing, side_mm, size)
    pixels = np.flatnonzero(shown >= 0)
    weights = np.zeros((count, size))
    if not len(pixels):  # a slice so narrow that it lies between the square's two middle pixels
        weights[:, [(size - 1) // 2, size // 2]] = 0.5
        return weights
    weights[shown[pixels], pixels] = 1
    known = np.flatnonzero(weights.any(axis=1))
    weights[known] /= weights[known].sum(axis=1, keepdims=True)
    voxels = np.arange(count)
    after = np.clip(np.searchsorted(known, voxels), 0, len(known) - 1)
    first, last = known[np.maximum(after - 1, 0)], known[after]
    share = np.clip((voxels - first) / np.maximum(last - first, 1), 0, 1)[:, None]
    return weights[first] * (1 - share) + weights[last] * share
