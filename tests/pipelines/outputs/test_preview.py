"""The preview shows slices that tell something, in their shape, with the patient's sides on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.pipelines.outputs.studies import abdomen
from zeus_union.cache.grid import VIEWS, Grid
from zeus_union.cache.page.drawing import LEGEND
from zeus_union.cache.page.telling import sides, telling_slices
from zeus_union.pipelines.outputs.preview import draw_preview
from zeus_union.pipelines.segment.segmentation import Segmentation


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were to be saved, which takes a second each."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def pictures(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def texts(figure: Figure) -> str:
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return "\n".join([figure.get_suptitle(), *(axes.get_title() for axes in pictures(figure)), *legend])


# Which slices.


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.integers(1, 12).flatmap(
        lambda slices: st.integers(1, 5).flatmap(
            lambda classes: st.lists(
                st.lists(st.sampled_from([0, 0, 0, 1, 5, 40]), min_size=classes, max_size=classes),
                min_size=slices,
                max_size=slices,
            )
        )
    )
)
def test_no_empty_slice_is_shown_while_others_exist(voxels: list[list[int]]) -> None:
    counts = np.array(voxels)
    chosen = telling_slices(counts)
    assert len(chosen) == len(set(chosen)) <= 3 and chosen == sorted(chosen)
    filled = np.flatnonzero(counts.any(axis=1))
    if len(filled):
        assert len(chosen) == min(3, len(counts))
        assert len(set(chosen) & set(filled)) == min(3, len(filled))
    assert all(0 <= number < len(counts) for number in chosen)
    most = sorted(filled, key=lambda number: -np.count_nonzero(counts[number]))[:1]
    if most:  # at least as many classes as the single slice with the most has
        assert np.count_nonzero(counts[chosen].any(axis=0)) >= np.count_nonzero(counts[most[0]])


def one_class(areas: Sequence[int]) -> list[int]:
    return telling_slices(np.array(areas)[:, None])


def test_three_classes_in_three_places_are_all_shown() -> None:
    voxels = np.zeros((30, 3), int)
    voxels[2:9, 0], voxels[14, 1], voxels[20:28, 2] = 500, 3, 90
    chosen = telling_slices(voxels)
    assert voxels[chosen].any(axis=0).all()


def test_slices_of_one_class_are_spread_over_it() -> None:
    chosen = one_class([0, 0, 1, 5, 9, 10, 10, 10, 10, 9, 8, 6, 2, 0])
    assert chosen[1] - chosen[0] >= 2 and chosen[2] - chosen[1] >= 2
    assert one_class([0, 7, 0, 0]) == one_class([0, 7, 0, 0]) and 1 in one_class([0, 7, 0, 0])


def test_of_nothing_three_slices_are_spread_over_the_study() -> None:
    assert telling_slices(np.zeros((41, 2), int)) == [10, 20, 30]
    assert telling_slices(np.zeros((1, 2), int)) == [0]


# Which side.


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    view=st.sampled_from(sorted(VIEWS)),
)
def test_letters_stand_where_the_patient_s_sides_are(axes: list[int], signs: tuple[int, ...], view: str) -> None:
    """A voxel at the picture's left edge lies, in the patient, to that side of one at the right edge."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[axes] * signs
    grid = Grid((4, 5, 6), affine, view)
    index = np.stack(np.indices(grid.shape), axis=-1)
    places = np.stack([grid.to_slices(index[..., axis]) for axis in range(3)], axis=-1) @ affine[:3, :3].T
    picture = places[0]  # (rows, columns, 3) mm in RAS
    towards = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    edges = {"left": picture[0, 0], "right": picture[0, -1], "top": picture[0, 0], "bottom": picture[-1, 0]}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    for side, letter in sides(grid).items():
        axis, sign = towards[letter]
        assert sign * (edges[side] - edges[opposite[side]])[axis] > 0


def test_radiology_s_customs_are_kept() -> None:
    grid = Grid((4, 5, 6), np.eye(4))
    assert sides(grid) == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert sides(grid.seen("coronal")) == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    assert sides(grid.seen("sagittal")) == {"left": "A", "right": "P", "top": "S", "bottom": "I"}


# The picture.


def test_it_says_study_modality_slice_class_and_volume(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_preview(abdomen(missing=("FLAIR",)), tmp_path / "preview.png")
    (figure,) = drawn
    assert len(pictures(figure)) == 6
    said = texts(figure)
    for part in (
        "patient 7",
        "missing: FLAIR",
        "T1, slice ",
        "T2, slice ",
        "1 liver\n5.76 ml",
        "2 spleen\n0 ml, nothing",
    ):
        assert part in said
    letters = {text.get_text() for text in pictures(figure)[0].texts}
    assert letters == {"R", "L", "A", "P"}


@pytest.mark.parametrize(("view", "aspect"), [("axial", 3 / 2), ("coronal", 4 / 2), ("sagittal", 4 / 3)])
def test_pixels_have_the_shape_of_voxels(tmp_path: Path, drawn: list[Figure], view: str, aspect: float) -> None:
    draw_preview(abdomen(view), tmp_path / "preview.png")
    assert [axes.get_aspect() for axes in pictures(drawn[0])] == pytest.approx([aspect] * 6)


def test_outlines_surround_the_class_and_are_closed_at_the_edge(tmp_path: Path, drawn: list[Figure]) -> None:
    study = abdomen()
    mask = np.zeros_like(study.mask)
    mask[:, :4] = 1  # from edge to edge
    mask[..., 0] = 2  # a whole slice, which has no border inside
    draw_preview(replace(study, mask=mask), tmp_path / "preview.png")
    for axes in pictures(drawn[0]):
        assert axes.collections and all(collection.get_paths()[0].vertices.size for collection in axes.collections)
        assert axes.get_xlim() == (-0.5, 19.5) and axes.get_ylim() == (15.5, -0.5)


def test_a_mask_of_nothing_is_said_to_be_so(tmp_path: Path, drawn: list[Figure]) -> None:
    study = abdomen()
    draw_preview(replace(study, mask=np.zeros_like(study.mask)), tmp_path / "preview.png")
    assert "nothing predicted" in drawn[0].get_suptitle()


@pytest.mark.filterwarnings("error")
def test_names_with_signs_of_their_own_are_drawn_as_they_are(tmp_path: Path) -> None:
    classes = ("$liver_{", "_spleen", "脾 \\frac")
    draw_preview(replace(abdomen(), study="a $b_ study", classes=classes), tmp_path / "preview.png")
    assert matplotlib.image.imread(tmp_path / "preview.png").ndim == 3


def test_of_255_classes_those_with_voxels_are_listed(tmp_path: Path, drawn: list[Figure]) -> None:
    study = abdomen()
    mask = np.where(study.mask > 0, study.mask + 200, 0).astype(np.uint8)
    classes = tuple(f"class {label}" for label in range(1, 256))
    draw_preview(replace(study, mask=mask, classes=classes), tmp_path / "preview.png")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert len(labels) == LEGEND + 1 and labels[-1] == f"and {255 - LEGEND} more"
    assert any(label.startswith("201 class 201") for label in labels)


def test_more_than_four_modalities_are_named_and_one_slice_is_enough(tmp_path: Path, drawn: list[Figure]) -> None:
    image = np.zeros((5, 4, 1), np.float32)
    mask = np.ones((5, 4, 1), np.uint8)
    study = Segmentation("s", ("a",), mask, Grid(mask.shape, np.eye(4)), {f"M{k}": image for k in range(6)})
    draw_preview(study, tmp_path / "preview.png")
    assert len(pictures(drawn[0])) == 4 and "also read: M4, M5" in drawn[0].get_suptitle()


@pytest.mark.slow
def test_a_real_study_is_drawn(shared_data: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    folder = shared_data / "spinal_cord_mt"
    image, mask = (nibabel.load(folder / name) for name in ("t2dir_t2.nii.gz", "t2dir_t2_seg-manual.nii.gz"))
    grid = Grid(image.shape, image.affine, "sagittal")
    values = {"T2": image.get_fdata(dtype=np.float32)}
    draw_preview(Segmentation("cord", ("cord",), np.asarray(mask.dataobj, np.uint8), grid, values), tmp_path / "p.png")
    assert all(axes.collections for axes in pictures(drawn[0]))
