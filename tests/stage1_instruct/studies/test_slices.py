"""Studies become pictures without losing a voxel's place."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.nearest import from_square
from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.intensity import Window
from zeus_union.stage1_instruct.studies.slices import study_to_slices
from zeus_union.stage1_instruct.studies.study import Study

RAS = Grid((30, 40, 10), np.diag([1.0, 1.0, 4.0, 1.0]))


def study(volume: np.ndarray, labels: np.ndarray | None = None, grid: Grid = RAS) -> Study:
    return Study("a", grid, {"T1": volume.astype(np.float32), "T2": 2 * volume.astype(np.float32)}, labels)


def test_one_intensity_scale_for_the_whole_volume_whatever_the_step():
    volume = np.random.default_rng(0).gamma(2, 100, RAS.shape)
    every, third = study_to_slices(study(volume)), study_to_slices(study(volume), step=3)
    np.testing.assert_array_equal(every.images[::3], third.images)
    assert every.images.min() == 0 and every.images.max() == 255


def test_slices_without_any_signal_are_left_out_unless_labelled():
    volume = np.zeros(RAS.shape)
    volume[5:20, 5:20, 3:6] = 100 + np.arange(15)[:, None, None]
    labels = np.zeros(RAS.shape, np.uint8)
    labels[3, 3, 8] = 1
    assert study_to_slices(study(volume)).numbers.tolist() == [3, 4, 5]
    assert study_to_slices(study(volume, labels)).numbers.tolist() == [3, 4, 5, 8]
    assert len(study_to_slices(study(volume), skip_empty=False).numbers) == 10


def test_a_study_that_shows_nothing_is_refused_by_name():
    empty = study(np.full(RAS.shape, 7))
    with pytest.raises(UserError, match=r"a: nothing to see in 10 slices taken of 10"):
        study_to_slices(empty)
    assert not study_to_slices(empty, skip_empty=False).images.any()


def test_pictures_for_sam_come_from_the_native_resolution():
    volume = np.random.default_rng(0).gamma(2, 100, RAS.shape)
    pictures = study_to_slices(study(volume))
    large = pictures.images_at(1024)
    assert large.shape == (10, 2, 1024, 1024)
    np.testing.assert_array_equal(pictures.images_at(256), pictures.images)
    back = from_square(large, pictures.grid.slice_shape[1:], pictures.grid.slice_spacing[1:])
    np.testing.assert_array_equal(back, pictures.native_images)


def test_a_study_without_labels_has_no_masks():
    pictures = study_to_slices(study(np.random.default_rng(0).gamma(2, 100, RAS.shape)))
    assert pictures.masks is None and pictures.native_masks is None and pictures.modality_masks is None


def test_real_tumour_masks_survive_the_way_to_256_and_back(shared_data: Path):
    dataset = open_dataset("msd-brain", shared_data / "Task01_BrainTumour")
    for subject in ("BRATS_001", "BRATS_002"):
        loaded = dataset.load(subject)
        pictures = study_to_slices(loaded)
        native = np.zeros(loaded.grid.slice_shape, np.uint8)
        native[pictures.numbers] = from_square(
            pictures.masks, loaded.grid.slice_shape[1:], loaded.grid.slice_spacing[1:]
        )
        back = loaded.grid.from_slices(native)
        overlap = 2 * (back & loaded.labels).sum() / (back.sum() + loaded.labels.sum())
        assert overlap > 0.97


@pytest.mark.parametrize(("view", "shape"), [(None, (60, 40, 50)), ("axial", (40, 50, 60)), ("coronal", (50, 40, 60))])
def test_a_sagittal_series_is_cut_into_sagittal_slices_unless_another_view_is_asked_for(
    view: str | None, shape: tuple[int, ...]
):
    grid = Grid((60, 50, 40), np.diag([4.0, 0.8, 0.8, 1.0]))
    volume = np.random.default_rng(0).gamma(2, 100, grid.shape)
    labels = np.random.default_rng(1).integers(0, 3, grid.shape).astype(np.uint8)
    pictures = study_to_slices(study(volume, labels, grid), view=view)
    assert pictures.native_images.shape == (shape[0], 2, *shape[1:])
    assert pictures.grid.view == (view or "sagittal")
    np.testing.assert_array_equal(pictures.grid.from_slices(pictures.native_masks), labels)


def test_slices_with_stray_voxels_only_are_empty():
    volume = np.zeros(RAS.shape)
    volume[5:20, 5:20, 3:6] = 100 + np.arange(15)[:, None, None]
    volume[[0, 29, 12], [0, 39, 20], [0, 9, 8]] = [-0.001, 4000, 5]
    assert study_to_slices(study(volume)).numbers.tolist() == [3, 4, 5]


def test_a_window_decides_the_grey_values_of_its_modality_alone():
    volume = np.random.default_rng(0).uniform(-1000, 1000, RAS.shape)
    with_window = study_to_slices(study(volume), windows={"T1": Window(40, 400)})
    without = study_to_slices(study(volume))
    expected = np.rint(np.clip((RAS.to_slices(volume) + 160) / 400, 0, 1) * 255)
    assert np.abs(with_window.native_images[:, 0] - expected).max() <= 1
    np.testing.assert_array_equal(with_window.native_images[:, 1], without.native_images[:, 1])
    with pytest.raises(UserError, match=r"a: T1 has values from .* give --window T1=LEVEL,WIDTH"):
        study_to_slices(study(volume), windows={"T1": Window(5000, 400)})


def test_real_sagittal_spine_is_seen_axially(shared_data: Path):
    image = nibabel.load(shared_data / "spinal_cord_mt" / "t2dir_t2.nii.gz")
    grid = Grid(image.shape, image.affine)
    assert grid.orientation == "PSR"
    slices = grid.to_slices(np.asarray(image.dataobj))
    assert slices.shape == (55, 60, 52)  # superior, posterior, left
    np.testing.assert_array_equal(grid.from_slices(slices), np.asarray(image.dataobj))
