"""Masks carry the names of their classes in the NIfTI header, and are the same masks with them."""

from __future__ import annotations

import gzip
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeus_union.cache.colours import class_colour
from zeus_union.cache.grid import Grid
from zeus_union.stage2_segment.label_names import label_table, read_label_table
from zeus_union.stage2_segment.nifti import write_labels

AFFINE = np.array([[-0.8, 0.1, 0.0, 90.0], [0.1, 0.8, 0.2, -120.0], [0.0, -0.2, 3.0, -70.0], [0, 0, 0, 1]])
GRID = Grid((4, 5, 3), AFFINE)
MASK = (np.arange(60).reshape(GRID.shape) % 3).astype(np.uint8)


def test_voxels_and_geometry_are_the_same_with_and_without_names(tmp_path: Path) -> None:
    plain = nibabel.load(write_labels(tmp_path / "plain.nii.gz", MASK, GRID))
    named = nibabel.load(write_labels(tmp_path / "named.nii.gz", MASK, GRID, ("liver", "left kidney")))
    np.testing.assert_array_equal(np.asarray(named.dataobj), MASK)
    assert named.get_data_dtype() == np.uint8
    blocks = [image.header.binaryblock for image in (plain, named)]
    assert len({block[:108] + block[112:] for block in blocks}) == 1  # all but where the voxels begin
    assert read_label_table(named) == {1: "liver", 2: "left kidney"} and read_label_table(plain) == {}


def test_itk_reads_the_same_image(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    paths = [write_labels(tmp_path / f"{len(names)}.nii.gz", MASK, GRID, names) for names in ((), ("a", "b"))]
    plain, named = (sitk.ReadImage(str(path)) for path in paths)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(named), sitk.GetArrayFromImage(plain))
    for part in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(named, part)() == getattr(plain, part)()


def test_the_table_is_the_one_that_totalsegmentator_reads(tmp_path: Path) -> None:
    """TotalSegmentator takes the first extension's content, CaretExtension/VolumeInformation/LabelTable/Label."""
    image = nibabel.load(write_labels(tmp_path / "mask.nii.gz", MASK, GRID, ("liver",)))
    (extension,) = image.header.extensions
    assert extension.get_code() == 0
    root = ElementTree.fromstring(extension.get_content())
    assert root.tag == "CaretExtension"
    (label,) = root.findall("VolumeInformation/LabelTable/Label")
    assert (label.attrib["Key"], label.text) == ("1", "liver")
    shown = [round(float(label.attrib[part]) * 255) for part in ("Red", "Green", "Blue", "Alpha")]
    assert shown == [*class_colour(1), 255]
    assert root.findtext("VolumeInformation/VolumeType") == "Label"


def test_extensions_end_on_16_bytes_before_the_voxels(tmp_path: Path) -> None:
    content = gzip.decompress(write_labels(tmp_path / "m.nii.gz", MASK, GRID, ("ä", "b")).read_bytes())
    offset = int(np.frombuffer(content[108:112], "<f4")[0])
    assert offset % 16 == 0 and content[348] == 1
    assert content[offset:] == MASK.tobytes(order="F")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1), min_size=1, max_size=5))
def test_any_printable_name_comes_back(names: list[str]) -> None:
    header = nibabel.Nifti1Header()
    header.extensions.append(label_table(names))
    image = nibabel.Nifti1Image.from_bytes(nibabel.Nifti1Image(MASK, AFFINE, header).to_bytes())
    xml = ["".join(letter if letter not in "\ufffe\uffff" else "-" for letter in name) for name in names]
    assert read_label_table(image) == dict(enumerate(xml, 1))


def test_255_names_with_what_xml_cannot_hold_are_written(tmp_path: Path) -> None:
    names = [f"<class & {label}>\x00\x1b" for label in range(1, 256)]
    table = read_label_table(nibabel.load(write_labels(tmp_path / "m.nii.gz", MASK, GRID, names)))
    assert table == {label: f"<class & {label}>--" for label in range(1, 256)}
