"""A study as a PACS exports it becomes the run's modalities on one grid, or one line says why not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from tests.pipelines.intake import pacs
from tests.stage1_instruct.studies.test_series import write_enhanced
from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import is_subject_name
from zeus_union.pipelines.intake.study import OpenedStudy, list_study, open_study, plan_study
from zeus_union.pipelines.intake.tables import choice_table, listing_table

RUN = ("T2", "FLAIR", "T1-DUAL-in", "T1-DUAL-out")
NUMBERS = {"T2": "2", "FLAIR": "3", "T1-DUAL-in": "5.2", "T1-DUAL-out": "5.1"}


def opened(path: Path, wanted: tuple[str, ...] = RUN, **options: Any) -> OpenedStudy:
    options.setdefault("channels", {name: number for number, name in enumerate(wanted)})
    with open_study(path, wanted, **options) as study:
        assert all(file.is_file() for file in study.sources.values())
        return study


def taken(study: OpenedStudy) -> dict[str, str]:
    """Modality -> the number of the series that was taken for it."""
    return {choice.modality: choice.taken.removeprefix("series ").split(" ")[0] for choice in study.choices}


def refused(path: Path, wanted: tuple[str, ...] = RUN, **options: Any) -> str:
    """The one line with which a study is refused."""
    with pytest.raises(UserError) as error:
        opened(path, wanted, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder: Path, change: Callable[[Any], None], description: str = "") -> list[Path]:
    """Changes every file, or those of one series; returns which."""
    paths = []
    for path in sorted(folder.iterdir()):
        data = pydicom.dcmread(path)
        if not description or data.get("SeriesDescription") == description:
            change(data)
            data.save_as(path)
            paths.append(path)
    return paths


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return pacs.export(tmp_path / "export 7", *pacs.protocol())


def test_series_mixed_in_one_flat_folder_are_recognised_by_their_tags(export: Path):
    pacs.screenshot(export)
    pacs.report(export)
    (export / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    study = opened(export, (*RUN, "T1Gd"))
    assert taken(study) == NUMBERS
    assert study.missing == ("T1Gd",) and list(study.images) == list(RUN)
    assert study.name == "export-7" and is_subject_name(study.name)
    reasons = {choice.modality: choice.reason for choice in study.choices}
    assert reasons["T2"] == "TE 100, TR 4000 ms" and reasons["FLAIR"] == "TE 120, TR 9000, TI 2500 ms"
    assert "TE 4.6 ms at 1.5 T, in phase" in reasons["T1-DUAL-in"]
    placing = {choice.modality: choice.placing for choice in study.choices}
    assert placing["T1-DUAL-in"] == "" and placing["FLAIR"].startswith("resampled from 20 x 24 x 8 at 2 x 2.5 x 5 mm")


def test_the_reference_keeps_its_voxels_and_its_frames_follow_the_last_axis(export: Path):
    study = opened(export)
    scan = pacs.protocol()[3]
    pacs.assert_in_the_patient(study.images["T2"], study.grid.affine, scan)
    assert study.series is not None and len(study.series.frames) == study.grid.shape[2] == 6
    np.testing.assert_array_equal(study.series.volume, study.images["T2"])
    for index, file in enumerate(study.series.files):
        np.testing.assert_array_equal(pydicom.dcmread(file).pixel_array.T, study.images["T2"][..., index])
    assert len(study.sources) == 6 + 8 + 12
    assert all(image.dtype == np.float32 and image.shape == study.grid.shape for image in study.images.values())


@settings(deadline=None, max_examples=12, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    planes=st.tuples(*[st.sampled_from(sorted(pacs.PLANES))] * 2),
    tilt=st.tuples(*[st.sampled_from([0.0, -14.0, 23.0])] * 3),
    flipped=st.booleans(),
    spacing=st.tuples(*[st.sampled_from([0.7, 1.5, 3.3])] * 3),
    seed=st.integers(0, 99),
)
def test_no_plane_tilt_order_or_spacing_moves_a_voxel(
    planes: tuple[str, str],
    tilt: tuple[float, float, float],
    flipped: bool,
    spacing: tuple[float, float, float],
    seed: int,
):
    """Axial, sagittal, coronal, oblique, flipped: both series show the same patient at the same place."""
    options: dict[str, Any] = {"spacing": spacing, "tilt": tilt, "flipped": flipped, "shape": (9, 7, 4)}
    scans = [
        pacs.scan(plane, name, number, tags=tags, **options)
        for plane, name, number, tags in zip(planes, ("T2", "FLAIR"), (1, 2), (pacs.T2, pacs.FLAIR))
    ]
    with tempfile.TemporaryDirectory() as folder:
        pacs.export(Path(folder), *scans, seed=seed)
        for scan, name in zip(scans, ("T2", "FLAIR")):
            study = opened(Path(folder), (name,))
            pacs.assert_in_the_patient(study.images[name], study.grid.affine, scan)


def test_names_and_order_of_files_decide_nothing(tmp_path: Path):
    diffusion = {"ScanningSequence": "EP", "EchoTime": 70.0, "RepetitionTime": 4000.0}
    scans = [
        *pacs.protocol(),
        *(
            pacs.scan(description="dwi", number=7, tags={**diffusion, "DiffusionBValue": b}, series="d")
            for b in (50.0, 800.0)
        ),
    ]
    wanted = (*RUN, "HBV")
    plans = [
        (plan_study(folder, wanted, channels={}), list_study(folder, wanted, channels={}))
        for seed in range(4)
        for folder in [pacs.export(tmp_path / str(seed), *scans, seed=seed)]
    ]
    assert all(plan == plans[0] for plan in plans) and plans[0][0][0][-1].taken.startswith("series 7.2")


def test_a_folder_in_folders_a_zip_and_files_beside_are_the_same_study(export: Path, tmp_path: Path):
    study = opened(export)
    nested = tmp_path / "nested" / "DICOM"
    for number, path in enumerate(sorted(export.iterdir())):
        target = nested / f"S{number % 4}" / f"{path.name}.IMA"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "nested" / "readme.txt").write_text("made by")
    archive = Path(shutil.make_archive(str(tmp_path / "study.of.P1"), "zip", tmp_path, "nested"))
    other_suffix = shutil.copy(archive, tmp_path / "export.bin")
    for path, name in ((tmp_path / "nested", "nested"), (archive, "study.of.P1"), (other_suffix, "export")):
        other = opened(Path(path))
        assert other.name == name and taken(other) == NUMBERS
        for modality, image in study.images.items():
            np.testing.assert_array_equal(image, other.images[modality])


def test_a_zip_leaves_nothing_behind_and_messages_name_it(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    archive = Path(shutil.make_archive(str(tmp_path / "p"), "zip", export))
    opened(archive)
    victim = edit(export, lambda data: None, "t2_tse_tra")[2]
    victim.unlink()
    archive = Path(shutil.make_archive(str(tmp_path / "gap"), "zip", export))
    assert refused(archive).startswith(f"{archive}: between IM") and not list(temporary.iterdir())


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_files_are_the_same_images(export: Path, syntax: str):
    shutil.rmtree(export)
    options: dict[str, Any] = {"shape": (64, 48, 3), "spacing": (0.8, 0.8, 5)}
    pacs.export(export, *pacs.localiser(), pacs.scan("axial", "t2", 2, tags=pacs.T2, **options))
    before = opened(export, ("T2",))
    edit(export, lambda data: data.compress(syntax), "t2")
    np.testing.assert_array_equal(before.images["T2"], opened(export, ("T2",)).images["T2"])


def test_files_that_each_have_a_series_of_their_own_are_put_together(export: Path):
    edit(export, lambda data: setattr(data, "SeriesInstanceUID", generate_uid()))
    study = opened(export)
    assert list(study.images) == list(RUN)
    assert study.grid.shape == pacs.SHAPE


def test_what_is_planned_without_voxels_is_what_is_opened(export: Path):
    edit(export, lambda data: delattr(data, "PixelData"), "FLAIR sag")
    choices, missing = plan_study(export, (*RUN, "ADC"), channels={})
    shutil.rmtree(export)
    study = opened(pacs.export(export, *pacs.protocol()), (*RUN, "ADC"))
    assert (choices, missing) == (study.choices, study.missing)


def test_every_series_is_listed_with_what_it_is_for_or_why_not(export: Path):
    pacs.screenshot(export)
    listed = {entry.name: entry for entry in list_study(export, ("T2", "T1Gd"), channels={})}
    assert listed["2"].taken_for == "T2" and listed["2"].size == "24 x 20 x 6 at 2 x 2.5 x 5 mm"
    assert listed["1.1"].reason == "a localiser" and listed["1.1"].taken_for == ""
    assert listed["3"].reason == "FLAIR (TE 120, TR 9000, TI 2500 ms), not T2, not T1"
    assert "neither tags nor description say contrast agent" in listed["5.2"].reason
    assert "Secondary Capture" in listed["99"].reason
    assert len(listing_table("s", tuple(listed.values())).columns) == 5
    assert len(choice_table("s", *plan_study(export, ("T2", "T1Gd"), channels={})).columns) == 4


def test_the_echoes_of_one_enhanced_file_are_two_modalities(tmp_path: Path):
    before = opened(pacs.export(tmp_path / "s", *pacs.dual_echo()), RUN[2:])
    (tmp_path / "enhanced").mkdir()
    write_enhanced(
        tmp_path / "enhanced" / "IM1", sorted((tmp_path / "s").iterdir()), ("orientation", "measures", "kind")
    )
    for study in (tmp_path / "enhanced", tmp_path / "enhanced" / "IM1"):
        after = opened(study, RUN[2:])
        for modality, image in before.images.items():
            np.testing.assert_array_equal(image, after.images[modality])


# Which of several.


def test_repeats_and_planes_that_fit_equally_are_refused_with_the_list(tmp_path: Path):
    scans = [pacs.scan(plane, f"t2 {plane}", number, tags=pacs.T2) for number, plane in enumerate(pacs.PLANES, start=4)]
    folder = pacs.export(tmp_path / "s", *scans)
    line = refused(folder, ("T2",))
    assert (
        "several series match T2: 4 (t2 axial, 6 slices), 5 (t2 coronal, 6 slices), 6 (t2 sagittal, 6 slices)" in line
    )
    assert "--modality T2=4" in line
    assert all("could be T2" in entry.reason for entry in list_study(folder, ("T2",), channels={}))
    assert taken(opened(folder, ("T2",), view="sagittal")) == {"T2": "6"}
    assert taken(opened(folder, ("T2_cor",))) == {"T2_cor": "5"}


@pytest.mark.parametrize(
    ("said", "number"),
    [("4", "4"), ("t2 AXIAL", "4"), ("uid", "5"), ("begin", "5"), (" 6 ", "6")],
)
def test_the_user_decides_by_number_description_or_uid(tmp_path: Path, said: str, number: str):
    scans = [pacs.scan(plane, f"t2 {plane}", n, tags=pacs.T2) for n, plane in enumerate(pacs.PLANES, start=4)]
    folder = pacs.export(tmp_path / "s", *scans)
    uid = pacs.uid("series", "1", "1.1")
    said = {"uid": uid, "begin": uid[:-2]}.get(said, said)
    study = opened(folder, ("T2",), chosen={"T2": said})
    assert taken(study) == {"T2": number} and study.choices[0].reason == f"--modality T2={said}"


def test_a_whole_uid_is_meant_before_those_that_begin_so(tmp_path: Path):
    scans = [
        pacs.scan("axial", f"t2 {end}", number, tags={**pacs.T2, "SeriesInstanceUID": f"1.2.3.{end}"})
        for number, end in enumerate(("1", "12"), start=1)
    ]
    folder = pacs.export(tmp_path / "s", *scans)
    assert taken(opened(folder, ("T2",), chosen={"T2": "1.2.3.1"})) == {"T2": "1"}
    assert "matches several series" in refused(folder, ("T2",), chosen={"T2": "1.2.3."})


def test_a_modality_is_left_out_where_the_user_says_none(tmp_path: Path):
    scans = [pacs.scan("axial", "t2", number, tags=pacs.T2) for number in (1, 2)]
    folder = pacs.export(tmp_path / "s", *scans, pacs.scan("axial", "flair", 3, tags=pacs.FLAIR))
    study = opened(folder, ("T2", "FLAIR"), chosen={"T2": "none"})
    assert taken(study) == {"FLAIR": "3"} and study.missing == ("T2",)
    assert "leaves out T2, FLAIR, all that the run reads" in refused(
        folder, ("T2", "FLAIR"), chosen={"T2": "none", "FLAIR": "None"}
    )


def test_a_choice_that_names_nothing_several_or_no_image_is_refused(export: Path):
    assert "no series of that number, SeriesInstanceUID or description; it has 1.1 (3-plane loc" in refused(
        export, chosen={"T2": "77"}
    )
    assert "unknown modality of the run PET" in refused(export, chosen={"PET": "2"})
    assert "the series is a localiser" in refused(export, chosen={"T2": "1.1"})
    assert "matches several series" in refused(export, ("FLAIR",), chosen={"FLAIR": "5"})
    assert "can be T2 and FLAIR; a series holds one modality" in refused(export, chosen={"T2": "2", "FLAIR": "2"})


def test_a_series_of_two_echoes_serves_both_phases_by_its_one_number(export: Path):
    study = opened(export, chosen={"T1-DUAL-in": "5", "T1-DUAL-out": "5"})
    assert taken(study) == NUMBERS


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
        ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "MPR"]}),
        ({}, {"ScanOptions": "FS"}),
        ({}, {"SeriesDescription": "t2 SUB"}),
        ({}, {"SeriesDescription": "t2 MIP"}),
        ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        ({}, {"InversionTime": 2400.0}),
    ],
)
def test_an_original_is_taken_before_what_was_made_of_it(tmp_path: Path, better: dict[str, Any], worse: dict[str, Any]):
    scans = [
        pacs.scan("axial", "t2", number, tags={**pacs.T2, **tags})
        for number, tags in ((1, worse), (2, better), (3, worse))
    ]
    assert taken(opened(pacs.export(tmp_path / "s", *scans), ("T2",))) == {"T2": "2"}


def test_a_volume_is_taken_before_slabs_of_one_slice_each(tmp_path: Path):
    slabs = [
        pacs.scan("coronal", "MRCP", 2, tags=pacs.T2, shape=(24, 20, 1), tilt=(0, 0, angle), series="mrcp")
        for angle in (0, 15, 30)
    ]
    study = opened(pacs.export(tmp_path / "s", *slabs, pacs.scan("axial", "t2 tse", 1, tags=pacs.T2)), ("T2",))
    assert taken(study) == {"T2": "1"} and "several slices" in study.choices[0].reason


def test_repeated_dual_echoes_each_have_their_phases(tmp_path: Path):
    folder = pacs.export(tmp_path / "s", *pacs.dual_echo(5), *pacs.dual_echo(8))
    assert "match T1-DUAL-in: 5.2 (T1W dual FFE, 6 slices), 8.2" in refused(folder, RUN[2:])
    study = opened(folder, RUN[2:], chosen={"T1-DUAL-in": "8", "T1-DUAL-out": "8"})
    assert taken(study) == {"T1-DUAL-in": "8.2", "T1-DUAL-out": "8.1"}


def test_contrast_agent_makes_t1gd_and_its_absence_t1(tmp_path: Path):
    scans = [
        pacs.scan("axial", "t1_se", 1, tags={**pacs.T1, "ContrastBolusAgent": "Gadovist"}),
        pacs.scan("axial", "t1_se", 2, tags={**pacs.T1, "ContrastBolusAgent": "NONE"}),
    ]
    study = opened(pacs.export(tmp_path / "s", *scans), ("T1", "T1ce"))
    assert taken(study) == {"T1": "2", "T1ce": "1"}
    assert study.choices[1].reason == "TE 12, TR 500 ms, contrast agent Gadovist"
    suppressed = pacs.scan("axial", "t1_fs", 1, tags={**pacs.T1, "ScanOptions": "FS"})
    only = opened(pacs.export(tmp_path / "only", suppressed), ("T1",))
    assert only.choices[0].reason == "TE 12, TR 500 ms (though ScanOptions FS)"
    alone = opened(pacs.export(tmp_path / "alone", scans[0], pacs.scan("axial", "t2", 3, tags=pacs.T2)), ("T1", "T2"))
    assert alone.missing == ("T1",)


def test_the_b_value_decides_between_diffusion_images(tmp_path: Path):
    diffusion = {"ScanningSequence": "EP", "EchoTime": 70.0, "RepetitionTime": 4000.0}
    scans = [
        pacs.scan("axial", "ep2d_diff", 3, tags={**diffusion, "DiffusionBValue": value}, series="dwi", contrast=i)
        for i, value in enumerate((0.0, 400.0, 1400.0))
    ]
    derived = ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]
    scans.append(pacs.scan("axial", "ep2d_diff_ADC", 4, tags={**diffusion, "ImageType": derived}))
    folder = pacs.export(tmp_path / "s", *scans)
    study = opened(folder, ("ADC", "HBV"))
    assert [choice.taken[:10] for choice in study.choices] == ["series 4 (", "series 3.3"]
    assert study.choices[1].reason == "b 1400 s/mm2; the highest b-value"
    assert taken(opened(folder, ("b400",))) == {"b400": "3.2"}
    assert "several series match DWI: 3.2" in refused(folder, ("DWI",))


def test_times_of_one_series_are_told_apart(tmp_path: Path):
    scans = [
        pacs.scan("axial", "dyn", 3, contrast=time, tags={**pacs.T1, "TemporalPositionIdentifier": time}, series="dce")
        for time in (1, 2)
    ]
    folder = pacs.export(tmp_path / "s", *scans)
    assert "several series match T1: 3.1 (dyn, 6 slices), 3.2 (dyn, 6 slices)" in refused(folder, ("T1",))
    study = opened(folder, ("T1",), chosen={"T1": "3.2"})
    np.testing.assert_array_equal(np.sort(study.images["T1"], axis=None), np.sort(scans[1].volume, axis=None))


def test_tags_and_a_description_that_contradict_one_another_need_the_user(tmp_path: Path):
    folder = pacs.export(tmp_path / "s", pacs.scan("axial", "T1 tra", 1, tags=pacs.T2))
    assert "TE 100, TR 4000 ms look like T2, the description 'T1 tra' says T1" in refused(folder, ("T2",))
    assert taken(opened(folder, ("T2",), chosen={"T2": "1"})) == {"T2": "1"}


def test_a_name_that_means_nothing_known_is_matched_by_the_description(tmp_path: Path):
    folder = pacs.export(
        tmp_path / "s", pacs.scan("axial", "ax noNorm", 1, tags=pacs.T2), pacs.scan("axial", "t1", 2, tags=pacs.T1)
    )
    assert taken(opened(folder, ("noNorm",))) == {"noNorm": "1"}
    assert taken(opened(folder, ("second",), terms={"second": "MRI-T1"})) == {"second": "2"}
    assert "does not say third" in refused(folder, ("third",))


def test_tags_that_are_missing_are_read_from_the_description(tmp_path: Path):
    bare = {"ScanningSequence": None, "EchoTime": None, "RepetitionTime": None, "ImageType": None}
    names = {"FLAIR": "t2_tirm_tra_dark-fluid", "T2": "T2W TSE", "T1": "sT1W_3D_FFE", "T1Gd": "t1_mprage_KM"}
    scans = [pacs.scan("axial", said, n, tags=bare) for n, said in enumerate(names.values(), start=1)]
    study = opened(pacs.export(tmp_path / "s", *scans), tuple(names))
    assert taken(study) == {"FLAIR": "1", "T2": "2", "T1": "3", "T1Gd": "4"}


# What is refused.


def test_two_patients_and_two_studies_in_one_folder_are_refused(export: Path):
    pacs.export(export, pacs.scan("axial", "t2", 1, tags=pacs.T2), patient="P2", study="1")
    assert "files of several patients (PatientID P1, P2)" in refused(export)
    shutil.rmtree(export)
    pacs.export(export, *pacs.protocol())
    pacs.export(export, pacs.scan("axial", "t2", 1, tags=pacs.T2), study="2")
    assert "holds 2 studies: 20200101 MR" in refused(export)


@pytest.mark.parametrize("tag", ["PatientID", "PatientName", "PatientBirthDate"])
def test_a_patient_is_another_by_any_of_three_tags(export: Path, tag: str):
    edit(export, lambda data: setattr(data, tag, "19800101"), "FLAIR sag")
    assert f"several patients ({tag} " in refused(export)
    edit(export, lambda data: setattr(data, tag, ""), "FLAIR sag")
    assert opened(export).name == "export-7"


def test_a_missing_a_doubled_and_a_truncated_slice_are_named(export: Path):
    files = edit(export, lambda data: None, "t2_tse_tra")
    content = files[2].read_bytes()
    files[2].write_bytes(content[:-100])
    assert f"the pixels of {files[2]} cannot be read" in refused(export)
    files[2].write_bytes(content[:60])
    assert str(files[2]) in refused(export)
    files[2].write_bytes(content)
    shutil.copy(files[2], export / "IM999999")
    assert "lie at the same position" in refused(export)
    (export / "IM999999").unlink()
    by_position = sorted(files, key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    by_position[2].unlink()
    assert "a slice is missing" in refused(export)
    listed = {entry.name: entry for entry in list_study(export, ("T2",), channels={})}
    assert listed["2"].size == "5 slices" and "a slice is missing" in listed["2"].reason
    assert list(opened(export, ("FLAIR",)).images) == ["FLAIR"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: setattr(data, "PhotometricInterpretation", "RGB"), "colours (RGB), no grey values"),
        (lambda data: delattr(data, "ImagePositionPatient"), "no position (ImagePositionPatient)"),
        (lambda data: delattr(data, "Rows"), "no image (MR Image Storage)"),
        (lambda data: setattr(data, "NumberOfFrames", 3), "1 slice): 3 frames"),
    ],
)
def test_what_is_no_slice_of_grey_values_is_named(tmp_path: Path, change: Callable[[Any], None], said: str):
    shape = (24, 20, 1 if "frames" in said else 6)
    folder = pacs.export(tmp_path / "s", pacs.scan("axial", "t2", 1, tags=pacs.T2, shape=shape))
    edit(folder, change)
    if "frames" in said:
        said = "not where each of them lies"
    assert said in refused(folder, ("T2",))


def test_a_series_without_pixels_is_named(export: Path):
    edit(export, lambda data: delattr(data, "PixelData"), "t2_tse_tra")
    assert "the pixels of" in refused(export)


def test_folders_of_nothing_of_texts_and_what_is_not_there_are_one_line_each(tmp_path: Path):
    folder = tmp_path / "s"
    assert "does not exist" in refused(folder)
    folder.mkdir()
    assert "neither DICOM nor volume files" in refused(folder) and "it has nothing" in refused(folder)
    (folder / "notes.txt").write_text("T2")
    assert "it has notes.txt" in refused(folder)
    assert "neither DICOM, a volume file" in refused(folder / "notes.txt")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything may be read")
def test_a_file_that_may_not_be_read_is_named(export: Path):
    file = next(export.iterdir())
    file.chmod(0)
    with pytest.raises(PermissionError, match=file.name):
        opened(export)


def test_a_single_dicom_file_and_a_dicomdir_are_studies(export: Path, tmp_path: Path):
    (export / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert taken(opened(export / "DICOMDIR")) == NUMBERS
    single = pacs.export(tmp_path / "s", pacs.scan("axial", "t2", 1, tags=pacs.T2, shape=(24, 20, 1)))
    assert opened(next(single.iterdir()), ("T2",)).grid.shape == (24, 20, 1)
