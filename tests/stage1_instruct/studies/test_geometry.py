"""Files of one study lie on one grid, however their headers say it; where they do not, what differs is named."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.labels import LabelMapping, read_labels
from zeus_union.stage1_instruct.studies.nifti import onto_grid, read_volume

SHAPE = (5, 6, 7)
LABELS = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
MAPPING = LabelMapping.native({0: "background", 1: "a", 2: "b", 3: "c"})
PER_MM = {"mm": 1.0, "unknown": 1.0, "micron": 1000.0, "meter": 0.001}
AXES = [
    np.stack([order, flips], axis=1).astype(float)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]

orientations = st.sampled_from(AXES)
forms = st.sampled_from(["sform", "qform", "both"])
units = st.sampled_from(sorted(PER_MM))
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def affine_of(spacing: tuple[float, ...], turn: float, origin: float = 80.0) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [turn, -turn, 2 * turn], degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-origin, origin, origin / 3)
    return affine


def save(
    path: Path,
    volume: NDArray[np.generic],
    affine: NDArray[np.float64],
    orientation: NDArray[np.float64] = AXES[0],
    form: str = "both",
    unit: str = "mm",
) -> Path:
    """The volume with its axes in another order, its place said in one way or the other."""
    turned = nibabel.apply_orientation(volume, orientation)
    moved = affine @ nibabel.orientations.inv_ornt_aff(orientation, volume.shape)
    moved[:3] *= PER_MM[unit]
    image = nibabel.Nifti1Image(turned, moved)
    image.set_sform(moved if form != "qform" else None, 1 if form != "qform" else 0)
    image.set_qform(moved if form != "sform" else None, 1 if form != "sform" else 0)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@quick
@given(
    orientations, orientations, forms, forms, units, units, st.sampled_from([0.02, 0.4, 1.0, 6.0]), st.floats(-40, 40)
)
def test_labels_lie_on_their_image_whatever_the_order_of_axes_the_header_and_the_unit(
    tmp_path, of_image, of_label, image_form, label_form, image_unit, label_unit, side, turn
):
    # "unknown" is taken as mm, where a voxel of 20 micrometres is still plausible.
    affine = affine_of((side, side, 2.5 * side), turn)
    image = save(tmp_path / "image.nii", LABELS.astype(np.float32), affine, of_image, image_form, image_unit)
    label = save(tmp_path / "label.nii", LABELS, affine, of_label, label_form, label_unit)
    volume, grid = read_volume(image)
    np.testing.assert_array_equal(read_labels(label, grid, MAPPING, image), volume)
    np.testing.assert_allclose(sorted(grid.spacing), [side, side, 2.5 * side], rtol=1e-3)


@quick
@given(orientations, orientations, st.sampled_from([0.02, 0.4, 1.0, 6.0]), st.sampled_from([0, 1, 2]))
def test_half_a_voxel_off_is_another_place_at_any_size_of_voxel(tmp_path, of_image, of_label, side, axis):
    affine = affine_of((side, side, side), 10)
    image = save(tmp_path / "image.nii", LABELS.astype(np.float32), affine, of_image)
    shifted = affine.copy()
    shifted[axis, 3] += side / 2
    label = save(tmp_path / "label.nii", LABELS, shifted, of_label)
    with pytest.raises(UserError, match=r"different places: .*(origin|orientation).*--trust-voxels"):
        read_labels(label, read_volume(image)[1], MAPPING, image)


def test_labels_4_voxels_off_at_20_micrometres_are_refused(tmp_path: Path):
    affine = affine_of((0.02, 0.02, 0.02), 0)
    image = save(tmp_path / "image.nii", LABELS, affine)
    shifted = affine.copy()
    shifted[0, 3] += 4.5 * 0.02
    with pytest.raises(UserError, match="different places"):
        read_labels(save(tmp_path / "label.nii", LABELS, shifted), read_volume(image)[1], MAPPING, image)


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_an_affine_in_another_unit_that_the_header_does_not_say_is_one_line(tmp_path: Path, unit: str):
    affine = affine_of((1, 1, 3), 0)
    path = save(tmp_path / "image.nii", LABELS, affine, unit=unit)
    assert read_volume(path)[1].spacing == pytest.approx((1, 1, 3), rel=1e-5)
    image = nibabel.load(path)
    image.header.set_xyzt_units("unknown")
    nibabel.save(image, tmp_path / "silent.nii")
    with pytest.raises(UserError, match=r"silent.nii: its voxels are .* names no unit.*set_xyzt_units"):
        read_volume(tmp_path / "silent.nii")


def test_a_label_whose_header_was_lost_is_named_and_taken_by_trust_voxels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image = save(tmp_path / "image.nii", LABELS, affine_of((2, 2, 5), 0))
    label = save(tmp_path / "label.nii", LABELS, np.eye(4))
    grid = read_volume(image)[1]
    with pytest.raises(UserError) as refused:
        read_labels(label, grid, MAPPING, image)
    for said in ("label.nii (its header looks lost)", "spacing 1 x 1 x 1 against 2 x 2 x 5 mm", "origin (0, 0, 0)"):
        assert said in str(refused.value)
    remedy = str(refused.value).split("copy the header: ")[1].replace("corrected.nii.gz", str(tmp_path / "c.nii.gz"))
    exec(remedy)
    np.testing.assert_array_equal(read_labels(tmp_path / "c.nii.gz", grid, MAPPING, image), LABELS)
    np.testing.assert_array_equal(read_labels(label, grid, MAPPING, image, trust_voxels=True), LABELS)
    assert "label.nii is laid voxel on voxel" in capsys.readouterr().err


def test_trust_voxels_still_turns_what_the_header_places_rightly_and_refuses_another_shape(tmp_path: Path):
    affine = affine_of((1, 1, 1), 0)
    cube = np.random.default_rng(1).integers(0, 4, (5, 5, 5)).astype(np.uint8)
    image = save(tmp_path / "image.nii", cube, affine)
    grid = read_volume(image)[1]
    turned = save(tmp_path / "turned.nii", cube, affine, AXES[-1])
    np.testing.assert_array_equal(read_labels(turned, grid, MAPPING, image, trust_voxels=True), cube)
    with pytest.raises(UserError, match=r"has shape \(4, 5, 5\)"):
        read_labels(save(tmp_path / "small.nii", cube[1:], affine), grid, MAPPING, image, trust_voxels=True)


def test_a_data_set_is_read_with_trust_voxels_and_its_recipe_says_so(nnunet: Path):
    before = open_dataset("nnunet", nnunet)
    labels = before.load("phantom_001").labels
    path = nnunet / "labelsTr" / "phantom_001.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), np.eye(4)), path)
    with pytest.raises(UserError, match="--trust-voxels"):
        before.load("phantom_001")
    trusting = open_dataset("nnunet", nnunet, trust_voxels=True)
    np.testing.assert_array_equal(trusting.load("phantom_001").labels, labels)
    assert trusting.facts == {**before.facts, "trust_voxels": True}
    with pytest.raises(UserError, match="--trust-voxels"):
        open_dataset("chaos", nnunet, trust_voxels=True)


def test_a_channel_in_lps_beside_one_in_ras_is_turned(nnunet: Path):
    before = open_dataset("nnunet", nnunet).load("phantom_001")
    path = nnunet / "imagesTr" / "phantom_001_0002.nii.gz"
    image = nibabel.load(path)
    nibabel.save(image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]])), path)
    after = open_dataset("nnunet", nnunet).load("phantom_001")
    for modality, volume in before.images.items():
        np.testing.assert_array_equal(volume, after.images[modality])


@quick
@given(orientations)
def test_turning_moves_voxels_and_changes_none(tmp_path, orientation):
    affine = affine_of((1, 2, 3), 20)
    noise = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    _, grid = read_volume(save(tmp_path / "a.nii", noise, affine))
    volume, turned = read_volume(save(tmp_path / "b.nii", noise, affine, orientation))
    np.testing.assert_array_equal(onto_grid(volume, turned, tmp_path, grid, tmp_path), noise)


@pytest.mark.parametrize(("image", "mask"), [("mt1", "mt1_seg"), ("t1dir_t1w", "t1dir_t1w_seg-manual")])
def test_a_real_mask_turned_by_another_tool_is_the_same_mask(shared_data: Path, tmp_path: Path, image: str, mask: str):
    folder = shared_data / "spinal_cord_mt"
    _, grid = read_volume(folder / f"{image}.nii.gz")
    mapping = LabelMapping.native({0: "background", 1: "cord"})
    expected = read_labels(folder / f"{mask}.nii.gz", grid, mapping, folder / f"{image}.nii.gz")
    assert expected.any() and grid.orientation != "LPS"
    stored = nibabel.load(folder / f"{mask}.nii.gz")
    to_lps = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(stored.affine), nibabel.orientations.axcodes2ornt("LPS")
    )
    nibabel.save(stored.as_reoriented(to_lps), tmp_path / "lps.nii.gz")
    turned = read_labels(tmp_path / "lps.nii.gz", grid, mapping, folder / f"{image}.nii.gz")
    np.testing.assert_array_equal(turned, expected)


def test_nan_outside_the_body_is_background_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    volume = np.random.default_rng(0).uniform(10, 90, SHAPE).astype(np.float32)
    holes = np.zeros(SHAPE, bool)
    holes[0], holes[1, 0, 0], holes[1, 0, 1] = True, True, True
    broken = volume.copy()
    broken[0], broken[1, 0, 0], broken[1, 0, 1] = np.nan, -np.inf, np.inf
    read, _ = read_volume(save(tmp_path / "image.nii", broken, np.eye(4)))
    np.testing.assert_array_equal(read, np.where(holes, volume[~holes].min(), volume))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{holes.sum()} of {volume.size} voxels are NaN or infinite" in lines[0]
    broken[:3] = np.nan
    with pytest.raises(UserError, match="more than half"):
        read_volume(save(tmp_path / "image.nii", broken, np.eye(4)))
