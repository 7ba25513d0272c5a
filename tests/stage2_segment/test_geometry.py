"""A mask has the geometry of the image it is of, in every program."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from zeus_union.cache.grid import Grid
from zeus_union.stage1_instruct.studies.nifti import read_channels, read_volume
from zeus_union.stage2_segment.nifti import write_labels

SHAPE = (4, 5, 6)
MM = {"unknown": 1, "meter": 1000, "mm": 1, "micron": 0.001}


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any axis order and direction, anisotropic, oblique."""
    axes = np.eye(3)[:, list(draw(st.permutations(range(3))))] * draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.integers(-40, 40)] * 3)), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * draw(st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.integers(-200, 200)] * 3))
    return affine


def itk_geometry(path: Path) -> list[float]:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    count = 3
    dimension = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:count, :count]
    return [*reader.GetOrigin()[:count], *reader.GetSpacing()[:count], *direction.ravel()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    qform=affines(),
    sform=affines(),
    equal=st.booleans(),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    unit=st.sampled_from(list(MM)),
    four_axes=st.booleans(),
)
def test_a_mask_lies_where_its_image_lies_for_nibabel_and_for_itk(
    tmp_path_factory: pytest.TempPathFactory,
    qform: np.ndarray,
    sform: np.ndarray,
    equal: bool,
    codes: tuple[int, int],
    unit: str,
    four_axes: bool,
):
    folder = tmp_path_factory.mktemp("nifti")
    header = nibabel.Nifti1Header()
    header.set_data_shape((*SHAPE, 2) if four_axes else SHAPE)
    header.set_qform(qform, codes[0])
    header.set_sform(qform if equal else sform, codes[1])
    header.set_xyzt_units(unit, "sec" if four_axes else "unknown")
    header["pixdim"][1:4] = np.linalg.norm(qform[:3, :3], axis=0)
    image = nibabel.Nifti1Image(np.zeros(header.get_data_shape(), np.float32), None, header)
    nibabel.save(image, folder / "image.nii")
    source = nibabel.load(folder / "image.nii")

    if four_axes:
        _, grid = read_channels([folder / "image.nii"], {"T1": 1}, 2)
    else:
        _, grid = read_volume(folder / "image.nii")
    in_mm = np.diag([*[MM[unit]] * 3, 1.0]) @ source.header.get_best_affine()
    np.testing.assert_allclose(grid.affine, in_mm)  # nibabel's choice, in millimetres

    grid = Grid.from_json(json.loads(json.dumps(grid.to_json())))  # as it comes out of a cache
    labels = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    mask = nibabel.load(write_labels(folder / "mask.nii.gz", labels, grid))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), labels)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, source.affine)
    for form in ("get_qform", "get_sform"):
        transform, code = getattr(source.header, form)(coded=True)
        of_mask, code_of_mask = getattr(mask.header, form)(coded=True)
        assert code == code_of_mask
        np.testing.assert_array_equal(transform, of_mask)
    assert mask.header.get_xyzt_units()[0] == source.header.get_xyzt_units()[0]
    np.testing.assert_array_equal(mask.header["pixdim"][:4], source.header["pixdim"][:4])
    assert itk_geometry(folder / "mask.nii.gz") == itk_geometry(folder / "image.nii")


def test_without_a_nifti_source_both_transforms_are_the_affine(tmp_path: Path):
    affine = np.diag([-1.0, 2, 3, 1])
    mask = nibabel.load(write_labels(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), Grid(SHAPE, affine)))
    for transform, code in (mask.header.get_qform(coded=True), mask.header.get_sform(coded=True)):
        np.testing.assert_allclose(transform, affine)
        assert code == 1
    assert mask.header.get_xyzt_units()[0] == "mm"


def test_numbers_that_nobody_reads_may_be_nan(tmp_path: Path):
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_qform(np.diag([1.0, 2, 3, 1]), 1)
    header["srow_x"] = np.nan
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), None, header), tmp_path / "image.nii")
    _, grid = read_volume(tmp_path / "image.nii")
    assert "NaN" not in json.dumps(grid.to_json())
