"""nnU-Net's `dataset` key and splits_final.json are followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.splits import read_splits

SUBJECTS = {case: case for case in "abcdef"}


def write(path: Path, splits: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(splits))
    return path


def split(train: str, val: str) -> dict[str, list[str]]:
    return {"train": list(train), "val": list(val)}


TWO = [{"train": ["phantom_001"], "val": ["phantom_002"]}, {"train": ["phantom_002"], "val": ["phantom_001"]}]
FOLDS = {"phantom_002": 0, "phantom_001": 1}


@pytest.mark.parametrize("place", ["raw", "beside", "above", "given"])
def test_splits_are_found_where_nnunet_keeps_them_and_said(
    nnunet: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
):
    raw = tmp_path / "nnUNet_raw" / "Dataset501_X"
    raw.parent.mkdir()
    nnunet.rename(raw)
    folder = {
        "raw": raw,
        "beside": tmp_path / "nnUNet_raw" / "nnUNet_preprocessed" / raw.name,
        "above": tmp_path / "nnUNet_preprocessed" / raw.name,
        "given": tmp_path / "mine",
    }[place]
    path = write(folder / "splits_final.json", TWO)
    dataset = open_dataset("nnunet", raw, splits=path if place == "given" else None)
    assert dataset.folds == FOLDS
    assert f"folds from {path}" in capsys.readouterr().err


def test_without_splits_the_cache_draws_the_folds(nnunet: Path):
    assert open_dataset("nnunet", nnunet).folds is None


def test_splits_name_cases_as_the_files_do(nnunet: Path):
    for path in sorted(nnunet.rglob("phantom_001*.nii.gz")):
        path.rename(path.with_name(path.name.replace("phantom_001", "pät 1")))
    text = json.dumps(TWO).replace("phantom_001", "pa\\u0308t 1")  # written by macOS, with the accent apart
    (nnunet / "splits_final.json").write_text(text)
    assert open_dataset("nnunet", nnunet).folds == {"phantom_002": 0, "paet-1": 1}


def test_cases_that_no_fold_tests_are_never_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "s.json", [split("abcd", "e"), split("abce", "dz")])
    assert read_splits(path, SUBJECTS) == {"e": 0, "d": 1, "a": -1, "b": -1, "c": -1, "f": -1}
    said = capsys.readouterr().err
    assert "2 of 6 labelled subjects tested" in said and "do not exist here: z" in said and "fold 0: f" in said


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([split("abc", "ad")], "fold 0 trains on and tests a"),
        ([split("bc", "a"), split("bc", "a")], "a is tested in folds 0 and 1"),
        ([split("xy", "z")], "tests none of the data set's cases"),
        ([], "expected a list of folds"),
        ({"train": [], "val": []}, "expected a list of folds"),
        ([{"train": ["a"]}], "expected a list of folds"),
        ([{"train": [1], "val": ["a"]}], "expected a list of folds"),
    ],
)
def test_splits_that_cannot_be_followed_are_one_line(tmp_path: Path, splits: Any, said: str):
    with pytest.raises(UserError, match=said):
        read_splits(write(tmp_path / "s.json", splits), SUBJECTS)


def test_a_splits_file_that_is_not_there_or_no_json_is_one_line(nnunet: Path, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        open_dataset("nnunet", nnunet, splits=tmp_path / "nowhere.json")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_dataset("nnunet", nnunet, splits=tmp_path / "s.json")


def test_a_cache_has_the_folds_of_the_splits_and_refuses_others(
    nnunet: Path, tmp_path: Path, tiny_parts: dict[str, str]
):
    models = load_models(load_profile("lite", tiny_parts))
    options = BuildOptions(tmp_path / "c.h5", ("slices",), slice_step=6)
    dataset = open_dataset("nnunet", nnunet, modalities=("T2-SPIR",), splits=write(tmp_path / "s.json", TWO))
    build_cache(dataset, models, options)
    with Cache(options.out) as cache:
        assert {cache.subjects[row["subject"]]: row["fold"] for row in cache.rows} == FOLDS
    build_cache(dataset, models, options)
    other = write(tmp_path / "t.json", TWO[::-1])
    with pytest.raises(UserError, match=r"started with other folds \(phantom_001 1 -> 0, phantom_002 0 -> 1\)"):
        build_cache(open_dataset("nnunet", nnunet, modalities=("T2-SPIR",), splits=other), models, options)


def test_an_unlabelled_subject_takes_no_place_in_the_drawing(nnunet: Path):
    (nnunet / "imagesTs").mkdir()
    for path in (nnunet / "imagesTr").glob("phantom_002*"):
        path.rename(nnunet / "imagesTs" / path.name)
    assert open_dataset("nnunet", nnunet).labelled == {"phantom_001": "phantom_001"}


def explicit(nnunet: Path, tmp_path: Path) -> Path:
    """The phantoms as files elsewhere that dataset.json names."""
    root = tmp_path / "explicit"
    root.mkdir()
    values = json.loads((nnunet / "dataset.json").read_text())
    values["dataset"] = {
        "first": {
            "images": [f"../nnunet/imagesTr/phantom_001_{channel:04d}.nii.gz" for channel in range(3)],
            "label": str(nnunet / "labelsTr" / "phantom_001.nii.gz"),
        }
    }
    (root / "dataset.json").write_text(json.dumps(values))
    return root


def test_the_files_that_dataset_json_names_are_read(nnunet: Path, tmp_path: Path):
    expected = open_dataset("nnunet", nnunet).load("phantom_001")
    dataset = open_dataset("nnunet", explicit(nnunet, tmp_path))
    assert dataset.card.subjects == ("first",)
    study = dataset.load("first")
    np.testing.assert_array_equal(study.labels, expected.labels)
    for modality, image in expected.images.items():
        np.testing.assert_array_equal(study.images[modality], image)
    assert len(study.sources) == 4 and not any(str(tmp_path) in name for name in study.sources)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"images": ["a.nii.gz"], "label": "l.nii.gz"}, "first of dataset has 1 image for 3 channels"),
        ({"images": ["a", "b", "c"]}, "first of dataset needs 'images'"),
        ({"images": "a", "label": "l"}, "first of dataset needs 'images'"),
        ("a", "first of dataset needs 'images'"),
    ],
)
def test_a_dataset_key_that_cannot_be_followed_is_one_line(nnunet: Path, tmp_path: Path, entry: Any, said: str):
    root = explicit(nnunet, tmp_path)
    values = json.loads((root / "dataset.json").read_text())
    values["dataset"]["first"] = entry
    (root / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        open_dataset("nnunet", root)


def test_splits_are_an_option_of_build_cache(nnunet: Path, tmp_path: Path):
    arguments = [
        "build-cache",
        "--dataset",
        "nnunet",
        "--data-root",
        str(nnunet),
        "--splits",
        str(tmp_path / "no.json"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "no.json does not exist" in result.stderr
