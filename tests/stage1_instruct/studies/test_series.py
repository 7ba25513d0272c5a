"""A series is the same volume in the patient, however its files are called, ordered, packed and compressed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.dicom import Series, dicom_files, group_series, read_series
from zeus_union.stage1_instruct.studies.dicom_frames import read_frames

SHAPE = (5, 4, 6)  # columns, rows, slices
SPACING = (0.7, 1.3, 2.9)


def numbered(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int64]:
    """Every voxel another value."""
    return np.arange(np.prod(shape)).reshape(shape)


def affine_of(rotation: NDArray[np.float64], spacing: Sequence[float] = SPACING) -> NDArray[np.float64]:
    """Voxel (column, row, slice) to LPS mm."""
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = (-31.0, 12.5, 407.25)
    return affine


AXIAL = affine_of(np.eye(3))


def header_of(index: int, affine: NDArray[np.float64], size: tuple[int, int]) -> Dataset:
    """One slice of a volume without pixels."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MRImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = f"1.2.3.{index + 1}"
    header.Modality, header.SeriesInstanceUID, header.EchoTime, header.InstanceNumber = "MR", "1.2.3", 70, index + 1
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header.ImageOrientationPatient = [f"{v:.9g}" for k in (0, 1) for v in affine[:3, k] / spacing[k]]
    header.ImagePositionPatient = [f"{v:.9g}" for v in (affine @ (0, 0, index, 1))[:3]]
    header.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
    header.Columns, header.Rows = size
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    return header


def write_slices(
    folder: Path,
    names: Sequence[str],
    volume: NDArray[np.int64] | None = None,
    affine: NDArray[np.float64] = AXIAL,
    edit: Callable[[Any, int], None] = lambda header, index: None,
) -> list[Path]:
    """A series of single-frame files; `edit` changes a header last."""
    volume = numbered((*SHAPE[:2], len(names))) if volume is None else volume
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        header = header_of(index, affine, volume.shape[:2])
        header.PixelData = np.ascontiguousarray(volume[..., index].T).astype("<u2").tobytes()
        edit(header, index)
        header.save_as(folder / name, enforce_file_format=True)
    return [folder / name for name in names]


def names_of(count: int = SHAPE[2], pattern: str = "IM{:04d}.dcm") -> list[str]:
    return [pattern.format(index + 1) for index in range(count)]


def assert_same_series(series: Series, other: Series) -> None:
    np.testing.assert_array_equal(series.volume, other.volume)
    assert series.grid.same_as(other.grid, tolerance_mm=1e-6)


def assert_in_the_patient(series: Series, volume: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Every voxel of `series` shows what `volume` has at that point of the patient."""
    index = np.indices(series.volume.shape).reshape(3, -1)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.grid.affine @ np.vstack([index, np.ones(index.shape[1])])
    where = (np.linalg.inv(affine) @ lps)[:3]
    np.testing.assert_allclose(where, np.rint(where), atol=0.01)
    np.testing.assert_array_equal(series.volume.ravel(), volume[tuple(np.rint(where).astype(int))])


# Geometry.

NAMINGS = {
    "padded": "IM{:04d}.dcm",
    "not padded": "{}.dcm",
    "no suffix": "{:08d}",
    "number as suffix": "IM.{:03d}",
    "exported": "Müller, J. [{}] (T2).IMA",
    "copied": "slice.dcm.{}",
    "dots": "1.2.840.{}",
}


@settings(deadline=None, max_examples=25, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    turn=st.one_of(
        st.permutations([0, 1, 2]).flatmap(
            lambda axes: st.tuples(*[st.sampled_from([-1, 1])] * 3).map(lambda signs: np.eye(3)[axes] * signs)
        ),
        st.tuples(*[st.floats(-180, 180)] * 3).map(lambda angles: Rotation.from_euler("xyz", angles, True).as_matrix()),
    ),
    order=st.permutations(range(SHAPE[2])),
    naming=st.sampled_from(sorted(NAMINGS)),
    micrometres=st.booleans(),
)
def test_orientation_slice_order_and_file_names_do_not_move_a_voxel(
    turn: NDArray[np.float64], order: list[int], naming: str, micrometres: bool
):
    affine = affine_of(turn, [s / 50 for s in SPACING] if micrometres else SPACING)
    with tempfile.TemporaryDirectory() as folder:
        names = [NAMINGS[naming].format(place + 1) for place in order]
        write_slices(Path(folder), names, affine=affine)
        files = dicom_files(Path(folder))
        assert len(files) == SHAPE[2]
        assert_in_the_patient(read_series(files), numbered(), affine)


def test_a_missing_and_a_doubled_slice_of_micrometres_are_found(tmp_path: Path):
    files = write_slices(tmp_path, names_of(), affine=affine_of(np.eye(3), (0.002, 0.002, 0.0005)))
    with pytest.raises(UserError, match="a slice is missing"):
        read_series([*files[:2], *files[3:]])
    with pytest.raises(UserError, match="a slice is doubled"):
        read_series([*files, files[2]])
    with pytest.raises(UserError, match="a slice is doubled"):
        read_series([files[2], files[2]])


def test_pixel_spacings_of_micrometres_that_differ_are_refused(tmp_path: Path):
    def edit(header: Any, index: int) -> None:
        header.PixelSpacing = [0.002, 0.002 if index else 0.0025]

    with pytest.raises(UserError, match="different pixel spacing"):
        read_series(write_slices(tmp_path, names_of(), edit=edit))


# Which files.


def test_a_file_is_dicom_by_its_content(tmp_path: Path):
    names = ["1.dcm", "2.IMA", "3", "4.001", "5.dcm.1", "6.bak"]
    write_slices(tmp_path, names)
    assert [path.name for path in dicom_files(tmp_path)] == names
    assert_in_the_patient(read_series(dicom_files(tmp_path)), numbered(), AXIAL)


def test_what_is_not_dicom_is_passed_by_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_slices(tmp_path, names_of(pattern="IM{}"))
    shutil.copy(get_testdata_file("dicomdirtests/DICOMDIR"), tmp_path / "DICOMDIR")
    shutil.copy(get_testdata_file("dicomdirtests/DICOMDIR"), tmp_path / "index.bak")
    for name in ("Thumbs.db", ".DS_Store", "._IM1", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_bytes(b"\x08\0some text of some length")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "IM1.dcm").write_bytes(b"\0\5\x16\7")
    assert [path.name for path in dicom_files(tmp_path)] == names_of(pattern="IM{}")
    said = capsys.readouterr().err
    assert "notes.txt" in said and "Thumbs" not in said and "IM" not in said


@pytest.mark.parametrize("content", [b"", b"\0" * 600, b"not an image"])
def test_a_damaged_file_among_dicom_files_is_not_passed_by(tmp_path: Path, content: bytes):
    """It is called as they are: the series would be one slice short, unnoticed at its end."""
    write_slices(tmp_path, names_of(pattern="IM{}"))[-1].write_bytes(content)
    with pytest.raises(UserError, match="IM6 cannot be read as DICOM"):
        dicom_files(tmp_path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_are_read(tmp_path: Path, syntax: str):
    for index, name in enumerate(names_of(pattern="{}.bin")):
        header = header_of(index, AXIAL, SHAPE[:2])
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        header.PixelData = np.ascontiguousarray(numbered()[..., index].T).astype(order).tobytes()
        header["PixelData"].VR = "OW"
        del header.file_meta
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        header.save_as(tmp_path / name, implicit_vr=implicit, little_endian=little)
        assert (tmp_path / name).read_bytes()[128:132] != b"DICM"
    assert_in_the_patient(read_series(dicom_files(tmp_path)), numbered(), AXIAL)


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path):
    write_slices(tmp_path / "disk" / "Größe (1) [a]", names_of())
    study = tmp_path / "study"
    study.mkdir()
    (study / "series").symlink_to(tmp_path / "disk" / "Größe (1) [a]")
    (study / "again").symlink_to(tmp_path / "disk" / "Größe (1) [a]")
    (study / "up").symlink_to(study)
    assert len(dicom_files(study)) == SHAPE[2]
    assert_in_the_patient(read_series(dicom_files(study)), numbered(), AXIAL)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path):
    """As git-annex and datalad leave them where a file was not fetched."""
    files = write_slices(tmp_path, names_of())
    files[-1].unlink()
    os.symlink(tmp_path / "annex" / "x", files[-1])
    with pytest.raises(UserError, match=r"IM0006.dcm is a link to a file that is not there"):
        dicom_files(tmp_path)


# Values.


def test_every_slice_is_rescaled_by_its_own_slope_and_intercept(tmp_path: Path):
    def edit(header: Any, index: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = 1 + index / 4, -100 * index

    series = read_series(write_slices(tmp_path, names_of(), edit=edit))
    scale = np.arange(SHAPE[2])
    np.testing.assert_array_equal(series.volume, numbered() * (1 + scale / 4) - 100 * scale)


@pytest.mark.parametrize("allocated", [16, 32])
@pytest.mark.parametrize("stored", [9, 12, 16])
def test_signed_values_of_fewer_bits_than_are_allocated_keep_their_sign(tmp_path: Path, stored: int, allocated: int):
    """Upper bits left at 0, as some scanners do: -5 of 12 bits is stored as 0x0FFB."""
    volume = numbered() - 60

    def edit(header: Any, index: int) -> None:
        header.PixelRepresentation, header.BitsStored, header.HighBit = 1, stored, stored - 1
        header.BitsAllocated = allocated
        bits = (volume[..., index].T & ((1 << stored) - 1)).astype(f"<u{allocated // 8}")
        header.PixelData = bits.tobytes()

    np.testing.assert_array_equal(read_series(write_slices(tmp_path, names_of(), edit=edit)).volume, volume)


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_comes_in_upright(tmp_path: Path, signed: bool):
    def edit(header: Any, index: int) -> None:
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME1", int(signed)
        turned = (-1 if signed else 4095) - numbered()[..., index].T
        header.PixelData = turned.astype("<i2").tobytes()

    np.testing.assert_array_equal(read_series(write_slices(tmp_path, names_of(), edit=edit)).volume, numbered())


def test_hounsfield_units_are_what_they_are_in_monochrome1_too(tmp_path: Path):
    def edit(header: Any, index: int) -> None:
        header.PhotometricInterpretation, header.Modality = "MONOCHROME1", "CT"
        header.RescaleSlope, header.RescaleIntercept = 1, -1024

    series = read_series(write_slices(tmp_path, names_of(), edit=edit))
    np.testing.assert_array_equal(series.volume, numbered() - 1024)


@pytest.mark.parametrize("kind", ["PALETTE COLOR", "RGB"])
def test_colours_are_no_grey_values(tmp_path: Path, kind: str):
    files = write_slices(tmp_path, names_of(), edit=lambda h, _: setattr(h, "PhotometricInterpretation", kind))
    with pytest.raises(UserError, match=rf"{kind}, expected one slice in grey values"):
        read_series(files)


# Compressed.


def compress(files: Sequence[Path], syntax: str) -> None:
    for path in files:
        header = pydicom.dcmread(path)
        header.compress(syntax, generate_instance_uid=False)
        header.save_as(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_a_compressed_series_is_the_series(tmp_path: Path, syntax: str, signed: bool):
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    volume = numbered((40, 36, 2)) % 4000 - 2000 * signed
    files = write_slices(
        tmp_path, names_of(2), volume, edit=lambda h, _: setattr(h, "PixelRepresentation", int(signed))
    )
    plain = read_series(files)
    compress(files, syntax)
    assert_same_series(read_series(files), plain)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
def test_real_files_in_three_compressions_are_the_same_image(name: str):
    """pydicom's own test images: lossless JPEG-LS, JPEG 2000 and RLE of one MR slice."""
    for plugin in ("libjpeg", "openjpeg"):
        pytest.importorskip(plugin)
    series, plain = (read_series([Path(get_testdata_file(file))]) for file in (name, "MR_small.dcm"))
    assert_same_series(series, plain)


def test_a_missing_decoder_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(get_decoder(JPEGLSLossless)), "is_available", False)
    with pytest.raises(UserError, match=r"JPEG-LS Lossless.*pip install 'zeus-union\[dicom\]'"):
        read_series([Path(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))])


# Enhanced multi-frame files.


def item(**values: Any) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def write_enhanced(path: Path, files: Sequence[Path], shared: Sequence[str] = ("orientation", "measures")) -> Path:
    """One enhanced file of single-frame ones, in their order; what is not `shared` stands with every frame."""
    headers = [pydicom.dcmread(file) for file in files]
    first = headers[0]

    def groups(header: Any) -> dict[str, Dataset]:
        rescale = item(
            RescaleSlope=header.get("RescaleSlope", 1),
            RescaleIntercept=header.get("RescaleIntercept", 0),
            RescaleType="US",
        )
        kind = item(FrameType=list(header.get("ImageType", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])))
        measures = item(PixelSpacing=header.PixelSpacing, SliceThickness=header.get("SliceThickness", 5))
        return {
            "position": item(PlanePositionSequence=[item(ImagePositionPatient=header.ImagePositionPatient)]),
            "orientation": item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=header.ImageOrientationPatient)]
            ),
            "measures": item(PixelMeasuresSequence=[measures]),
            "rescale": item(PixelValueTransformationSequence=[rescale]),
            "echo": item(MREchoSequence=[item(EffectiveEchoTime=float(header.EchoTime))]),
            "kind": item(MRImageFrameTypeSequence=[kind]),
        }

    def merged(header: Any, names: Sequence[str]) -> Dataset:
        dataset = Dataset()
        for name in names:
            dataset.update(groups(header)[name])
        return dataset

    enhanced = pydicom.Dataset()
    enhanced.file_meta = FileMetaDataset()
    enhanced.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    classes = {MRImageStorage: EnhancedMRImageStorage, CTImageStorage: EnhancedCTImageStorage}
    enhanced.file_meta.MediaStorageSOPClassUID = enhanced.SOPClassUID = classes[first.SOPClassUID]
    enhanced.file_meta.MediaStorageSOPInstanceUID = enhanced.SOPInstanceUID = "1.2.3.99"
    tags = (
        "Modality",
        "SeriesInstanceUID",
        "MagneticFieldStrength",
        "Columns",
        "Rows",
        "SamplesPerPixel",
        "BitsStored",
    )
    for tag in (*tags, "BitsAllocated", "HighBit", "PixelRepresentation", "PhotometricInterpretation"):
        if tag in first:
            setattr(enhanced, tag, first[tag].value)
    enhanced.NumberOfFrames = len(files)
    every = [name for name in groups(first) if name not in shared]
    enhanced.SharedFunctionalGroupsSequence = Items([merged(first, shared)])
    enhanced.PerFrameFunctionalGroupsSequence = Items([merged(header, every) for header in headers])
    enhanced.PixelData = b"".join(header.PixelData for header in headers)
    enhanced.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("shared", [("orientation", "measures"), (), ("orientation", "measures", "echo", "kind")])
@pytest.mark.parametrize("storage", [MRImageStorage, CTImageStorage])
def test_an_enhanced_file_is_the_volume_of_its_single_frames(tmp_path: Path, shared: tuple[str, ...], storage: str):
    def edit(header: Any, index: int) -> None:
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = storage
        header.Modality = "CT" if storage == CTImageStorage else "MR"
        header.RescaleSlope, header.RescaleIntercept = 1 + index / 4, -100 * index

    affine = affine_of(Rotation.from_euler("xyz", (20, -35, 70), True).as_matrix())
    files = write_slices(tmp_path / "single", names_of(), affine=affine, edit=edit)
    random = np.random.default_rng(0)
    shuffled = [files[index] for index in random.permutation(len(files))]
    enhanced = read_series([write_enhanced(tmp_path / "enhanced", shuffled, shared)])
    assert_same_series(enhanced, read_series(files))


def test_an_enhanced_phantom_is_the_phantom(chaos: Path, tmp_path: Path):
    files = dicom_files(chaos / "MR" / "1" / "T2SPIR" / "DICOM_anon")
    assert_same_series(read_series([write_enhanced(tmp_path / "enhanced.dcm", files)]), read_series(files))


def test_chaos_in_enhanced_files_is_chaos(chaos: Path):
    """Both echoes in one file, frame by frame in turn; the pictures are counted as before."""
    before = open_dataset("chaos", chaos).load("chaos01")
    t1, t2 = (chaos / "MR" / "1" / sequence / "DICOM_anon" for sequence in ("T1DUAL", "T2SPIR"))
    echoes = [dicom_files(t1 / phase) for phase in ("OutPhase", "InPhase")]
    write_enhanced(t1 / "dual", [file for pair in zip(*echoes) for file in pair])
    for phase in ("OutPhase", "InPhase"):
        shutil.rmtree(t1 / phase)
    single = dicom_files(t2)
    write_enhanced(t2 / "spir", single)
    for file in single:
        file.unlink()
    after = open_dataset("chaos", chaos).load("chaos01")
    for modality, image in before.images.items():
        np.testing.assert_array_equal(after.images[modality], image)
        np.testing.assert_array_equal(after.modality_labels[modality], before.modality_labels[modality])


@pytest.mark.parametrize("kind", ["enhanced", "deflated", "bare"])
def test_a_damaged_file_is_an_error_or_a_volume_never_a_traceback(tmp_path: Path, kind: str):
    path = write_enhanced(tmp_path / "e.dcm", write_slices(tmp_path, names_of()))
    header = pydicom.dcmread(path)
    if kind == "deflated":
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(path)
    elif kind == "bare":
        del header.file_meta
        header.save_as(path, implicit_vr=True, little_endian=True)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    assert read_series([path]).volume.shape == SHAPE
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged[: random.integers(len(whole))] if random.random() < 0.3 else damaged)
        with contextlib.suppress(UserError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_series([path])


def test_the_echoes_of_one_enhanced_file_are_two_series(tmp_path: Path):
    first = write_slices(tmp_path, names_of(pattern="a{}"))
    second = write_slices(tmp_path, names_of(pattern="b{}"), edit=lambda h, _: setattr(h, "EchoTime", 2.3))
    enhanced = write_enhanced(tmp_path / "both", [file for pair in zip(first, second) for file in pair])
    groups = group_series([enhanced])
    assert sorted(echo for _, echo in groups) == [2.3, 70]
    assert_same_series(read_series(groups["1.2.3", 70.0]), read_series(first))


def test_the_same_frame_twice_is_named_by_its_number(tmp_path: Path):
    files = write_slices(tmp_path, names_of())
    with pytest.raises(UserError, match=r"e.dcm \(frame 3\) and e.dcm \(frame 4\) lie at the same position"):
        read_series([write_enhanced(tmp_path / "e.dcm", [*files[:3], *files[2:]])])


def test_a_multi_frame_file_without_places_is_refused_but_can_be_grouped(tmp_path: Path):
    def edit(header: Any, index: int) -> None:
        header.NumberOfFrames, header.PixelData = 2, header.PixelData * 2

    (file,) = write_slices(tmp_path, ["cine.dcm"], edit=edit)
    assert len(group_series([file])) == 1 and read_frames(file)[0].count == 2
    with pytest.raises(UserError, match=r"cine.dcm holds 2 frames and not where each of them lies"):
        read_series([file])


def test_an_enhanced_file_that_lost_a_description_is_damaged(tmp_path: Path):
    path = write_enhanced(tmp_path / "e.dcm", write_slices(tmp_path, names_of()))
    header = pydicom.dcmread(path)
    del header.PerFrameFunctionalGroupsSequence[2]
    header.save_as(path)
    with pytest.raises(UserError, match="holds 6 frames and describes 5"):
        read_series([path])
