"""The same study, whatever the format of its files; and pictures as nnU-Net stores them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.studies.nifti import read_volume
from zeus_union.stage1_instruct.studies.slices import study_to_slices


def edit(folder: Path, **values: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nii"])
def test_a_data_set_in_another_format_is_the_same_data_set(nnunet: Path, ending: str):
    before = open_dataset("nnunet", nnunet).load("phantom_001")
    for path in sorted(nnunet.rglob("*.nii.gz")):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(path).replace(".nii.gz", ending))
        path.unlink()
    edit(nnunet, file_ending=ending)
    after = open_dataset("nnunet", nnunet).load("phantom_001")
    assert after.grid.same_as(before.grid, tolerance_mm=1e-3)
    np.testing.assert_array_equal(after.labels, before.labels)
    for modality, image in before.images.items():
        np.testing.assert_array_equal(after.images[modality], image)
    kept = sorted(path.suffix for path in after.sources.values())
    assert kept == (sorted([".mhd", ".raw"] * 4) if ending == ".mhd" else [ending] * 4)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".mhd"])
def test_a_volume_that_is_cut_or_no_volume_is_named(tmp_path: Path, ending: str):
    path = tmp_path / f"image{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((4, 5, 6), np.int16)), str(path))
    whole = (tmp_path / "image.raw" if ending == ".mhd" else path).read_bytes()
    (tmp_path / "image.raw" if ending == ".mhd" else path).write_bytes(whole[:-60])
    with pytest.raises(UserError, match=rf"image\{ending} cannot be read as {ending}"):
        read_volume(path)
    path.write_text("nothing of the kind")
    with pytest.raises(UserError, match=rf"image\{ending} cannot be read as {ending}"):
        read_volume(path)


def test_an_oblique_volume_lies_where_itk_says(tmp_path: Path):
    image = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    image.SetSpacing((0.5, 0.7, 3))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 1, 0, -0.6, 0, 0.8, 0.8, 0, 0.6))
    SimpleITK.WriteImage(image, str(tmp_path / "image.nrrd"))
    volume, grid = read_volume(tmp_path / "image.nrrd")
    assert volume.shape == (6, 5, 4)
    for index in ((0, 0, 0), (5, 4, 3), (2, 3, 1)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert (grid.affine @ (*index, 1))[:3] == pytest.approx((-x, -y, z))


def pictures(folder: Path, colour: bool, ending: str, depth: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """A 2D data set in nnU-Net's layout: (rows, columns, channel) and its labels."""
    random = np.random.default_rng(0)
    top = 60000 if depth is np.uint16 else 256
    pixels = random.integers(0, top, (20, 30, 3)).astype(depth)
    labels = random.integers(0, 3, (20, 30)).astype(np.uint8)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    if colour:
        Image.fromarray(pixels).save(folder / "imagesTr" / f"skin_0000{ending}")
    for channel in range(0 if colour else 3):
        Image.fromarray(pixels[..., channel]).save(folder / "imagesTr" / f"skin_{channel:04d}{ending}")
    Image.fromarray(labels).save(folder / "labelsTr" / f"skin{ending}")
    values = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "naevus": 1, "melanoma": 2},
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(values))
    return pixels, labels


@pytest.mark.parametrize(("colour", "ending"), [(True, ".png"), (False, ".png"), (False, ".tif"), (True, ".bmp")])
def test_pictures_are_studies_of_one_upright_slice(tmp_path: Path, colour: bool, ending: str):
    pixels, labels = pictures(tmp_path, colour, ending)
    study = open_dataset("nnunet", tmp_path).load("skin")
    assert study.grid.shape == (30, 20, 1) and study.grid.spacing == (1, 1, 1)
    for channel, name in enumerate("RGB"):
        np.testing.assert_array_equal(study.grid.to_slices(study.images[name])[0], pixels[..., channel])
    np.testing.assert_array_equal(study.grid.to_slices(study.labels)[0], labels)
    assert study_to_slices(study).images.shape == (1, 3, 256, 256)
    one = open_dataset("nnunet", tmp_path, modalities=("B",)).load("skin")
    np.testing.assert_array_equal(one.images["B"], study.images["B"])


def test_pictures_of_16_bits_are_read_at_their_depth(tmp_path: Path):
    pixels, _ = pictures(tmp_path, False, ".png", np.uint16)
    study = open_dataset("nnunet", tmp_path).load("skin")
    np.testing.assert_array_equal(study.grid.to_slices(study.images["G"])[0], pixels[..., 1])


def test_a_label_picture_with_a_palette_holds_numbers(tmp_path: Path):
    _, labels = pictures(tmp_path, True, ".png")
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "labelsTr" / "skin.png")
    study = open_dataset("nnunet", tmp_path).load("skin")
    np.testing.assert_array_equal(study.grid.to_slices(study.labels)[0], labels)


def test_pictures_that_lose_depth_or_pages_are_refused(tmp_path: Path):
    deep = SimpleITK.GetImageFromArray(np.full((5, 6, 3), 40000, np.uint16), isVector=True)
    SimpleITK.WriteImage(deep, str(tmp_path / "deep.png"))
    with pytest.raises(UserError, match=r"deep.png has colours of 16 bits"):
        read_volume(tmp_path / "deep.png")
    pages = [Image.fromarray(np.full((5, 6), page, np.uint8)) for page in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=r"stack.tif has 3 pages"):
        read_volume(tmp_path / "stack.tif")
    with pytest.raises(UserError, match=r"notes.txt.*formats are"):
        (tmp_path / "notes.txt").write_text("x")
        read_volume(tmp_path / "notes.txt")


def test_symlinked_folders_and_files_are_followed(nnunet: Path, tmp_path: Path):
    before = open_dataset("nnunet", nnunet).load("phantom_001")
    link = tmp_path / "link"
    link.mkdir()
    (link / "dataset.json").symlink_to(nnunet / "dataset.json")
    (link / "imagesTr").symlink_to(nnunet / "imagesTr")
    (link / "labelsTr").mkdir()
    for path in (nnunet / "labelsTr").iterdir():
        (link / "labelsTr" / path.name).symlink_to(path)
    (tmp_path / "whole").symlink_to(link)
    after = open_dataset("nnunet", tmp_path / "whole").load("phantom_001")
    np.testing.assert_array_equal(after.labels, before.labels)
    assert sorted(after.sources) == sorted(before.sources)


def test_a_single_slice_nifti_of_two_axes_is_a_volume(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 6), np.float32), np.eye(4)), tmp_path / "slice.nii")
    assert read_volume(tmp_path / "slice.nii")[0].shape == (5, 6, 1)
