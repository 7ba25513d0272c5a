"""One file, one array and where it lies: NIfTI by nibabel, MetaImage and NRRD by SimpleITK, pictures by Pillow."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.cache.nifti_header import NiftiHeader, affine_in_mm
from zeus_union.stage1_instruct.studies.depth import wanted

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd")
PICTURES = (".png", ".bmp", ".tif", ".tiff")
ENDINGS = (*NIFTI, *ITK, *PICTURES)

PLAUSIBLE_MM = (0.005, 100.0)  # of the largest and the smallest voxel side, where a header names no unit
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Geometry = tuple[NDArray[np.float64], NiftiHeader | None]  # the affine in mm, and where it is NIfTI the header's own
Loaded = tuple[NDArray[np.float32], Geometry]

_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)


def ending_of(path: Path) -> str:
    """The ending among `ENDINGS` that a file has, in lower case; '' for another."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")


def stem_of(path: Path) -> str:
    """A file's name without such an ending."""
    return path.name[: len(path.name) - len(ending_of(path))]


def load_array(path: Path, labels: bool = False) -> Loaded:
    """The array as float32 and where it lies; zeros where only headers are wanted (`depth`).

    Args:
        labels: of a picture with a palette the numbers, not the colours.
    Returns:
        (X, Y, Z), or (X, Y, Z, channel) where a file has several; the affine (4, 4), voxel indices to mm in
        RAS+, and the header's geometry where it is NIfTI.

    Raises:
        UserError: missing, truncated, damaged, or not of a format that is read here.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; expected an image file there")
    ending = ending_of(path)
    if not ending:
        raise UserError(f"{path} cannot be read; the formats are {', '.join(ENDINGS)}")
    try:
        if ending in NIFTI:
            return _load_nifti(path, labels)
        return _load_itk(path) if ending in ITK else _load_picture(path, labels)
    except _UNREADABLE as error:
        kind = "NIfTI" if ending in NIFTI else ending
        raise UserError(
            f"{path} cannot be read as {kind} ({error}); it may be truncated or damaged, copy it again"
        ) from error


def data_files(path: Path) -> list[Path]:
    """`path`, and the file beside it that holds the voxels of a MetaImage header (.mhd)."""
    if ending_of(path) != ".mhd" or not path.is_file():
        return [path]
    entry = re.search(rb"^ElementDataFile\s*=\s*(.+?)\s*$", path.read_bytes()[:65536], re.MULTILINE)
    name = entry.group(1).decode(errors="replace") if entry else "LOCAL"
    beside = path.parent / name
    return [path, beside] if beside.is_file() else [path]


def _load_nifti(path: Path, labels: bool) -> Loaded:
    if ending_of(path) == ".nii.gz" and wanted(labels):
        _check_gzip(path)
    image: Any = nibabel.load(path)
    if image.get_data_dtype().kind == "c":
        raise UserError(f"{path} holds complex numbers, expected magnitudes; write those instead")
    if _unit(path, image.header) == "unknown":
        _check_plausible(path, np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0))
    if not wanted(labels):
        return np.zeros(image.shape, np.float32), affine_in_mm(image)
    return np.asarray(image.dataobj, dtype=np.float32), affine_in_mm(image)


def _unit(path: Path, header: Any) -> str:
    """What one step of the affine is, by the header's xyzt_units: 'mm', 'meter', 'micron' or 'unknown'."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError as error:
        raise UserError(
            f"{path}: xyzt_units in its header has the unknown code {error}; correct it, header.set_xyzt_units('mm')"
        ) from error


def _check_plausible(path: Path, sides: NDArray[np.float64]) -> None:
    """Raises a UserError where voxel sides, taken as mm, can only be metres or micrometres."""
    sound = np.isfinite(sides).all() and sides.all()  # a broken affine is named by `Grid`
    if sound and not (sides.max() > PLAUSIBLE_MM[0] and sides.min() < PLAUSIBLE_MM[1]):
        size = " x ".join(f"{side:g}" for side in sides)
        raise UserError(
            f"{path}: its voxels are {size} in the header, which names no unit; as mm that is not possible, say what it is: "
            "image.header.set_xyzt_units('meter'), 'micron' or 'mm'"
        )


def _check_gzip(path: Path) -> None:
    """Reads `path` to its end, where gzip keeps the checksum.

    nibabel stops at the last voxel and so never compares it: of 100 single flipped bytes 69 went unnoticed.
    """
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def _load_itk(path: Path) -> Loaded:
    import SimpleITK  # 0.3 s, and most data sets are NIfTI

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    image = SimpleITK.ReadImage(str(path))
    dimension = image.GetDimension()
    if dimension not in (2, 3):
        raise UserError(f"{path} has {dimension} axes; expected a 2D or 3D image")
    if "complex" in image.GetPixelIDTypeAsString():
        raise UserError(f"{path} holds complex numbers, expected magnitudes; write those instead")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)
    affine[:dimension, :dimension] = direction * np.array(image.GetSpacing())
    affine[:dimension, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    spatial = tuple(range(dimension))[::-1]
    array = array.transpose(*spatial, *range(dimension, array.ndim))
    if dimension == 2:
        array = np.expand_dims(array, 2)
    return np.ascontiguousarray(array), (LPS_TO_RAS @ affine, None)


def _load_picture(path: Path, labels: bool) -> Loaded:
    """A 2D picture as one slice, upright in the axial view, 1 mm a pixel (nnU-Net's NaturalImage2DIO)."""
    with Image.open(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise UserError(f"{path} has {picture.n_frames} pages, expected a 2D picture; write volumes as NIfTI")
        if len(picture.getbands()) > 1 and any("16" in str(tile[3]) for tile in picture.tile):
            raise UserError(f"{path} has colours of 16 bits, which are read as 8; write one file a channel")
        colours = picture.mode == "P" and not labels
        pixels = np.asarray(picture.convert("RGB") if colours else picture, dtype=np.float32)
    return np.ascontiguousarray(np.expand_dims(pixels.swapaxes(0, 1), 2)), (LPS_TO_RAS.copy(), None)
