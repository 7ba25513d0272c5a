"""Label values: whole numbers in any dtype, nnU-Net's regions as classes, ignored voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.cache.layout import IGNORE
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.label_table import map_labels, read_label_table
from zeus_union.stage1_instruct.studies.labels import LabelMapping, read_labels

SHAPE = (4, 5, 3)
GRID = Grid(SHAPE, np.eye(4))
MAPPING = LabelMapping.native({0: "background", 1: "a", 2: "b", 7: "c"})
VALUES = np.random.default_rng(0).choice([0, 1, 2, 7], SHAPE)
CLASSES = MAPPING.apply(VALUES.astype(np.uint8))

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def write(path: Path, values: np.ndarray, slope: float = 1.0, offset: float = 0.0) -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4), dtype=values.dtype)
    image.header.set_slope_inter(slope, offset)
    if slope == 1.0 and not offset:
        nibabel.save(image, path)
        return path
    with path.open("wb") as file:  # nibabel would write values / slope; here the stored numbers are given
        header = image.header.copy()
        header.write_to(file)
        file.write(values.tobytes(order="F"))
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.sampled_from(["<", ">"]), st.floats(-9e-4, 9e-4))
def test_whole_numbers_are_labels_in_every_dtype_and_byte_order(tmp_path, dtype, order, noise):
    values = VALUES + noise if dtype[0] == "f" else VALUES
    path = write(tmp_path / "label.nii", values.astype(order + dtype))
    np.testing.assert_array_equal(read_labels(path, GRID, MAPPING, path), CLASSES)


@pytest.mark.parametrize("factor", [0.99999994, 1.00002])
def test_nearly_whole_numbers_are_labels(tmp_path: Path, factor: float):
    path = write(tmp_path / "label.nii", (VALUES * factor).astype(np.float32))
    np.testing.assert_array_equal(read_labels(path, GRID, MAPPING, path), CLASSES)


@pytest.mark.parametrize(("slope", "offset"), [(1.00001, 0.0), (1.0, 1e-4), (0.99999994, 0.0)])
def test_labels_that_a_header_rescales_to_nearly_whole_numbers_are_labels(tmp_path: Path, slope: float, offset: float):
    path = write(tmp_path / "label.nii", VALUES.astype(np.int16), slope, offset)
    assert not np.array_equal(np.asarray(nibabel.load(path).dataobj), VALUES)
    np.testing.assert_array_equal(read_labels(path, GRID, MAPPING, path), CLASSES)


def test_labels_that_a_header_rescales_to_fractions_are_one_line(tmp_path: Path):
    path = write(tmp_path / "label.nii", VALUES.astype(np.int16), 0.25)
    with pytest.raises(UserError, match=r"label.nii holds label values 0.25, 0.5, 1.75 in \d+ voxels"):
        read_labels(path, GRID, MAPPING, path)


def test_values_between_and_beyond_and_nan_are_refused(tmp_path: Path):
    for wrong in (1.01, 3, 255, 300, -1, np.nan, np.inf):
        values = VALUES.astype(np.float32)
        values[0, 0, 0] = wrong
        path = write(tmp_path / "label.nii", values)
        with pytest.raises(UserError, match=rf"label values {wrong:g} in 1 voxels"):
            read_labels(path, GRID, MAPPING, path)


def mapping_of(labels: dict[str, Any], how: str = "default") -> LabelMapping:
    root = Path("data")
    return map_labels(root, read_label_table(root, labels), how)


BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4}


def test_regions_within_one_another_become_classes_that_share_no_voxel(capsys: pytest.CaptureFixture[str]):
    mapping = mapping_of(BRATS, "regions")
    assert mapping.classes == ("whole tumor", "tumor core", "enhancing tumor")
    assert mapping.values == {0: 0, 1: 1, 2: 2, 3: 3, 4: IGNORE}
    assert "class whole tumor: only values 1" in capsys.readouterr().err


def test_regions_are_asked_for_or_merged_never_guessed():
    for how in ("default", "native"):
        with pytest.raises(UserError, match=r"whole tumor is a region.*--labels regions.*--labels binary"):
            mapping_of(BRATS, how)
    merged = mapping_of(BRATS, "binary")
    assert merged.classes == ("whole tumor",) and merged.values == {0: 0, 1: 1, 2: 1, 3: 1, 4: IGNORE}


def test_regions_that_no_label_map_can_hold_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=r"regions (a and b|b and a) overlap and neither lies within the other"):
        mapping_of({"background": 0, "a": [1, 2], "b": [2, 3]}, "regions")
    with pytest.raises(UserError, match="labels a and b are both 1/2"):
        mapping_of({"background": 0, "a": [1, 2], "b": [2, 1]}, "regions")
    assert mapping_of({"background": 0, "both": [1, 2], "a": 1, "b": 2}, "regions").classes == ("a", "b")
    assert "region both is all in smaller regions" in capsys.readouterr().err


@settings(max_examples=100, deadline=None)
@given(st.permutations([1, 2, 3, 4, 5, 6]), st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True))
def test_nested_regions_are_the_unions_of_their_classes(values, cuts):
    regions = {f"r{cut}": values[:cut] for cut in sorted(cuts, reverse=True)}
    mapping = mapping_of({"background": 0, **regions}, "regions")
    for name, inside in regions.items():
        within = {mapping.classes.index(other) + 1 for other in regions if set(regions[other]) <= set(inside)}
        assert {value for value, label in mapping.values.items() if label in within} == set(inside), name


def test_plain_labels_are_the_same_classes_under_regions():
    plain = {"background": 0, "liver": 1, "spleen": 3}
    assert mapping_of(plain, "regions") == mapping_of(plain) == LabelMapping(("liver", "spleen"), {0: 0, 1: 1, 3: 2})


def test_ignored_voxels_of_a_data_set_are_ignored(nnunet: Path):
    path = nnunet / "dataset.json"
    values = json.loads(path.read_text())
    values["labels"]["ignore"] = 5
    path.write_text(json.dumps(values))
    label = nnunet / "labelsTr" / "phantom_001.nii.gz"
    image = nibabel.load(label)
    labels = np.asarray(image.dataobj).copy()
    labels[:4] = 5
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), label)
    dataset = open_dataset("nnunet", nnunet)
    assert "ignore" not in dataset.card.classes and dataset.facts["labels"]["5"] == IGNORE
    read = dataset.load("phantom_001").labels
    assert (read[:4] == IGNORE).all() and read[4:].max() <= len(dataset.card.classes)
