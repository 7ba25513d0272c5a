"""Registration moves a modality onto the reference, the same twice, or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.pipelines.intake import pacs
from tests.pipelines.intake.test_study import edit, opened, refused
from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.pipelines.intake.register import moved_grid, register_rigidly

SHAPE, SPACING = (40, 36, 20), (1.5, 1.6, 2.4)
GRID = Grid(SHAPE, pacs.affine_of("axial", SHAPE, SPACING))


def image(contrast: int) -> NDArray[np.float32]:
    return pacs.anatomy(GRID.affine, SHAPE, contrast).astype(np.float32)


def moved_by(degrees: tuple[float, float, float], mm: tuple[float, float, float]) -> NDArray[np.float64]:
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = mm
    return motion


def test_a_moved_modality_is_found_to_a_voxel_and_the_same_twice():
    truth = moved_by((4, -6, 5), (5, -4, 3))
    moving_grid = Grid(SHAPE, truth @ GRID.affine)
    results = [register_rigidly(image(2), moving_grid, image(1), GRID, "a onto b") for _ in range(2)]
    np.testing.assert_array_equal(results[0].affine, results[1].affine)
    points = GRID.affine @ np.array([[x, y, z, 1] for x in (8, 32) for y in (8, 28) for z in (4, 16)]).T
    error = np.linalg.norm((results[0].affine @ points - truth @ points)[:3], axis=0)
    assert error.mean() < 2.4
    assert results[0].shift_mm == pytest.approx(np.linalg.norm(truth[:3, 3]), abs=1.5)
    assert moved_grid(moving_grid, results[0]).same_as(GRID, tolerance_mm=4)


@pytest.mark.slow
@pytest.mark.parametrize(("degrees", "mm"), [((5, -8, 3), (6, -10, 4)), ((0, 0, 20), (20, 0, 0))])
def test_real_sequences_of_a_head_are_found(
    shared_data: Path, degrees: tuple[float, float, float], mm: tuple[float, float, float]
):
    image = nibabel.load(shared_data / "Task01_BrainTumour" / "imagesTs" / "BRATS_003.nii.gz")
    flair, t1gd = (np.ascontiguousarray(image.dataobj[::3, ::3, ::3, channel], dtype=np.float32) for channel in (0, 2))
    grid = Grid(flair.shape, image.affine @ np.diag([3, 3, 3, 1]))
    truth = moved_by(degrees, mm)
    motion = register_rigidly(t1gd, Grid(flair.shape, truth @ grid.affine), flair, grid, "T1Gd onto FLAIR")
    points = grid.affine @ np.array([[x, y, z, 1] for x in (20, 60) for y in (20, 60) for z in (10, 40)]).T
    assert np.linalg.norm((motion.affine @ points - truth @ points)[:3], axis=0).max() < 1.5


@pytest.mark.parametrize("case", ["noise", "empty"])
def test_images_without_anything_in_common_are_refused(case: str):
    moving = (
        np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) if case == "noise" else np.zeros(SHAPE, "f4")
    )
    with pytest.raises(UserError, match="registration") as error:
        register_rigidly(moving, GRID, image(1), GRID, "a onto b")
    assert "\n" not in str(error.value)


def test_another_frame_of_reference_is_registered_where_the_user_asks(tmp_path: Path):
    options = {"shape": SHAPE, "spacing": SPACING}
    scans = [
        pacs.scan("axial", "t2", 1, contrast=1, tags=pacs.T2, **options),
        pacs.scan("axial", "f", 2, contrast=2, tags={**pacs.FLAIR, "FrameOfReferenceUID": "1.2.3"}, **options),
    ]
    folder = pacs.export(tmp_path / "s", *scans)

    def shift(data: object) -> None:
        data.ImagePositionPatient = [float(v) + 40 for v in data.ImagePositionPatient]  # type: ignore[attr-defined]

    edit(folder, shift, "f")
    assert "--register" in refused(folder, ("T2", "FLAIR"))
    study = opened(folder, ("T2", "FLAIR"), register=True)
    assert study.choices[1].placing.startswith("registered, moved by 69")
    inside = scans[0].volume > 0
    outside = pacs.anatomy(scans[0].affine, SHAPE, 2)[inside]
    assert np.corrcoef(study.images["FLAIR"][inside], outside)[0, 1] > 0.8
