"""A NIfTI file or a dataset.json that is not what it should be is refused by name; none is read wrongly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.nifti import read_volume


def edit(folder: Path, **values: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def image_of(folder: Path) -> Path:
    return folder / "imagesTr" / "phantom_001_0000.nii.gz"


def test_a_flipped_byte_in_a_compressed_volume_is_found(nnunet: Path):
    path = image_of(nnunet)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for place in random.integers(20, len(whole), 30):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"phantom_001_0000.nii.gz cannot be read as NIfTI"):
            read_volume(path)


def test_a_volume_cut_anywhere_is_named(nnunet: Path, tmp_path: Path):
    whole = image_of(nnunet).read_bytes()
    for name, stored in (("cut.nii.gz", whole), ("cut.nii", gzip.decompress(whole))):
        path = tmp_path / name
        for length in (0, 1, 100, 347, 400, len(stored) // 2, len(stored) - 1):
            path.write_bytes(stored[:length])
            with pytest.raises(UserError, match=name):
                read_volume(path)


def test_a_damaged_nifti_header_is_an_error_or_a_volume_never_a_traceback(nnunet: Path, tmp_path: Path):
    whole, random = gzip.decompress(image_of(nnunet).read_bytes()), np.random.default_rng(0)
    path = tmp_path / "damaged.nii"
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[random.integers(352)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            volume, grid = read_volume(path)
        except UserError as error:
            assert "damaged.nii" in str(error)
        else:
            assert volume.shape == grid.shape and np.isfinite(volume).all()


def test_a_header_without_a_usable_affine_is_named(nnunet: Path):
    path = image_of(nnunet)
    image = nibabel.load(path)
    image.set_sform(np.zeros((4, 4)), 1)
    nibabel.save(image, path)
    with pytest.raises(UserError, match=r"phantom_001_0000.nii.gz: the affine is not an invertible"):
        open_dataset("nnunet", nnunet).load("phantom_001")


def test_complex_voxels_are_refused(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.complex64), np.eye(4)), tmp_path / "k.nii")
    with pytest.raises(UserError, match=r"k.nii holds complex numbers"):
        read_volume(tmp_path / "k.nii")


def test_nan_in_one_msd_channel_harms_only_who_wants_it(msd: Path):
    path = msd / "imagesTr" / "phantom_001.nii.gz"
    image = nibabel.load(path)
    volume = np.asarray(image.dataobj, dtype=np.float32)
    volume[..., :7, 1] = np.inf
    nibabel.save(nibabel.Nifti1Image(volume, image.affine), path)
    with pytest.raises(
        UserError, match=r"phantom_001.nii.gz, modality T1-DUAL-out: 114688 of 196608 voxels.*--modalities"
    ):
        open_dataset("msd", msd).load("phantom_001")
    assert list(open_dataset("msd", msd, modalities=("T2-SPIR",)).load("phantom_001").images) == ["T2-SPIR"]


def test_label_and_image_of_different_shape_are_both_named(msd: Path):
    path = msd / "labelsTr" / "phantom_001.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), path)
    with pytest.raises(UserError, match=r"labelsTr.*\(127, 128, 12\).*imagesTr.*\(128, 128, 12\)"):
        open_dataset("msd", msd).load("phantom_001")


def test_whole_numbers_in_a_float_label_file_are_labels(nnunet: Path):
    before = open_dataset("nnunet", nnunet).load("phantom_001").labels
    path = nnunet / "labelsTr" / "phantom_001.nii.gz"
    image = nibabel.load(path)
    labels = np.asarray(image.dataobj, dtype=np.float64)
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    np.testing.assert_array_equal(open_dataset("nnunet", nnunet).load("phantom_001").labels, before)
    nibabel.save(nibabel.Nifti1Image(labels + 0.5, image.affine), path)
    with pytest.raises(UserError, match=r"label values 0.5, 1.5"):
        open_dataset("nnunet", nnunet).load("phantom_001")


def test_missing_files_are_named(nnunet: Path):
    (nnunet / "imagesTr" / "phantom_001_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"phantom_001_0001.nii.gz is missing"):
        open_dataset("nnunet", nnunet).load("phantom_001")
    (nnunet / "labelsTr" / "phantom_002.nii.gz").unlink()
    with pytest.raises(UserError, match=r"labelsTr/phantom_002.nii.gz is missing"):
        open_dataset("nnunet", nnunet).load("phantom_002")


def test_uncompressed_files_are_read_where_dataset_json_says_so(nnunet: Path):
    before = open_dataset("nnunet", nnunet).load("phantom_001")
    edit(nnunet, file_ending=".nii")
    for path in list(nnunet.rglob("*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    after = open_dataset("nnunet", nnunet).load("phantom_001")
    for modality, image in before.images.items():
        np.testing.assert_array_equal(image, after.images[modality])
    np.testing.assert_array_equal(before.labels, after.labels)


def test_channels_of_one_name_are_all_kept(nnunet: Path):
    edit(nnunet, channel_names={"0": "noNorm", "1": "noNorm", "2": "CT"})
    dataset = open_dataset("nnunet", nnunet)
    assert dataset.card.modalities == ("noNorm-0", "noNorm-1", "CT")
    assert dataset.card.terms == {"noNorm-0": "noNorm", "noNorm-1": "noNorm", "CT": "CT"}
    images = dataset.load("phantom_001").images
    assert not np.array_equal(images["noNorm-0"], images["noNorm-1"])


def test_files_that_macos_leaves_behind_are_no_subjects(nnunet: Path):
    (nnunet / "imagesTr" / "._phantom_001_0000.nii.gz").write_bytes(b"\0\5\x16\7")
    assert open_dataset("nnunet", nnunet).card.subjects == ("phantom_001", "phantom_002")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"labels": {"background": 0, "liver": 1, "ignore": 0}}, "the ignore label is 0"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 1}}, "label 1 is both the ignore label and a class"),
        ({"labels": {"background": 0, "liver": [0, 1]}}, "a region is a list of values above 0"),
        ({"labels": {"background": 0, "liver": True}}, "expected one whole number from 0 to 254"),
        ({"labels": {"background": 0, "liver": 1, "hepar": 1}}, "labels liver and hepar are both 1"),
        ({"labels": {"liver": 1}}, "need a background of 0"),
        ({"labels": ["liver"]}, "labels is .*expected an object"),
        ({"channel_names": ["T1"]}, "channel_names is .*expected an object"),
        ({"channel_names": {}}, r"numbers its channels \[\]"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, r"numbers its channels \[0, 2\]"),
        ({"channel_names": {"T1": "0"}}, "expected a number from 0 to 254"),
        ({"channel_names": {"0": "CT", "1": "CT", "2": "CT-0"}}, "names that cannot be told apart"),
        ({"file_ending": ".dcm"}, "file_ending .dcm cannot be read"),
    ],
)
def test_a_dataset_json_of_nnunet_that_cannot_be_followed_is_refused(nnunet: Path, values: dict[str, Any], said: str):
    edit(nnunet, **values)
    with pytest.raises(UserError, match=rf"dataset.json.*{said}"):
        open_dataset("nnunet", nnunet)


CASE = {"image": "./imagesTr/phantom_001.nii.gz", "label": "./labelsTr/phantom_001.nii.gz"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"training": ["phantom_001"]}, "case phantom_001 has no usable 'image'"),
        ({"training": [{"image": CASE["image"]}]}, "has no usable 'label'"),
        ({"training": [{**CASE, "image": "/phantom_001.nii.gz"}]}, "has no usable 'image'"),
        ({"training": [{**CASE, "label": "../other/phantom_001.nii.gz"}]}, "has no usable 'label'"),
        ({"training": [CASE, CASE]}, "two training cases phantom_001"),
        ({"training": []}, "names no training or test case"),
        ({"modality": {"0": "T1", "first": "T2"}}, "modality has the entry 'first'"),
    ],
)
def test_a_dataset_json_of_msd_that_cannot_be_followed_is_refused(msd: Path, values: dict[str, Any], said: str):
    edit(msd, **values)
    with pytest.raises(UserError, match=rf"dataset.json.*{said}"):
        open_dataset("msd", msd)


def test_test_cases_of_msd_have_no_labels(msd: Path):
    (msd / "imagesTs").mkdir()
    (msd / "imagesTr" / "phantom_002.nii.gz").rename(msd / "imagesTs" / "phantom_002.nii.gz")
    edit(msd, training=[CASE], test=["./imagesTs/phantom_002.nii.gz"])
    dataset = open_dataset("msd", msd)
    assert dataset.card.subjects == ("phantom_001", "phantom_002")
    assert dataset.load("phantom_001").labels is not None and dataset.load("phantom_002").labels is None


def test_image_files_that_belong_to_no_case_are_said(nnunet: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("phantom_003.nii.gz", "phantom_001_0007.nii.gz", "phantom_002_0000.mha"):
        (nnunet / "imagesTr" / name).touch()
    assert open_dataset("nnunet", nnunet).card.subjects == ("phantom_001", "phantom_002")
    said = capsys.readouterr().err
    assert "3 files not named CASE_0000.nii.gz" in said and "phantom_003.nii.gz" in said
