"""Real scanners' tags: prostate MR of one vendor, a CT with a misleading protocol, pydicom's own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom.data.data_manager import DATA_ROOT

from tests.pipelines.intake.test_study import opened, refused, taken
from zeus_union.cache.errors import UserError
from zeus_union.pipelines.intake.study import list_study
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.phantom.write import write_demo

FILES = Path(DATA_ROOT) / "test_files"


@pytest.mark.parametrize(("patient", "numbers"), [("0000", ("4", "7", "8")), ("0001", ("6", "8", "9"))])
def test_real_prostate_series_are_recognised_and_laid_on_t2(shared_data: Path, patient: str, numbers: tuple[str, ...]):
    study = opened(shared_data / "prostatex_dicom" / f"ProstateX-{patient}", ("T2", "ADC", "HBV"))
    assert tuple(taken(study).values()) == numbers
    assert [choice.reason for choice in study.choices] == [
        "TE 104, TR 5660 ms",
        "ImageType ADC",
        "ImageType DIFFUSION, b 1000 s/mm2",
    ]
    assert study.choices[1].placing == "resampled from 84 x 128 x 19 at 2 x 2 x 3 mm, which covers 88% of T2"
    assert study.grid.shape == (384, 384, 19) and len(study.sources) == 57
    adc = study.images["ADC"]
    assert adc[:20].max() == 0 and 500 < np.median(adc[150:230, 150:230, 5:14]) < 2500


def test_reading_and_resampling_are_those_of_simpleitk(shared_data: Path):
    """SimpleITK 2.5: ImageSeriesReader (GDCM) and Resample, of real oblique series."""
    folder = shared_data / "prostatex_dicom" / "ProstateX-0000"
    study = opened(folder, ("T2", "ADC"))
    images = []
    for pattern in ("*t2tsetra*", "*ADC*"):
        reader = SimpleITK.ImageSeriesReader()
        (series,) = folder.rglob(pattern)
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
        images.append(SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32))
    np.testing.assert_array_equal(study.images["T2"], SimpleITK.GetArrayFromImage(images[0]).T)
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.Resample(images[1], images[0])).T
    # GDCM takes the slices' distance from a tag, we from their positions: they differ by 1e-5 mm.
    np.testing.assert_allclose(study.images["ADC"], theirs, atol=1.0)


def test_two_real_patients_in_one_folder_are_refused(shared_data: Path):
    line = refused(shared_data / "prostatex_dicom", ("T2",))
    assert "several patients (PatientID ProstateX-0000, ProstateX-0001)" in line


def test_the_device_counts_more_than_a_protocol_that_says_t2spir(shared_data: Path):
    folder = shared_data / "chaos_ct_layout"
    assert taken(opened(folder, ("CT",))) == {"CT": "4"}
    assert "Modality CT, not MR" in refused(folder, ("T2-SPIR",))


def test_nnunet_names_and_the_decathlons_channels_are_one_image(shared_data: Path, tmp_path: Path):
    raw = shared_data / "Dataset501_BraTS2013" / "imagesTr"
    for number in ("0000", "0001"):
        shutil.copy(raw / f"pat0001_{number}.nii.gz", tmp_path)
    study = opened(tmp_path, ("FLAIR", "T1Gd"))
    assert [choice.placing for choice in study.choices] == ["", ""]
    file = shared_data / "Task01_BrainTumour" / "imagesTs" / "BRATS_003.nii.gz"
    read = opened(file, ("T1Gd",), channels={"T1Gd": 2})
    np.testing.assert_array_equal(read.images["T1Gd"], np.asarray(nibabel.load(file).dataobj[..., 2], np.float32))


def test_the_demo_in_one_flat_folder_is_what_is_trained_on(tmp_path: Path):
    write_demo("chaos", tmp_path / "chaos", subjects=1)
    for number, path in enumerate(sorted((tmp_path / "chaos").rglob("*.dcm"))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "flat" / f"X{number}")
    study = opened(tmp_path / "flat", ("T1-DUAL-in", "T1-DUAL-out", "T2-SPIR"))
    assert tuple(taken(study).values()) == ("1", "2", "3")
    as_trained = open_dataset("chaos", tmp_path / "chaos").load("chaos01")
    assert study.grid.same_as(as_trained.grid)
    for name, image in as_trained.images.items():
        np.testing.assert_array_equal(study.images[name], image)


def test_scouts_projections_and_reports_are_no_modality():
    scouts = list_study(FILES / "dicomdirtests" / "98892001", ("CT",), channels={})
    assert [(entry.name, entry.taken_for) for entry in scouts] == [("4.1", ""), ("4.2", ""), ("5", "CT")]
    projections = list_study(FILES / "dicomdirtests" / "98892003" / "MR700", ("T1",), channels={})
    assert {entry.reason for entry in projections} == {"a projection"}
    assert "no image of a modality (Basic Text SR)" in refused(FILES / "reportsi.dcm", ("T1",))
    assert "several patients" in refused(FILES / "dicomdirtests" / "DICOMDIR", ("CT",))
    assert "holds 3 studies" in refused(FILES / "dicomdirtests" / "98892003", ("T1",))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", sorted(path.name for path in FILES.glob("*.dcm")))
def test_any_single_file_is_a_study_or_one_line(file: str):
    """pydicom's own files: damaged, of other kinds, in every transfer syntax."""
    try:
        study = opened(FILES / file, ("MR",))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert study.images["MR"].shape == study.grid.shape
