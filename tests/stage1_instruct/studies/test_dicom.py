"""Series are put together by what their headers say; what does not fit together is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.dicom import dicom_files, group_series, read_series
from zeus_union.stage1_instruct.studies.ground import read_ground
from zeus_union.stage1_instruct.studies.study import Study


def t1(chaos: Path) -> Path:
    return chaos / "MR" / "1" / "T1DUAL"


def t2_files(chaos: Path) -> list[Path]:
    return sorted((chaos / "MR" / "1" / "T2SPIR" / "DICOM_anon").glob("*.dcm"))


def change(files: Iterable[Path], edit: Callable[[Any], None]) -> None:
    for path in files:
        header = pydicom.dcmread(path)
        edit(header)
        header.save_as(path)


def setting(**values: object) -> Callable[[Any], None]:
    def edit(header: Any) -> None:
        for tag, value in values.items():
            setattr(header, tag, value)

    return edit


def load(chaos: Path, **options: Any) -> Study:
    return open_dataset("chaos", chaos, **options).load("chaos01")


def assert_same(one: Study, other: Study) -> None:
    assert list(one.images) == list(other.images)
    for modality, image in one.images.items():
        np.testing.assert_array_equal(image, other.images[modality])
    np.testing.assert_array_equal(one.labels, other.labels)


def test_files_that_each_have_a_series_of_their_own_are_one_volume(chaos: Path):
    """As in CHAOS's download, whose anonymisation gave every file another SeriesInstanceUID."""
    before = load(chaos)
    change(dicom_files(chaos), lambda header: setattr(header, "SeriesInstanceUID", generate_uid()))
    assert_same(load(chaos), before)


@pytest.mark.parametrize(("tesla", "in_phase", "out_of_phase"), [(1.5, 4.6, 2.3), (3.0, 2.3, 1.15), (1.5, 4.6, 6.9)])
def test_the_phase_follows_echo_time_and_field_strength(
    chaos: Path, tesla: float, in_phase: float, out_of_phase: float
):
    before = load(chaos)
    for folder, echo in (("InPhase", in_phase), ("OutPhase", out_of_phase)):
        change(dicom_files(t1(chaos) / "DICOM_anon" / folder), setting(MagneticFieldStrength=tesla, EchoTime=echo))
    assert_same(load(chaos), before)


def test_the_phase_in_words_needs_no_echo_time(chaos: Path):
    before = load(chaos)
    for folder, word in (("InPhase", "IN_PHASE"), ("OutPhase", "OPP_PHASE")):
        files = dicom_files(t1(chaos) / "DICOM_anon" / folder)
        change(files, setting(ImageType=["ORIGINAL", "PRIMARY", "M", word], EchoTime=None))
    assert_same(load(chaos), before)


def test_folders_called_the_wrong_way_round_change_nothing(chaos: Path):
    before = load(chaos)
    folder = t1(chaos) / "DICOM_anon"
    (folder / "InPhase").rename(folder / "x")
    (folder / "OutPhase").rename(folder / "InPhase")
    (folder / "x").rename(folder / "OutPhase")
    assert_same(load(chaos), before)


def test_two_echoes_of_one_phase_are_refused(chaos: Path):
    change(dicom_files(t1(chaos) / "DICOM_anon" / "InPhase"), setting(EchoTime=6.9))
    with pytest.raises(UserError, match=r"2.3 and 6.9 ms at 1.5 T are not one in phase and one out of phase"):
        load(chaos)


def test_a_missing_echo_is_refused(chaos: Path):
    shutil.rmtree(t1(chaos) / "DICOM_anon" / "OutPhase")
    with pytest.raises(UserError, match=r"DICOM_anon holds echoes 4.6 ms; expected the two"):
        load(chaos)


def test_a_modality_that_is_not_wanted_is_not_read(chaos: Path):
    for file in dicom_files(t1(chaos) / "DICOM_anon" / "OutPhase"):
        file.write_bytes(file.read_bytes()[:9000])
    shutil.rmtree(chaos / "MR" / "1" / "T2SPIR")
    study = load(chaos, modalities=("T1-DUAL-in",))
    assert list(study.images) == ["T1-DUAL-in"]
    assert not any("OutPhase" in name for name in study.sources)


def test_files_that_systems_leave_behind_are_not_slices(chaos: Path):
    before = load(chaos)
    for folder in (t1(chaos) / "DICOM_anon", t2_files(chaos)[0].parent):
        for name in (".DS_Store", "._IMG-0001-00001.dcm", "DICOMDIR", "Thumbs.db"):
            (folder / name).write_bytes(b"\0\5\x16\7")
    (t1(chaos) / "Ground" / "._IMG-00001.png").write_bytes(b"\0\5\x16\7")
    assert_same(load(chaos), before)


def test_the_test_set_beside_the_training_set_is_read_without_labels(chaos: Path):
    (chaos / "Train_Sets").mkdir()
    (chaos / "Test_Sets" / "MR").mkdir(parents=True)
    (chaos / "MR" / "2").rename(chaos / "Test_Sets" / "MR" / "4")
    (chaos / "MR").rename(chaos / "Train_Sets" / "MR")
    for ground in (chaos / "Test_Sets").rglob("Ground"):
        shutil.rmtree(ground)
    dataset = open_dataset("chaos", chaos)
    assert dataset.card.subjects == ("chaos01", "chaos04")
    test = dataset.load("chaos04")
    assert test.labels is None and test.modality_labels == {}
    assert dataset.load("chaos01").labels is not None


# What does not fit together.


def test_label_pictures_are_not_paired_with_slices_of_shuffled_names(chaos: Path):
    files = dicom_files(t1(chaos) / "DICOM_anon" / "InPhase")
    for file, place in zip(files, np.random.default_rng(0).permutation(len(files))):
        file.rename(file.with_name(f"slice{place:02d}.dcm"))
    with pytest.raises(UserError, match=r"Ground.*names do not run along the body.*original names"):
        load(chaos)


def test_names_that_run_the_other_way_are_paired_by_order(chaos: Path, tmp_path: Path):
    """The pictures follow the names, not the positions: reversed names turn the labels over."""
    before = load(chaos, modalities=("T1-DUAL-in",))
    files = dicom_files(t1(chaos) / "DICOM_anon" / "InPhase")
    for file, place in zip(files, reversed(range(len(files)))):
        file.rename(file.with_name(f"slice{place:02d}.dcm"))
    after = load(chaos, modalities=("T1-DUAL-in",))
    np.testing.assert_array_equal(after.images["T1-DUAL-in"], before.images["T1-DUAL-in"])
    np.testing.assert_array_equal(after.labels, before.labels[..., ::-1])


DAMAGE = {
    "different orientations": setting(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    "not at right angles": setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    "expected 6 numbers": setting(ImageOrientationPatient=[1, 0, 0]),
    "different pixel spacing": setting(PixelSpacing=[2.5, 2.6]),
    "expected millimetres above 0": setting(PixelSpacing=[0, 0]),
    "144 x 143 pixels": setting(Rows=143),
    "beside the line of the other slices": lambda header: setattr(
        header, "ImagePositionPatient", [header.ImagePositionPatient[0] + 40, *header.ImagePositionPatient[1:]]
    ),
    "has no ImagePositionPatient": lambda header: delattr(header, "ImagePositionPatient"),
    "pixels of .* cannot be read": lambda header: delattr(header, "PixelData"),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_slice_that_does_not_belong_is_named(chaos: Path, said: str):
    file = t2_files(chaos)[4]
    change([file], DAMAGE[said])
    with pytest.raises(UserError, match=said) as error:
        load(chaos)
    assert file.name in str(error.value)


def test_a_dicom_file_cut_anywhere_is_named(chaos: Path):
    file = t2_files(chaos)[4]
    whole = file.read_bytes()
    for length in [*range(0, 1400, 97), len(whole) // 2, len(whole) - 2]:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=file.name):
            read_series(t2_files(chaos))


def test_a_damaged_dicom_header_is_an_error_or_a_volume_never_a_traceback(chaos: Path):
    file = t2_files(chaos)[4]
    whole, random = file.read_bytes(), np.random.default_rng(0)
    header = len(whole) - 2 * 144 * 144
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[random.integers(header)] = random.integers(256)
        file.write_bytes(damaged)
        try:
            series = read_series(t2_files(chaos))
        except UserError as error:
            assert file.name in str(error)
        else:
            assert len(series.files) == 11


# Real patients.


def test_real_chaos_ct_labels_are_paired_with_their_slices(shared_data: Path):
    folder = shared_data / "chaos_ct_layout"
    series = read_series(dicom_files(folder / "DICOM_anon"))
    labels, pictures = read_ground(folder / "Ground", series)
    assert labels is not None and len(pictures) == 24
    for index, file in enumerate(series.files):
        number = file.name[2:5]  # i0057,0000b.dcm belongs to liver_GT_057.png
        with Image.open(folder / "Ground" / f"liver_GT_{number}.png") as picture:
            np.testing.assert_array_equal(labels[..., index] > 0, np.asarray(picture.convert("L")).T > 0)


def test_real_prostate_studies_are_taken_apart_into_three_series(shared_data: Path):
    for patient in ("ProstateX-0000", "ProstateX-0001"):
        groups = group_series(dicom_files(shared_data / "prostatex_dicom" / patient))
        series = [read_series(files) for files in groups.values()]
        assert sorted(volume.grid.shape for volume in series) == [(84, 128, 19), (84, 128, 19), (384, 384, 19)]
        frames = {volume.header.FrameOfReferenceUID for volume in series}
        assert len(frames) == 1
