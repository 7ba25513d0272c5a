"""What lies on another grid is resampled as SimpleITK does it, where both say where they lie; else it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from tests.pipelines.intake import pacs
from tests.pipelines.intake.test_study import edit, opened, refused
from zeus_union.cache.grid import Grid
from zeus_union.pipelines.intake.overlap import overlap_of
from zeus_union.stage1_instruct.studies.dicom import resample_to

PAIR = ("T2", "FLAIR")


def itk_image(volume: NDArray[Any], affine: NDArray[np.float64]) -> SimpleITK.Image:
    lps = pacs.LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.astype(np.float32).T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@settings(max_examples=20, deadline=None, derandomize=True)
@example(plane="axial", tilt=(0.0, 1.52587890625e-05, 0.0), spacing=(1.0, 1.0, 0.6), centre=(0.0, 0.0, 1.5))
@given(
    plane=st.sampled_from(sorted(pacs.PLANES)),
    tilt=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.6, 6)] * 3),
    centre=st.tuples(*[st.floats(-9, 9)] * 3),
)
def test_resampling_is_that_of_simpleitk(
    plane: str, tilt: tuple[float, ...], spacing: tuple[float, ...], centre: tuple[float, ...]
):
    """SimpleITK 2.5 Resample, linear, 0 beyond the volume; both reach half a voxel beyond the outermost centres."""
    moving = np.random.default_rng(0).normal(100, 20, (9, 8, 5)).astype(np.float32)
    affine = pacs.affine_of(plane, (9, 8, 5), spacing, tilt=tilt, centre=centre)
    target = pacs.affine_of("axial", (10, 9, 7), (2.1, 1.9, 3.3))
    ours = resample_to(moving, Grid(moving.shape, affine), Grid((10, 9, 7), target), order=1)
    reference = itk_image(np.zeros((10, 9, 7)), target)
    theirs = SimpleITK.Resample(itk_image(moving, affine), reference, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    at = apply_affine(np.linalg.inv(affine) @ target, np.moveaxis(np.indices((10, 9, 7)), 0, -1))
    to_edge = np.minimum(np.abs(at + 0.5), np.abs(at - (np.array((9, 8, 5)) - 0.5))).min(axis=-1)
    decided = to_edge > 1e-4  # on the edge itself rounding says whether a point is inside
    np.testing.assert_allclose(ours[decided], SimpleITK.GetArrayFromImage(theirs).T[decided], atol=2e-3)


def test_a_series_on_another_grid_of_one_frame_is_resampled(tmp_path: Path):
    scans = [
        pacs.scan("axial", "t2", 1, tags=pacs.T2),
        pacs.scan("sagittal", "flair", 2, contrast=2, tags=pacs.FLAIR, centre=(0.3, 0.2, 0.1)),
    ]
    study = opened(pacs.export(tmp_path / "s", *scans), PAIR)
    theirs = SimpleITK.Resample(
        itk_image(scans[1].volume, scans[1].affine), itk_image(scans[0].volume, scans[0].affine)
    )
    np.testing.assert_allclose(study.images["FLAIR"], SimpleITK.GetArrayFromImage(theirs).T, atol=0.05)
    assert study.choices[1].placing.startswith("resampled from 24 x 20 x 6 at 2 x 2.5 x 5 mm, which covers ")


def test_the_same_voxels_in_another_plane_are_turned_not_interpolated(tmp_path: Path):
    cube: dict[str, Any] = {"shape": (8, 8, 8), "spacing": (2.0, 2.0, 2.0)}
    scans = [pacs.scan("axial", "t2", 1, tags=pacs.T2, **cube), pacs.scan("coronal", "f", 2, tags=pacs.FLAIR, **cube)]
    study = opened(pacs.export(tmp_path / "s", *scans), PAIR)
    np.testing.assert_array_equal(study.images["FLAIR"], study.images["T2"])
    assert study.choices[1].placing == ""


def test_another_frame_of_reference_is_refused(tmp_path: Path):
    scans = [
        pacs.scan("axial", name, n, tags=tags) for n, (name, tags) in enumerate((("t2", pacs.T2), ("f", pacs.FLAIR)))
    ]
    folder = pacs.export(tmp_path / "s", *scans)
    edit(folder, lambda data: setattr(data, "FrameOfReferenceUID", "1.2.3"), "f")
    line = refused(folder, PAIR)
    assert "different frames of reference" in line and "--register" in line
    assert opened(folder, ("FLAIR",)).grid.shape == pacs.SHAPE
    edit(folder, lambda data: delattr(data, "FrameOfReferenceUID"), "f")
    np.testing.assert_array_equal(*opened(folder, PAIR).images.values())


def test_where_a_ct_does_not_reach_is_air(tmp_path: Path):
    hounsfield = {"Modality": "CT", "RescaleIntercept": -1000, "RescaleSlope": 1}
    scans = [
        pacs.scan("axial", "pet", 1, tags={"Modality": "PT"}, shape=(30, 30, 8)),
        pacs.scan("axial", "ct", 2, contrast=1, tags=hounsfield, tilt=(3, 0, 0)),
    ]
    study = opened(pacs.export(tmp_path / "s", *scans), ("PET", "CT"))
    assert study.images["CT"][0, 0, 0] == -1000 and study.images["CT"].max() < 0


def test_series_that_hardly_meet_are_refused(tmp_path: Path):
    far = pacs.scan("axial", "f", 2, tags=pacs.FLAIR, centre=(0, 0, 27))
    folder = pacs.export(tmp_path / "s", pacs.scan("axial", "t2", 1, tags=pacs.T2), far)
    assert "it covers 17% of it, expected 25% or more" in refused(folder, PAIR)


def write_nifti(
    path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], qform: int = 1, sform: int = 1
) -> Path:
    image = nibabel.Nifti1Image(pacs.anatomy(affine, shape).astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nibabel.save(image, path)
    return path


def test_files_on_other_grids_of_one_world_are_resampled(tmp_path: Path):
    write_nifti(tmp_path / "T2.nii.gz", pacs.affine_of(), pacs.SHAPE)
    other = pacs.affine_of("sagittal", (30, 28, 12), centre=(0.3, 0.2, 0.1))
    write_nifti(tmp_path / "FLAIR.nii.gz", other, (30, 28, 12))
    study = opened(tmp_path, PAIR)
    assert study.choices[1].placing == "resampled from 30 x 28 x 12 at 2 x 2.5 x 5 mm"
    assert study.series is None and sorted(study.sources) == ["FLAIR.nii.gz", "T2.nii.gz"]
    theirs = SimpleITK.Resample(
        itk_image(pacs.anatomy(other, (30, 28, 12)), other), itk_image(study.images["T2"], pacs.affine_of())
    )
    np.testing.assert_allclose(study.images["FLAIR"], SimpleITK.GetArrayFromImage(theirs).T, atol=0.05)


def test_volume_files_come_in_a_zip_too(tmp_path: Path):
    inside = tmp_path / "inside" / "patient 7"
    inside.mkdir(parents=True)
    for name in PAIR:
        write_nifti(inside / f"{name}.nii.gz", pacs.affine_of(), pacs.SHAPE)
    archive = shutil.make_archive(str(tmp_path / "p7"), "zip", tmp_path / "inside")
    study = opened(Path(archive), PAIR)
    assert study.name == "p7" and list(study.sources) == ["T2.nii.gz", "FLAIR.nii.gz"]
    np.testing.assert_array_equal(study.images["T2"], pacs.anatomy(pacs.affine_of()))


def test_files_whose_headers_say_no_place_or_two_or_hardly_meet_are_refused(tmp_path: Path):
    write_nifti(tmp_path / "T2.nii.gz", pacs.affine_of(), pacs.SHAPE)
    other, shape = pacs.affine_of(shape=(30, 30, 8)), (30, 30, 8)
    write_nifti(tmp_path / "FLAIR.nii.gz", other, shape, qform=0, sform=0)
    assert "says no position (qform_code and sform_code are 0)" in refused(tmp_path, PAIR)
    write_nifti(tmp_path / "FLAIR.nii.gz", pacs.affine_of(shape=shape, centre=(0, 0, 30)), shape)
    assert "it covers" in refused(tmp_path, PAIR)
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), tmp_path / "FLAIR.nii.gz")
    assert "says no position (1 mm a voxel, from 0)" in refused(tmp_path, PAIR)
    image = nibabel.load(write_nifti(tmp_path / "FLAIR.nii.gz", other, shape))
    moved = other.copy()
    moved[0, 3] += 9
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "F.nii.gz")
    (tmp_path / "F.nii.gz").replace(tmp_path / "FLAIR.nii.gz")
    assert "says two positions (its qform and sform differ)" in refused(tmp_path, PAIR)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((8, 30, 30), np.float32)), str(tmp_path / "FLAIR.mha"))
    (tmp_path / "FLAIR.nii.gz").unlink()
    assert "says no position (1 mm a voxel, from 0)" in refused(tmp_path, PAIR)


def test_a_file_takes_the_place_of_a_series_in_the_same_world(tmp_path: Path):
    scans = [pacs.scan("axial", "t2", 1, tags=pacs.T2)]
    folder = pacs.export(tmp_path / "s", *scans)
    write_nifti(tmp_path / "f.nii.gz", pacs.affine_of(shape=(30, 30, 10)), (30, 30, 10))
    study = opened(folder, PAIR, chosen={"FLAIR": str(tmp_path / "f.nii.gz")})
    assert study.choices[1].taken == "f.nii.gz" and study.choices[1].placing.startswith("resampled from 30 x 30 x 10")
    assert study.sources["f.nii.gz"] == tmp_path / "f.nii.gz"


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz"])
def test_a_single_file_of_any_format_is_a_study_of_one_modality(tmp_path: Path, ending: str):
    path = tmp_path / f"patient 7{ending}"
    SimpleITK.WriteImage(itk_image(pacs.anatomy(pacs.affine_of()), pacs.affine_of()), str(path))
    study = opened(path, ("T2",))
    np.testing.assert_array_equal(study.images["T2"], pacs.anatomy(pacs.affine_of()))
    assert study.name == "patient-7" and study.choices[0].reason == "the run's only modality"
    assert len(study.sources) == (2 if ending == ".mhd" else 1)
    line = refused(path, PAIR)
    assert "its name does not tell which of T2, FLAIR it is" in line
    assert opened(path, PAIR, chosen={"FLAIR": path.name}).missing == ("T2",)


def test_a_file_of_several_channels_is_read_by_their_numbers(tmp_path: Path):
    affine = pacs.affine_of()
    channels = np.stack([pacs.anatomy(affine, contrast=c) for c in range(4)], axis=-1)
    image = nibabel.Nifti1Image(channels.astype(np.float32), affine)
    nibabel.save(image, tmp_path / "BRATS_003.nii.gz")
    for study in (tmp_path, tmp_path / "BRATS_003.nii.gz"):
        read = opened(study, ("FLAIR", "T1Gd"), channels={"FLAIR": 0, "T1Gd": 2})
        np.testing.assert_array_equal(read.images["T1Gd"], channels[..., 2])
        assert read.choices[1].taken == "BRATS_003.nii.gz, channel 2"
    assert "holds 4 channels" in refused(tmp_path, ("X",), channels={"X": 4})


def test_the_overlap_is_the_share_of_the_reference(tmp_path: Path):
    reference = Grid((10, 10, 10), np.diag([1.0, 1, 1, 1]))
    half = np.eye(4)
    half[0, 3] = 5
    assert overlap_of(reference, reference) == 1 and overlap_of(Grid((10, 10, 10), half), reference) == 0.5
    assert overlap_of(Grid((5, 5, 5), np.diag([2.0, 2, 2, 1])), reference) == 1
