"""Where a NIfTI file lies, in the fields of its own header.

A header has two transforms, qform and sform, each with a code, and a unit. Programs choose between them by rules of their
own: nibabel takes the sform if its code is above 0, ITK asks first whether the two agree. A mask is laid over its image by all of
them only if it has the same fields, so these travel as they are, never computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

# The lowest three bits of xyzt_units -> millimetres in a unit; 0 (unknown) is taken for millimetres, as ITK does.
_SPACE_BITS = 0b111
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class NiftiHeader:
    """The geometry of a NIfTI header, field by field (names and meaning: nifti1.h).

    Attributes:
        pixdim: 8 numbers; the first is the handedness of the qform (qfac), then the voxel size along each axis.
        qform_code, sform_code: what the transforms refer to; 0: the transform is not to be used.
        quatern: b, c, d of the qform's rotation.
        qoffset: x, y, z of its origin.
        srow: 12 numbers, the sform's three rows.
        xyzt_units: units of space and time.
    """

    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    qoffset: tuple[float, ...]
    srow: tuple[float, ...]
    xyzt_units: int

    @classmethod
    def of(cls, header: nibabel.Nifti1Header) -> NiftiHeader:
        """The fields of a header (NIfTI-1 or 2)."""

        def numbers(*names: str) -> tuple[float, ...]:
            # NaN can only stand where nothing reads it, else the affine would be NaN; JSON has none.
            return tuple(
                float(value) for name in names for value in np.nan_to_num(np.ravel(header[name]), posinf=0, neginf=0)
            )

        return cls(
            pixdim=numbers("pixdim"),
            qform_code=int(header["qform_code"]),
            sform_code=int(header["sform_code"]),
            quatern=numbers("quatern_b", "quatern_c", "quatern_d"),
            qoffset=numbers("qoffset_x", "qoffset_y", "qoffset_z"),
            srow=numbers("srow_x", "srow_y", "srow_z"),
            xyzt_units=int(header["xyzt_units"]),
        )

    @property
    def mm_per_unit(self) -> float:
        """Millimetres in the header's unit of space."""
        return _MM.get(self.xyzt_units & _SPACE_BITS, 1.0)

    def new_header(self) -> nibabel.Nifti1Header:
        """A header of a label map uint8 with these fields."""
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.uint8)
        header["pixdim"] = self.pixdim
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        header["xyzt_units"] = self.xyzt_units
        for name, values in (("quatern_", zip("bcd", self.quatern)), ("qoffset_", zip("xyz", self.qoffset))):
            for letter, value in values:
                header[f"{name}{letter}"] = value
        for row, letter in enumerate("xyz"):
            header[f"srow_{letter}"] = self.srow[4 * row : 4 * row + 4]
        return header

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NiftiHeader:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)


def affine_in_mm(image: Any) -> tuple[NDArray[np.float64], NiftiHeader | None]:
    """The affine of an image that nibabel opened, in millimetres, and its header's geometry where it is NIfTI.

    The affine is nibabel's `get_best_affine`: the sform if its code is above 0, else the qform if its code is, else the
    voxel sizes alone; nibabel leaves it in the header's unit.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    if not isinstance(image.header, nibabel.Nifti1Header):
        return affine, None
    header = NiftiHeader.of(image.header)
    return np.diag([*[header.mm_per_unit] * 3, 1.0]) @ affine, header
