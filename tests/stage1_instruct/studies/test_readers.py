"""Whatever the layout, the same study comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.studies.dicom import dicom_files, group_series, read_series, resample_to
from zeus_union.stage1_instruct.studies.ground import read_ground
from zeus_union.stage1_instruct.studies.nifti import read_volume


def dice(a: NDArray[np.uint8], b: NDArray[np.uint8], label: int) -> float:
    return float(2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum()))


def test_three_layouts_give_the_same_labels_and_t1_images(phantoms: Path):
    studies = [
        open_dataset(name, phantoms / layout, labels="native")
        for name, layout in (("chaos", "chaos"), ("msd", "msd"), ("nnunet", "nnunet"))
    ]
    assert all(len(dataset.card.subjects) == 2 and len(dataset.card.classes) == 4 for dataset in studies)
    chaos, msd, nnunet = (dataset.load(dataset.card.subjects[1]) for dataset in studies)
    for other in (msd, nnunet):
        assert chaos.grid.same_as(other.grid)
        np.testing.assert_array_equal(chaos.labels, other.labels)
        for modality in ("T1-DUAL-in", "T1-DUAL-out"):
            np.testing.assert_array_equal(chaos.images[modality], other.images[modality])


@pytest.mark.parametrize(("name", "layout"), [("chaos", "chaos"), ("msd", "msd"), ("nnunet", "nnunet")])
def test_channel_numbers_are_those_of_the_data_set_whatever_is_read_of_it(phantoms: Path, name: str, layout: str):
    every = open_dataset(name, phantoms / layout).card
    last = open_dataset(name, phantoms / layout, modalities=[every.modalities[-1]]).card
    assert every.channels == {modality: number for number, modality in enumerate(every.modalities)}
    assert last.channels == {every.modalities[-1]: len(every.modalities) - 1}


def test_msd_keeps_its_classes_unless_they_are_merged(phantoms: Path):
    binary, native = (open_dataset("msd", phantoms / "msd", labels=labels) for labels in ("binary", "default"))
    assert binary.card.classes == ("liver, right kidney, left kidney and spleen",)
    assert native.card.instance == "liver, right kidney, left kidney and spleen"
    merged, separate = (dataset.load("phantom_001").labels for dataset in (binary, native))
    np.testing.assert_array_equal(merged, separate > 0)


def test_t2_is_resampled_onto_the_t1_grid_where_the_organs_are(phantoms: Path):
    study = open_dataset("chaos", phantoms / "chaos").load("chaos01")
    t2 = study.modality_labels["T2-SPIR"]
    for label in (1, 2, 3, 4):
        assert dice(study.labels, t2, label) > 0.85
    # Kidneys are brighter than liver in T2-SPIR, by the signal equations; shifted by a slice they would not be.
    image = study.images["T2-SPIR"]
    assert image[study.labels == 2].mean() > 1.5 * image[study.labels == 1].mean()


def test_phases_are_told_apart_by_echo_time_not_by_folder(chaos: Path):
    before = open_dataset("chaos", chaos).load("chaos01")
    folder = chaos / "MR" / "1" / "T1DUAL" / "DICOM_anon"
    for phase in ("InPhase", "OutPhase"):
        for file in (folder / phase).iterdir():
            file.rename(folder / f"{'b' if phase == 'InPhase' else 'a'}{file.name}")
        (folder / phase).rmdir()
    after = open_dataset("chaos", chaos).load("chaos01")
    for modality in before.images:
        np.testing.assert_array_equal(before.images[modality], after.images[modality])
    np.testing.assert_array_equal(before.labels, after.labels)


def test_studies_without_labels_are_read_for_prediction(chaos: Path, nnunet: Path):
    for sequence in ("T1DUAL", "T2SPIR"):
        shutil.rmtree(chaos / "MR" / "1" / sequence / "Ground")
    assert open_dataset("chaos", chaos).load("chaos01").labels is None
    (nnunet / "imagesTs").mkdir()
    for file in (nnunet / "imagesTr").glob("phantom_002*"):
        file.rename(nnunet / "imagesTs" / file.name)
    dataset = open_dataset("nnunet", nnunet)
    assert dataset.card.subjects == ("phantom_001", "phantom_002")
    assert dataset.load("phantom_002").labels is None


def test_only_the_wanted_modalities_are_read_and_checked(nnunet: Path):
    path = nnunet / "imagesTr" / "phantom_001_0002.nii.gz"
    image = nibabel.load(path)
    volume = np.asarray(image.dataobj, dtype=np.float32)
    volume[..., :7] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, image.affine), path)
    with pytest.raises(UserError, match=r"phantom_001_0002.*114688 of 196608 voxels are NaN.*more than half"):
        open_dataset("nnunet", nnunet).load("phantom_001")
    study = open_dataset("nnunet", nnunet, modalities=("T1-DUAL-out", "T1-DUAL-in")).load("phantom_001")
    assert list(study.images) == ["T1-DUAL-in", "T1-DUAL-out"]


def test_the_phantom_is_the_same_twice_and_never_overwrites(tmp_path: Path):
    for name in ("a", "b"):
        write_demo("nnunet", tmp_path / name, subjects=1, seed=1)
    first, second = (read_volume(tmp_path / name / "imagesTr" / "phantom_001_0002.nii.gz")[0] for name in ("a", "b"))
    np.testing.assert_array_equal(first, second)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no phantom"):
        write_demo("chaos", tmp_path / "mine")
    with pytest.raises(UserError, match="another phantom"):
        write_demo("nnunet", tmp_path / "a", subjects=2, seed=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# Bad input: one UserError that names the file.


@pytest.mark.parametrize("name", ["chaos", "msd-brain", "nnunet", "demo"])
def test_a_wrong_or_empty_root_is_named(name: str, tmp_path: Path):
    if name != "demo":
        with pytest.raises(UserError, match=r"nowhere.*--data-root"):
            open_dataset(name, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="empty"):
        open_dataset(name, tmp_path / "empty")


def test_unknown_modality_names_those_there_are(phantoms: Path):
    with pytest.raises(UserError, match="unknown modality T7; there are: T1-DUAL-in, T1-DUAL-out, T2-SPIR"):
        open_dataset("nnunet", phantoms / "nnunet", modalities=("T7",))


def test_truncated_nifti_is_named(nnunet: Path):
    path = nnunet / "imagesTr" / "phantom_001_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"phantom_001_0001.nii.gz cannot be read.*truncated"):
        open_dataset("nnunet", nnunet).load("phantom_001")


def test_modalities_of_different_shape_are_named_with_both_shapes(nnunet: Path):
    path = nnunet / "imagesTr" / "phantom_001_0001.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, :-1], image.affine), path)
    with pytest.raises(UserError, match=r"_0001.*\(128, 128, 11\).*_0000.*\(128, 128, 12\)"):
        open_dataset("nnunet", nnunet).load("phantom_001")


def test_modalities_at_different_places_are_refused(nnunet: Path):
    path = nnunet / "imagesTr" / "phantom_001_0001.nii.gz"
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    with pytest.raises(UserError, match="different places"):
        open_dataset("nnunet", nnunet).load("phantom_001")


def test_label_values_that_dataset_json_does_not_name_are_listed(msd: Path):
    path = msd / "labelsTr" / "phantom_001.nii.gz"
    image = nibabel.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[0, 0, :2] = 7, 9
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)
    with pytest.raises(UserError, match=r"phantom_001.nii.gz holds label values 7, 9"):
        open_dataset("msd", msd).load("phantom_001")


def test_region_labels_of_nnunet_are_refused_unless_asked_for(nnunet: Path):
    path = nnunet / "dataset.json"
    values = json.loads(path.read_text())
    values["labels"]["both kidneys"] = [2, 3]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"both kidneys is a region.*--labels regions"):
        open_dataset("nnunet", nnunet)


def test_another_number_of_modalities_than_promised_is_refused(msd: Path):
    path = msd / "dataset.json"
    values = json.loads(path.read_text())
    values["modality"]["3"] = "ADC"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"names 4 modalities"):
        open_dataset("msd", msd).load("phantom_001")


def series_of(chaos: Path) -> list[Path]:
    return sorted((chaos / "MR" / "1" / "T2SPIR" / "DICOM_anon").glob("*.dcm"))


def test_a_missing_slice_is_found_by_position(chaos: Path):
    series_of(chaos)[5].unlink()
    with pytest.raises(UserError, match=r"18.00 mm, between other slices 9.00 mm; a slice is missing"):
        open_dataset("chaos", chaos).load("chaos01")


def test_a_doubled_slice_is_found_by_position(chaos: Path):
    file = series_of(chaos)[5]
    shutil.copy(file, file.with_name("copy.dcm"))
    with pytest.raises(UserError, match=r"copy.dcm.*same position"):
        open_dataset("chaos", chaos).load("chaos01")


def test_a_truncated_dicom_file_is_named(chaos: Path):
    file = series_of(chaos)[3]
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(UserError, match=rf"{file.name}.*(truncated|copy it again)"):
        open_dataset("chaos", chaos).load("chaos01")


def test_a_file_that_is_not_dicom_is_named(chaos: Path):
    (series_of(chaos)[0].parent / "notes.dcm").write_text("not an image")
    with pytest.raises(UserError, match=r"notes.dcm cannot be read as DICOM"):
        open_dataset("chaos", chaos).load("chaos01")


def test_a_grey_value_of_no_organ_is_named(chaos: Path):
    path = sorted((chaos / "MR" / "1" / "T1DUAL" / "Ground").glob("*.png"))[4]
    picture = np.asarray(Image.open(path)).copy()
    picture[0, 0] = 90
    Image.fromarray(picture).save(path)
    with pytest.raises(UserError, match=rf"{path.name} holds grey value 90"):
        open_dataset("chaos", chaos).load("chaos01")
    picture[0, 0] = 60  # within what the organisers' readers take for liver
    Image.fromarray(picture).save(path)
    assert (open_dataset("chaos", chaos).load("chaos01").labels == 1)[0, 0].any()


def test_a_missing_label_picture_is_counted(chaos: Path):
    next((chaos / "MR" / "1" / "T1DUAL" / "Ground").glob("*.png")).unlink()
    with pytest.raises(UserError, match="11 label pictures for 12 slices"):
        open_dataset("chaos", chaos).load("chaos01")


# Real patients.


def test_real_chaos_ct_is_ordered_and_spaced_by_position(shared_data: Path):
    series = read_series(dicom_files(shared_data / "chaos_ct_layout" / "DICOM_anon"))
    assert series.volume.shape == (512, 512, 24)
    assert series.grid.spacing == pytest.approx((0.7265625, 0.7265625, 2.0), abs=1e-4)  # the tag says 3.2
    assert series.files[0].name == "i0057,0000b.dcm"  # z falls as the file number rises
    assert read_ground(shared_data / "chaos_ct_layout" / "no such folder", series) == (None, [])
    # The liver's label lies on liver: contrast-enhanced parenchyma is well above water and below bone.
    pictures = sorted((shared_data / "chaos_ct_layout" / "Ground").glob("*.png"))
    by_file = dict(zip(sorted(series.files), pictures))
    masks = np.stack([np.asarray(Image.open(by_file[file]).convert("L")).T > 0 for file in series.files], axis=-1)
    inside = series.volume[masks]
    assert 70 < np.median(inside) < 160
    assert np.percentile(inside, 10) > 30


def test_real_prostate_adc_is_resampled_onto_t2_by_position(shared_data: Path):
    folder = shared_data / "prostatex_dicom" / "ProstateX-0000"
    series = {s.header.SeriesDescription: s for s in map(read_series, group_series(dicom_files(folder)).values())}
    t2 = series["t2_tse_tra"]
    adc = next(s for name, s in series.items() if "ADC" in name)
    assert t2.volume.shape == (384, 384, 19) and adc.volume.shape == (84, 128, 19)
    moved = resample_to(adc.volume, adc.grid, t2.grid, order=1)
    assert moved.shape == t2.volume.shape
    # The voxel at a point in millimetres shows the same ADC in both grids.
    index = np.array([190, 200, 9, 1])
    position = np.linalg.inv(adc.grid.affine) @ t2.grid.affine @ index
    low, high = np.floor(position[:3]).astype(int), np.ceil(position[:3]).astype(int)
    around = adc.volume[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1]
    assert around.min() - 1e-3 <= moved[190, 200, 9] <= around.max() + 1e-3


def test_infinite_voxels_of_the_real_mtr_are_background_and_counted(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
):
    volume, _ = read_volume(shared_data / "spinal_cord_mt" / "mtr.nii.gz")
    raw = np.asarray(nibabel.load(shared_data / "spinal_cord_mt" / "mtr.nii.gz").dataobj, dtype=np.float32)
    finite = np.isfinite(raw)
    assert (volume[~finite] == raw[finite].min()).all() and np.array_equal(volume[finite], raw[finite])
    assert f"mtr.nii.gz: {(~finite).sum()} of {raw.size} voxels are NaN or infinite" in capsys.readouterr().err
