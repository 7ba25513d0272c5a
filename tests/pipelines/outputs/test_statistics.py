"""Statistics are those of the voxels, in the patient."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tests.pipelines.outputs.studies import abdomen
from zeus_union.cache.grid import VIEWS, Grid
from zeus_union.pipelines.outputs.statistics import (
    ClassStatistics,
    statistics,
    statistics_csv,
    statistics_json,
    summary_lines,
    volume_text,
)
from zeus_union.pipelines.segment.segmentation import Segmentation


def test_a_box_measures_what_it_is() -> None:
    """10 x 6 x 4 voxels of 2 x 3 x 4 mm; x runs to the left from 10 mm right."""
    liver, spleen, kidney = statistics(abdomen())
    assert (liver.label, liver.name, liver.voxels, liver.volume_ml) == (1, "liver", 240, 5.76)
    assert liver.extent_mm == (20.0, 18.0, 16.0)
    assert liver.centroid_ras_mm == (10 - 2 * 6.5, -20 + 3 * 5.5, 30 + 4 * 5.5)
    assert (liver.components, liver.largest_component_ml, liver.slices) == (1, 5.76, (4, 7, 4))
    assert liver.intensity["T1"] == (100.0, 0.0)
    inside = abdomen().images["T2"][2:12, 3:9, 4:8].astype(np.float64)
    assert liver.intensity["T2"] == pytest.approx((inside.mean(), inside.std()), rel=1e-7)
    assert (kidney.voxels, kidney.components, kidney.largest_component_ml) == (5, 2, 0.096)
    assert kidney.slices == (4, 11, 2)
    assert (spleen.voxels, spleen.volume_ml, spleen.components) == (0, 0.0, 0)
    assert (spleen.extent_mm, spleen.centroid_ras_mm, spleen.slices, spleen.largest_component_ml) == (None,) * 4
    assert spleen.intensity == {"T1": None, "T2": None}


def test_slices_are_counted_in_the_view_from_its_first() -> None:
    """Coronal slices run to the back: row 3 of 16 from the back is slice 12."""
    assert statistics(abdomen("coronal"))[0].slices == (16 - 9, 16 - 4, 6)
    assert statistics(abdomen("sagittal"))[0].slices == (20 - 12, 20 - 3, 10)


def test_corners_join_components() -> None:
    study = abdomen()
    mask = np.zeros_like(study.mask)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = 1
    (liver, *_) = statistics(replace(study, mask=mask))
    assert liver.components == 2 and liver.largest_component_ml == 0.048


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    flip=st.booleans(),
    view=st.sampled_from(sorted(VIEWS)),
    seed=st.integers(0, 10**6),
)
def test_in_any_orientation_they_are_those_of_every_voxel_s_box(
    angles: tuple[float, float, float], flip: bool, view: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    shear = np.eye(3) + np.triu(random.uniform(-0.2, 0.2, (3, 3)), 1)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", angles, True).as_matrix() @ shear * (0.5, 1.5, 4) * (1, 1, -1 if flip else 1)
    )
    affine[:3, 3] = random.uniform(-99, 99, 3)
    mask = (random.random((5, 4, 6)) < 0.1).astype(np.uint8) * random.integers(1, 3, (5, 4, 6)).astype(np.uint8)
    image = random.normal(size=mask.shape).astype(np.float32)
    study = Segmentation("s", ("a", "b"), mask, Grid((5, 4, 6), affine, view), {"M": image})
    for row in statistics(study):
        index = np.argwhere(mask == row.label)
        if not len(index):
            assert row.centroid_ras_mm is None
            continue
        offsets = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, -1).T
        corners = (index[:, None] + offsets).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(row.extent_mm, np.ptp(corners, axis=0), atol=2e-3)
        np.testing.assert_allclose(row.centroid_ras_mm, corners.mean(axis=0), atol=2e-3)
        assert row.volume_ml == pytest.approx(len(index) * 3e-3, rel=1e-6)
        numbers = np.flatnonzero((study.grid.to_slices(mask) == row.label).any(axis=(1, 2)))
        assert row.slices == (numbers[0], numbers[-1], len(numbers))


def test_json_has_definitions_both_coordinate_systems_and_no_nan() -> None:
    study = abdomen(missing=("FLAIR",), segmented=tuple(range(0, 12, 2)), runs=("run-a 12ab",))
    content = json.loads(json.dumps(statistics_json(study, statistics(study)), allow_nan=False))
    assert (content["modalities"], content["missing_modalities"]) == (["T1", "T2"], ["FLAIR"])
    assert content["grid"]["segmented_slices"] == 6 and content["grid"]["slices"] == 12
    assert content["grid"]["voxel_ml"] == pytest.approx(0.024)
    liver, spleen, _ = content["classes"]
    x, y, z = liver["centroid_ras_mm"]
    assert liver["centroid_lps_mm"] == [-x, -y, z]
    assert liver["slices"] == {"first": 4, "last": 7, "number": 4}
    assert liver["extent_mm"] == {"right_left": 20.0, "anterior_posterior": 18.0, "superior_inferior": 16.0}
    assert spleen["volume_ml"] == 0 and spleen["centroid_ras_mm"] is spleen["slices"] is spleen["extent_mm"] is None
    explained = {key for key in liver if key not in ("label", "class")}
    assert explained == set(content["definitions"])
    assert "ensemble" not in content


def test_an_ensemble_s_agreement_is_among_them_with_what_it_means() -> None:
    study = abdomen(agreement={"liver": 0.97, "spleen": None, "left kidney": 0.4})
    ensemble = statistics_json(study, statistics(study))["ensemble"]
    assert ensemble["agreement"] == {"liver": 0.97, "spleen": None, "left kidney": 0.4}
    assert "mean DSC of the pairs" in ensemble["definitions"]["agreement"]


def test_csv_is_one_row_a_class_in_numbers() -> None:
    study = abdomen()
    named = replace(study, classes=('a "b", c', "spleen", "脾\nx"))
    rows = list(csv.DictReader(io.StringIO(statistics_csv(statistics(named), tuple(named.images)))))
    assert [row["class"] for row in rows] == list(named.classes)
    assert all(float(value) is not None for name, value in rows[0].items() if name != "class")
    assert rows[1]["T1_mean"] == rows[1]["first_slice"] == rows[1]["centroid_ras_x_mm"] == ""
    assert (rows[1]["voxels"], rows[1]["volume_ml"]) == ("0", "0.0")


def test_volumes_are_said_with_the_digits_they_deserve() -> None:
    def of(volume_ml: float) -> str:
        row = ClassStatistics(1, "liver", 1 if volume_ml else 0, volume_ml, 1, volume_ml, None, None, None, {})
        return volume_text(row)

    assert [of(v) for v in (1412.4, 130.97, 12.34, 4.407, 0.0421)] == [
        "1,412 ml",
        "131 ml",
        "12.3 ml",
        "4.41 ml",
        "0.0421 ml",
    ]
    assert of(0) == "0 ml, nothing predicted"
    assert summary_lines(statistics(abdomen())) == [
        "liver 5.76 ml",
        "spleen 0 ml, nothing predicted",
        "left kidney 0.12 ml",
    ]


def test_255_classes_and_a_single_slice_are_measured() -> None:
    shape = (51, 5, 1)
    mask = (np.arange(255).reshape(shape) + 1).astype(np.uint8)
    names = tuple(f"class {label}" for label in range(1, 256))
    rows = statistics(Segmentation("s", names, mask, Grid(shape, np.eye(4)), {"M": mask.astype(np.float32)}))
    assert [row.voxels for row in rows] == [1] * 255
    assert [row.intensity["M"] for row in rows] == [(float(label), 0.0) for label in range(1, 256)]
    assert all(row.slices == (0, 0, 1) for row in rows)
