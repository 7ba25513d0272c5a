"""CHAOS folders as people have them: other cases, other pictures, other names; nothing drops out without a word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.dicom import dicom_files
from zeus_union.stage1_instruct.studies.ground import GREY, read_picture
from zeus_union.stage1_instruct.studies.study import Study

T1_ONLY = ("T1-DUAL-in",)


def load(chaos: Path, subject: str = "chaos01", modalities: tuple[str, ...] | None = T1_ONLY) -> Study:
    return open_dataset("chaos", chaos, modalities=modalities).load(subject)


def t1(chaos: Path) -> Path:
    return chaos / "MR" / "1" / "T1DUAL"


def pictures_of(chaos: Path) -> list[Path]:
    return sorted((t1(chaos) / "Ground").iterdir())


# Pictures beside slices.


def test_unpadded_picture_names_are_paired_in_natural_order(chaos: Path):
    before = load(chaos).labels
    for number, path in enumerate(pictures_of(chaos), start=1):
        path.rename(path.with_name(f"{number}.png"))
    np.testing.assert_array_equal(load(chaos).labels, before)


@pytest.mark.parametrize(("lost_slice", "lost_picture"), [(0, 11), (11, 0), (0, 5)])
@pytest.mark.parametrize("name", ["IMG-{:05d}.png", "{}.png"])
def test_a_slice_and_another_slices_picture_lost_are_noticed(
    chaos: Path, name: str, lost_slice: int, lost_picture: int
):
    for number, path in enumerate(pictures_of(chaos), start=1):
        path.rename(path.with_name(name.format(number)))
    for phase in ("InPhase", "OutPhase"):
        dicom_files(t1(chaos) / "DICOM_anon" / phase)[lost_slice].unlink()
    (t1(chaos) / "Ground" / name.format(lost_picture + 1)).unlink()
    with pytest.raises(UserError, match="the numbers of the pictures are not those of the slices"):
        load(chaos)


@pytest.mark.parametrize("change", ["suffix", "folder", "tif", "no suffix", "linked"])
def test_labels_are_found_however_folder_and_pictures_are_called(chaos: Path, change: str):
    before = load(chaos).labels
    ground = t1(chaos) / "Ground"
    for path in pictures_of(chaos):
        if change == "suffix":
            path.rename(path.with_suffix(".PNG"))
        elif change == "no suffix":
            path.rename(path.with_suffix(""))
        elif change == "tif":
            Image.open(path).save(path.with_suffix(".tif"))
            path.unlink()
    if change == "folder":
        ground.rename(ground.with_name("x"))
        ground.with_name("x").rename(ground.with_name("ground"))
    elif change == "linked":
        ground.rename(chaos / "labels of 1")
        ground.symlink_to(chaos / "labels of 1")
    np.testing.assert_array_equal(load(chaos).labels, before)


def test_a_ground_folder_without_pictures_is_an_error_not_an_unlabelled_subject(chaos: Path):
    for path in pictures_of(chaos):
        path.rename(path.with_suffix(".npy"))
        path.with_suffix(".npy").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"Ground holds 12 files, e.g. IMG-00001.npy, and no picture"):
        load(chaos)


def test_subjects_without_labels_are_named(chaos: Path, capsys: pytest.CaptureFixture[str]):
    for sequence in ("T1DUAL", "T2SPIR"):
        shutil.rmtree(chaos / "MR" / "2" / sequence / "Ground")
    (chaos / "MR" / "2" / "T1DUAL" / "Ground").mkdir()
    (chaos / "MR" / "2" / "T1DUAL" / "Ground" / "Thumbs.db").write_bytes(b"left by Windows")
    assert load(chaos, "chaos02").labels is None
    assert "1 of 2 subjects without labels" in (said := capsys.readouterr().err) and "chaos02" in said


@pytest.mark.parametrize("modalities", [None, T1_ONLY])
def test_labels_on_t2_alone_are_the_target_and_it_is_said(
    chaos: Path, modalities: tuple[str, ...] | None, capsys: pytest.CaptureFixture[str]
):
    resampled = load(chaos, modalities=None).modality_labels["T2-SPIR"]
    shutil.rmtree(t1(chaos) / "Ground")
    study = load(chaos, modalities=modalities)
    np.testing.assert_array_equal(study.labels, resampled)
    assert study.modality_labels == {} and any("T2SPIR/Ground" in name for name in study.sources)
    assert "labelled on T2-SPIR alone, resampled onto T1-DUAL as the target: chaos01" in capsys.readouterr().err


# Values.


def organs(picture: NDArray[Any], folder: Path, name: str = "p.png", mode: str | None = None) -> NDArray[np.uint8]:
    """What a picture of this array is read as, (rows, columns)."""
    image = Image.fromarray(picture)
    (image if mode is None else image.convert(mode)).save(folder / name)
    return read_picture(folder / name, picture.shape[1::-1]).T


LABELS = np.array([[0, 1, 2], [3, 4, 0]], dtype=np.uint8)
EIGHT_BITS = np.array([0, *(value for value, _, _ in GREY.values())], dtype=np.uint8)[LABELS]


@pytest.mark.parametrize("name", ["p.png", "p.tif"])
@pytest.mark.parametrize("factor", [1, 257])
def test_sixteen_bits_are_read_at_their_depth(tmp_path: Path, name: str, factor: int):
    np.testing.assert_array_equal(organs(EIGHT_BITS.astype(np.uint16) * factor, tmp_path, name), LABELS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_values_in_other_modes_are_the_same_organs(tmp_path: Path, mode: str):
    np.testing.assert_array_equal(organs(EIGHT_BITS, tmp_path, mode=mode), LABELS)


def test_a_palette_paints_the_values_and_does_not_change_them(tmp_path: Path):
    image = Image.fromarray(EIGHT_BITS)
    image.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png", (3, 2)).T, LABELS)


def test_a_grey_palette_is_what_it_shows(tmp_path: Path):
    image = Image.fromarray(LABELS)
    image.putpalette([value for value in (0, 63, 126, 189, 252) for _ in range(3)])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png", (3, 2)).T, LABELS)


def test_one_bit_is_the_liver_as_in_chaos_ct(tmp_path: Path):
    np.testing.assert_array_equal(organs(LABELS > 0, tmp_path), LABELS > 0)


UNKNOWN: dict[str, Callable[[], NDArray[Any]]] = {
    "holds grey value 90,": lambda: np.where(LABELS == 2, 90, EIGHT_BITS).astype(np.uint8),
    "holds grey value 1000,": lambda: np.where(LABELS == 2, 1000, EIGHT_BITS.astype(np.uint16) * 257).astype(np.uint16),
    "holds grey value 126,": lambda: np.where(LABELS == 2, 126, EIGHT_BITS.astype(np.uint16) * 257).astype(np.uint16),
    "holds grey value 1,": lambda: LABELS,
    "holds colours": lambda: np.stack([EIGHT_BITS, EIGHT_BITS, EIGHT_BITS * 0], axis=-1),
    "transparent pixels": lambda: np.stack([EIGHT_BITS, EIGHT_BITS * 0], axis=-1),
}


@pytest.mark.parametrize("message", UNKNOWN)
def test_values_of_no_organ_are_an_error(tmp_path: Path, message: str):
    with pytest.raises(UserError, match=message):
        organs(UNKNOWN[message](), tmp_path)


def test_a_picture_of_several_pages_is_refused(tmp_path: Path):
    page = Image.fromarray(EIGHT_BITS)
    page.save(tmp_path / "p.tif", save_all=True, append_images=[page])
    with pytest.raises(UserError, match="2 pages"):
        read_picture(tmp_path / "p.tif", (3, 2))


# Folders.


def test_two_folders_of_one_number_are_named(chaos: Path):
    shutil.copytree(chaos / "MR" / "1", chaos / "MR" / "01")
    with pytest.raises(UserError, match=r"MR/01 and .*MR/1 are both subject chaos01"):
        open_dataset("chaos", chaos)


@pytest.mark.parametrize("other", ["Test_Sets", "train_sets"])
def test_one_number_in_two_sets_is_named(chaos: Path, other: str):
    (chaos / other / "MR").mkdir(parents=True)
    shutil.copytree(chaos / "MR" / "1", chaos / other / "MR" / "1")
    with pytest.raises(UserError, match=r"are both subject chaos01"):
        open_dataset("chaos", chaos)


def test_folders_in_other_cases_are_the_same_data_set(chaos: Path):
    before = load(chaos, modalities=None)
    for path in sorted(chaos.rglob("*"), key=lambda path: -len(path.parts)):
        if path.is_dir():
            path.rename(path.with_name("tmp"))
            path.with_name("tmp").rename(path.with_name(path.name.lower()))
    after = load(chaos, modalities=None)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.images["T2-SPIR"], before.images["T2-SPIR"])
    assert set(after.modality_labels) == set(before.modality_labels)


def test_two_ground_folders_that_differ_in_case_are_refused(chaos: Path):
    (t1(chaos) / "GROUND").mkdir()
    with pytest.raises(UserError, match="holds GROUND and Ground, which differ in case alone"):
        load(chaos)


def test_subjects_with_spaces_brackets_and_umlauts_get_plain_names(chaos: Path, capsys: pytest.CaptureFixture[str]):
    before = load(chaos)
    (chaos / "MR" / "1").rename(chaos / "MR" / "Müller (1) [a]")
    dataset = open_dataset("chaos", chaos, modalities=T1_ONLY)
    assert dataset.card.subjects == ("Muller-1-a", "chaos02")
    np.testing.assert_array_equal(dataset.load("Muller-1-a").labels, before.labels)
    assert "'Müller (1) [a]' is Muller-1-a" in capsys.readouterr().err


def test_a_subject_without_t1_is_named(chaos: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(chaos / "MR" / "2" / "T1DUAL")
    assert open_dataset("chaos", chaos).card.subjects == ("chaos01",)
    assert "MR/2" in capsys.readouterr().err


def test_a_linked_data_set_is_the_data_set(chaos: Path, tmp_path: Path):
    before = load(chaos)
    (tmp_path / "disk").mkdir()
    (chaos / "MR" / "1").rename(tmp_path / "disk" / "patient")
    (chaos / "MR" / "1").symlink_to(tmp_path / "disk" / "patient")
    (tmp_path / "link").symlink_to(chaos)
    after = load(tmp_path / "link")
    np.testing.assert_array_equal(after.labels, before.labels)
    assert list(after.sources) == list(before.sources)


def test_the_echoes_may_differ_by_a_share_of_a_voxel_only(chaos: Path):
    """A tenth of a millimetre would be four voxels of a specimen's scan."""
    for phase in ("InPhase", "OutPhase"):
        for path in dicom_files(t1(chaos) / "DICOM_anon" / phase):
            header = pydicom.dcmread(path)
            header.PixelSpacing = [0.02, 0.02]
            header.ImagePositionPatient[0] += 0.04 if phase == "OutPhase" else 0
            header.save_as(path)
    with pytest.raises(UserError, match="do not share one grid"):
        load(chaos, modalities=("T1-DUAL-in", "T1-DUAL-out"))
