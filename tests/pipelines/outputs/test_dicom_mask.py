"""A segmentation object lies on its source to the voxel, says what it is, and other programs read it so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from scipy.spatial.transform import Rotation

from tests.pipelines.outputs.studies import SHAPE, SPACING, TURNS, dicom_series, of_series, patient, random_mask, turned
from tests.stage1_instruct.studies.test_series import affine_of, write_enhanced, write_slices
from zeus_union.cache.colours import class_colour
from zeus_union.cache.errors import UserError
from zeus_union.cache.grid import Grid
from zeus_union.pipelines.outputs.dicom_mask import segment_labels, write_dicom_mask
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.stage1_instruct.studies.dicom import Series, dicom_files, group_series, read_series

highdicom = pytest.importorskip("highdicom")
CLASSES = ("liver", "left kidney", "Couinaud VIII")


def instances(series: Series) -> list[str]:
    return [str(frame.header.SOPInstanceUID) for frame in series.frames]


def labels_by_pydicom(path: Path, series: Series) -> NDArray[np.uint8]:
    """The label map (columns, rows, slices) that a reader puts together from the object's own words: every frame at the
    slice of the source instance that it refers to; and that slice must lie where the frame says it does."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    labels = np.zeros(series.grid.shape, np.uint8)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        number = next(
            index
            for index, known in enumerate(series.frames)
            if known.header.SOPInstanceUID == source.ReferencedSOPInstanceUID
            and source.get("ReferencedFrameNumber", 1) == known.index + 1
        )
        assert source.ReferencedSOPClassUID == series.frames[number].header.SOPClassUID
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        expected = np.diag([-1, -1, 1, 1]) @ series.grid.affine @ (0, 0, number, 1)
        np.testing.assert_allclose(place, expected[:3], atol=1e-4)
        segments = shared if "SegmentIdentificationSequence" in shared else group
        label = segments.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[..., number][frame.T == 1] = label
    along = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    axes = series.grid.affine[:3, :2] / series.grid.spacing[:2] * np.array([[-1], [-1], [1]])
    np.testing.assert_allclose(along.T, axes, atol=1e-4)
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, series.grid.spacing[1::-1], rtol=1e-5)
    return labels


def assert_overlays(path: Path, series: Series, mask: NDArray[np.uint8]) -> None:
    """pydicom and highdicom read `mask` back, slice for slice of the source."""
    np.testing.assert_array_equal(labels_by_pydicom(path, series), mask)
    back = highdicom.seg.segread(path)
    how = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if all(frame.count == 1 for frame in series.frames):
        frames = back.get_pixels_by_source_instance(instances(series), **how)
        np.testing.assert_array_equal(frames, mask.T)


@settings(deadline=None, max_examples=12, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    turn=st.one_of(
        st.permutations([0, 1, 2]).flatmap(
            lambda axes: st.tuples(*[st.sampled_from([-1, 1])] * 3).map(lambda signs: np.eye(3)[axes] * signs)
        ),
        st.tuples(*[st.floats(-180, 180)] * 3).map(lambda angles: Rotation.from_euler("xyz", angles, True).as_matrix()),
    ),
    # highdicom packs frames of fewer than eight pixels wrongly, which no scanner makes.
    shape=st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_in_any_orientation_frames_overlay_the_source_to_the_voxel(
    turn: NDArray[np.float64], shape: tuple[int, int, int], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        series = dicom_series(Path(folder), affine_of(turn, SPACING), shape)
        mask = random_mask(shape, len(CLASSES), seed)
        assert_overlays(write_dicom_mask(Path(folder) / "mask.dcm", of_series(series, mask, CLASSES)), series, mask)


@pytest.mark.parametrize("name", TURNS)
def test_each_acquisition_is_overlaid_also_by_its_place_alone(tmp_path: Path, name: str) -> None:
    """highdicom puts the frames together as a volume, from positions and orientation, without the source."""
    series = dicom_series(tmp_path, turned(name))
    mask = random_mask(SHAPE, len(CLASSES))
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    to_source = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ series.grid.affine) @ volume.affine
    compare_by_place(volume.array, to_source, mask)


def compare_by_place(labels: NDArray[Any], to_mask: NDArray[np.float64], mask: NDArray[np.uint8]) -> None:
    """Every voxel of `labels` is the mask's at its place, and the mask has no others.

    Args:
        to_mask: (4, 4) voxels of `labels` to voxels of `mask`.
    """
    index = np.indices(labels.shape).reshape(3, -1)
    where = (to_mask @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    np.testing.assert_allclose(where, np.rint(where), atol=0.01)
    where = np.rint(where).astype(int)
    np.testing.assert_array_equal(labels.ravel(), mask[tuple(where)])
    assert np.count_nonzero(labels) == np.count_nonzero(mask)


@pytest.mark.parametrize("name", TURNS)
def test_dcmqi_reads_the_mask_at_the_same_places(tmp_path: Path, name: str) -> None:
    """The reader of 3D Slicer and of the Imaging Data Commons."""
    program = shutil.which("segimage2itkimage", path=Path(sys.executable).parent) or shutil.which("segimage2itkimage")
    if program is None:
        pytest.skip("dcmqi is not installed")
    series = dicom_series(tmp_path, turned(name))
    mask = random_mask(SHAPE, len(CLASSES))
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    (tmp_path / "itk").mkdir()
    arguments = ["--inputDICOM", path, "--outputDirectory", tmp_path / "itk", "--outputType", "nii", "--mergeSegments"]
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith((" W:", "W:", "E:"))], done.stderr
    (image,) = (tmp_path / "itk").glob("*.nii*")
    read = nibabel.load(image)
    to_mask = np.linalg.inv(series.grid.affine) @ read.affine
    compare_by_place(np.asarray(read.dataobj), to_mask, mask)


def test_a_study_s_grid_may_have_its_axes_in_another_order_than_the_series(tmp_path: Path) -> None:
    series = dicom_series(tmp_path, turned("oblique"))
    mask = random_mask(SHAPE, len(CLASSES))
    turn = np.array([[0, -1, 0, SHAPE[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    # (slices, columns backwards, rows) to (columns, rows, slices)
    turned_mask = np.ascontiguousarray(mask.transpose(2, 0, 1)[:, ::-1])
    grid = Grid(turned_mask.shape, series.grid.affine @ turn)
    study = Segmentation("s", CLASSES, turned_mask, grid, {}, series=series)
    assert_overlays(write_dicom_mask(tmp_path / "mask.dcm", study), series, mask)


def test_a_mask_elsewhere_than_its_series_is_refused(tmp_path: Path) -> None:
    series = dicom_series(tmp_path, turned("axial"))
    moved = series.grid.affine.copy()
    moved[0, 3] += 5
    study = Segmentation("s", CLASSES, random_mask(SHAPE, 3), Grid(SHAPE, moved), {}, series=series)
    with pytest.raises(UserError, match="lie at different places"):
        write_dicom_mask(tmp_path / "mask.dcm", study)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_mask_of_nothing_is_an_object_with_one_empty_frame_a_segment(tmp_path: Path, classes: int) -> None:
    series = dicom_series(tmp_path, turned("sagittal"))
    mask = np.zeros(SHAPE, np.uint8)
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES[:classes]))
    assert_overlays(path, series, mask)
    assert pydicom.dcmread(path).NumberOfFrames == classes
    assert len(highdicom.seg.segread(path).segment_numbers) == classes


def test_a_study_of_one_slice_is_one_frame(tmp_path: Path) -> None:
    series = dicom_series(tmp_path, turned("coronal"), (8, 5, 1))
    mask = np.ones((8, 5, 1), np.uint8)
    assert_overlays(write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES)), series, mask)


def test_slices_of_an_enhanced_file_are_its_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    single = dicom_series(tmp_path / "single", turned("oblique"))
    series = read_series([enhance(tmp_path / "enhanced.dcm", list(single.files)[::-1])])
    mask = random_mask(SHAPE, len(CLASSES))
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    assert not caplog.records
    assert_overlays(path, series, mask)
    dataset = pydicom.dcmread(path)
    assert len(dataset.SourceImageSequence) == 1
    assert dataset.SourceImageSequence[0].ReferencedSOPClassUID.name == "Enhanced MR Image Storage"


def test_one_of_two_echoes_of_an_enhanced_file_is_overlaid(tmp_path: Path) -> None:
    """The frames of the other echo lie at the same places and are not referred to."""

    def second(header: Any, index: int) -> None:
        header.EchoTime = 140

    first = dicom_series(tmp_path / "1", turned("axial"))
    echo = dicom_series(tmp_path / "2", turned("axial"), edit=second)
    both = [file for pair in zip(first.files, echo.files) for file in pair]
    groups = group_series([enhance(tmp_path / "enhanced.dcm", both)])
    assert len(groups) == 2
    mask = random_mask(SHAPE, len(CLASSES))
    for frames in groups.values():
        series = read_series(frames)
        assert_overlays(write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES)), series, mask)


def enhance(path: Path, files: list[Path]) -> Path:
    """`write_enhanced`, with what it leaves out of patient and study."""
    write_enhanced(path, files)
    enhanced, first = pydicom.dcmread(path), pydicom.dcmread(files[0])
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "SpecificCharacterSet"):
        setattr(enhanced, tag, first[tag].value)
    enhanced.save_as(path)
    return path


# What it says.


@pytest.fixture
def written(tmp_path: Path) -> pydicom.Dataset:
    series = dicom_series(tmp_path, turned("axial"))
    study = of_series(
        series, random_mask(SHAPE, 3), CLASSES, made_by={"members": [{"run": "run-a", "weights_sha256": "12ab34cd"}]}
    )
    return pydicom.dcmread(write_dicom_mask(tmp_path / "mask.dcm", study))


def test_segments_have_names_codes_sides_and_the_colours_of_the_classes(written: pydicom.Dataset) -> None:
    liver, kidney, segment = written.SegmentSequence
    assert [item.SegmentNumber for item in written.SegmentSequence] == [1, 2, 3]
    assert [item.SegmentLabel for item in written.SegmentSequence] == list(CLASSES)
    assert {item.SegmentAlgorithmType for item in written.SegmentSequence} == {"AUTOMATIC"}
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    private = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (private.CodingSchemeDesignator, private.CodeMeaning) == ("99ZEUS", "Couinaud VIII")
    assert written.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99ZEUS"
    for label, item in enumerate(written.SegmentSequence, 1):
        colour = highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(colour.to_rgb(), class_colour(label), atol=1)


def test_it_says_which_program_and_run_made_it(written: pydicom.Dataset) -> None:
    assert (written.Modality, written.Manufacturer, written.SeriesNumber) == ("SEG", "zeus-union", 301)
    algorithm = written.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "zeus-union" and "run-a 12ab34cd" in algorithm.AlgorithmVersion
    assert written.ContentLabel == "ZEUS_UNION" and "not a medical device" in written.ContentDescription


def test_patient_and_study_are_the_source_s_and_nothing_more_is_said(written: pydicom.Dataset) -> None:
    assert (str(written.PatientName), written.PatientID, written.PatientSex) == ("Müller^Jörg", "4711", "O")
    assert (written.StudyInstanceUID, written.FrameOfReferenceUID) == ("1.2.840.1", "1.2.840.2")
    assert (written.StudyDate, written.StudyTime, written.AccessionNumber) == ("20240229", "235959.5", "A1")
    assert "PatientAddress" not in written
    assert written.SeriesInstanceUID not in ("1.2.3", written.StudyInstanceUID)


def test_a_source_that_says_little_or_nonsense_is_carried_without_it(tmp_path: Path) -> None:
    def edit(header: Any, index: int) -> None:
        for tag in ("PatientName", "PatientID", "AccessionNumber", "StudyID", "SeriesNumber", "SpecificCharacterSet"):
            delattr(header, tag)
        nonsense = {
            "PatientSex": "MALE",
            "PatientBirthDate": "1950",
            "StudyDate": "2024.02.29",
            "StudyTime": "noon",
        }
        for tag, value in nonsense.items():
            header[tag]._value = value  # unchecked

    series = dicom_series(tmp_path, turned("axial"), edit=edit)
    mask = random_mask(SHAPE, 3)
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    assert_overlays(path, series, mask)
    written = pydicom.dcmread(path)
    assert {str(written[tag].value or "") for tag in ("PatientName", "PatientSex", "StudyDate", "StudyTime")} == {""}


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"])
def test_a_source_that_cannot_be_referred_to_is_named(tmp_path: Path, tag: str) -> None:
    series = dicom_series(tmp_path / "series", turned("axial"))
    for file in series.files:
        header = pydicom.dcmread(file)
        delattr(header, tag)
        header.save_as(file)
    series = read_series(series.files)
    with pytest.raises(UserError, match=f"has no {tag} of digits and dots, by which DICOM refers to it"):
        write_dicom_mask(tmp_path / "mask.dcm", of_series(series, random_mask(SHAPE, 3), CLASSES))


def test_files_that_an_anonymiser_gave_a_series_each_are_overlaid(tmp_path: Path) -> None:
    def edit(header: Any, index: int) -> None:
        header.SeriesInstanceUID = f"1.2.9.{index}"

    series = dicom_series(tmp_path, turned("oblique"), edit=edit)
    mask = random_mask(SHAPE, 3)
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    assert_overlays(path, series, mask)
    referred = {
        item.SeriesInstanceUID: [instance.ReferencedSOPInstanceUID for instance in item.ReferencedInstanceSequence]
        for item in pydicom.dcmread(path).ReferencedSeriesSequence
    }
    assert referred == {frame.header.SeriesInstanceUID: [frame.header.SOPInstanceUID] for frame in series.frames}


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_files_of_different_studies_or_frames_of_reference_are_named(tmp_path: Path, tag: str) -> None:
    series = dicom_series(tmp_path, turned("axial"), edit=lambda header, index: setattr(header, tag, f"1.2.{index}"))
    with pytest.raises(UserError, match=f"IM000[0-9].dcm differ in {tag}"):
        write_dicom_mask(tmp_path / "mask.dcm", of_series(series, random_mask(SHAPE, 3), CLASSES))


def test_two_files_of_one_instance_are_named(tmp_path: Path) -> None:
    def edit(header: Any, index: int) -> None:
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"

    series = dicom_series(tmp_path, turned("axial"), edit=edit)
    with pytest.raises(UserError, match=r"IM0001.dcm and .*IM0002.dcm have one SOPInstanceUID"):
        write_dicom_mask(tmp_path / "mask.dcm", of_series(series, random_mask(SHAPE, 3), CLASSES))


NONSENSE = (
    b"x" * 200,
    b"\x01\x02",
    b"\xe4\xff",
    b"a\\b",
    b"",
    b"nan",
    b"-1",
    b"9" * 30,
    b"00000000",
    b"20240231",
    b"1",
    b"256199",
    b"12.5",
)


@pytest.mark.parametrize(
    "tag", ["SliceThickness", "SeriesNumber", "PatientName", "PatientSex", "StudyDate", "StudyTime"]
)
def test_no_nonsense_in_the_source_s_header_costs_the_mask(
    tmp_path: Path, tag: str, caplog: pytest.LogCaptureFixture
) -> None:
    series = dicom_series(tmp_path, turned("axial"))
    mask = random_mask(SHAPE, 3)
    number = pydicom.tag.Tag(tag)
    vr = pydicom.datadict.dictionary_VR(number)
    for value in NONSENSE:
        for frame in series.frames:
            frame.header._dict[number] = RawDataElement(number, vr, len(value), value, 0, False, True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
        np.testing.assert_array_equal(labels_by_pydicom(path, series), mask)
    assert not [record for record in caplog.records if record.name.startswith("highdicom")]


def test_positions_of_more_digits_than_dicom_allows_are_carried(tmp_path: Path) -> None:
    """As many programs write them; 16 letters are allowed."""
    affine = turned("oblique")
    series = dicom_series(tmp_path, affine)
    for index, frame in enumerate(series.frames):
        position = "\\".join(f"{value:.15f}" for value in (affine @ (0, 0, index, 1))[:3]).encode()
        number = pydicom.tag.Tag("ImagePositionPatient")
        frame.header._dict[number] = RawDataElement(number, "DS", len(position), position, 0, False, True)
    mask = random_mask(SHAPE, 3)
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    assert_overlays(path, series, mask)
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    values = [text for group in groups for text in group.PlanePositionSequence[0].ImagePositionPatient]
    assert all(len(str(value)) <= 16 for value in values)


def test_255_classes_of_odd_and_long_names_are_255_segments(tmp_path: Path) -> None:
    shape = (16, 16, 1)
    series = dicom_series(tmp_path, turned("axial"), shape)
    mask = np.arange(256).reshape(shape).astype(np.uint8)
    names = [f"Größe\\ 脾 \n{'x' * (label % 90)}" for label in range(1, 256)]
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, names))
    np.testing.assert_array_equal(labels_by_pydicom(path, series), mask)
    labels = [item.SegmentLabel for item in pydicom.dcmread(path).SegmentSequence]
    assert labels == segment_labels(names) and len(set(labels)) == 255
    assert all(len(label) <= 64 and label.isprintable() and "\\" not in label for label in labels)


def test_a_gantry_tilt_keeps_its_positions(tmp_path: Path) -> None:
    affine = turned("axial")
    affine[1, 2] = 0.8
    series = dicom_series(tmp_path, affine)
    mask = random_mask(SHAPE, 3)
    path = write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES))
    assert_overlays(path, series, mask)
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(2.9)


@pytest.mark.slow
@pytest.mark.parametrize("study", ["prostatex_dicom", "chaos_ct_layout/DICOM_anon"])
def test_real_series_are_overlaid(shared_data: Path, tmp_path: Path, study: str) -> None:
    for frames in group_series(dicom_files(shared_data / study)).values():
        series = read_series(frames)
        mask = np.zeros(series.grid.shape, np.uint8)
        quarter = [count // 4 for count in mask.shape]
        mask[quarter[0] : 2 * quarter[0], quarter[1] : 3 * quarter[1], quarter[2] : -1] = 1
        mask[-quarter[0] :, : quarter[1], 0] = 2
        assert_overlays(write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES)), series, mask)


def test_files_without_a_suffix_in_any_order_give_the_same_object(tmp_path: Path) -> None:
    affine = turned("flipped")
    files = write_slices(tmp_path / "a", [f"{n:08d}" for n in (5, 2, 9, 1, 7, 3)], None, affine, patient)
    series = read_series(sorted(files))
    mask = random_mask(series.grid.shape, 3)
    assert_overlays(write_dicom_mask(tmp_path / "mask.dcm", of_series(series, mask, CLASSES)), series, mask)
