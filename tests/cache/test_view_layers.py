"""Layers of views: their names, who is due in them, and that each names the pictures it was made from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_cache import CARD, ENCODER_RECIPE, SIDE, SLICES, SLICES_RECIPE, build, make_embeddings, make_slices

from zeus_union.cache.errors import UserError
from zeus_union.cache.layout import kind_of, row_axes, shard_folder, short_names
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.view_layers import count_views, made_from, view_layer, view_of
from zeus_union.cache.writer import CacheWriter


def begin(path: Path, views: int, recipe: dict[str, object] | None = None) -> CacheWriter:
    writer = CacheWriter(path, CARD)
    for view in range(1, views + 1):
        writer.begin_layer(view_layer("slices", view), {"view": view, **(recipe or {})})
        writer.begin_layer(view_layer("embeddings/tiny", view), {**ENCODER_RECIPE, "slices": view})
    return writer


def write(writer: CacheWriter, subject: str, view: int, shift: int = 0) -> None:
    random = np.random.default_rng([ord(subject), view, shift])
    images = random.integers(0, 256, (SLICES, 2, SIDE, SIDE), np.uint8)
    writer.write_view(subject, view, images, random.integers(0, 3, (SLICES, SIDE, SIDE), np.uint8))
    writer.write_embeddings(view_layer("embeddings/tiny", view), subject, make_embeddings(subject) + view)


@pytest.fixture(params=[True, False], ids=["packed", "sharded"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three subjects, of which B has no labels, and a view of the others."""
    path = tmp_path / "c.h5"
    writer = begin(path, 1)
    writer.begin_layer("slices", SLICES_RECIPE)
    writer.begin_layer("embeddings/tiny", ENCODER_RECIPE)
    for subject in CARD.subjects:
        writer.write_slices(subject, make_slices(subject, subject != "B"))
        writer.write_embeddings("embeddings/tiny", subject, make_embeddings(subject))
        if subject != "B":
            assert not writer.finished("slices@view1", subject)
            write(writer, subject, 1)
        assert all(writer.finished(layer, subject) for layer in ("slices@view1", "embeddings/tiny@view1"))
    writer.finalize(request.param)
    return path


@given(st.integers(1, 999), st.sampled_from(["slices", "embeddings/tiny", "embeddings/a-b.c"]))
def test_a_view_is_of_its_layers_kind_and_no_encoder(view: int, layer: str) -> None:
    name = view_layer(layer, view)
    assert (kind_of(name), row_axes(name), view_of(name)) == (kind_of(layer), row_axes(layer), view)
    assert view_layer(layer, 0) == layer and view_of(layer) == 0
    assert short_names([name, "embeddings/sam", "instructions/a@fold1"], "embeddings") == ("sam",)
    assert made_from(name) == ("slices" if layer == "slices" else f"slices@view{view}")


@pytest.mark.parametrize(
    "layer", ["slices@view0", "slices@view01", "slices@fold1", "embeddings/x@view", "instructions/x@view1", "slices@view1@view2"]
)  # fmt: skip
def test_other_endings_are_no_layer(layer: str) -> None:
    with pytest.raises(UserError, match="is not a layer name"):
        kind_of(layer)


def test_views_count_up_to_the_first_that_lacks_pictures_or_embeddings() -> None:
    layers = [
        "slices",
        "embeddings/x",
        *(f"slices@view{k}" for k in (1, 2, 3)),
        *(f"embeddings/x@view{k}" for k in (1, 3)),
    ]
    assert count_views(layers, "x") == 1 and count_views(layers, "y") == 0


def test_a_subject_without_labels_is_finished_without_views(path: Path) -> None:
    with Cache(path) as cache:
        assert cache.subjects == CARD.subjects and cache.views("tiny") == 1 and cache.store("tiny") == "uint8"
        rows = cache.rows_of(["A", "C"])
        views = np.ones(len(rows), int)
        expected = np.concatenate([make_embeddings(subject) + 1 for subject in "AC"])
        stored = cache.read_embeddings("tiny", rows, [0, 1], views=views)
        decoded = stored.values * stored.scale[..., None, None] + stored.offset[..., None, None]
        np.testing.assert_allclose(decoded, expected, atol=0.02)
        assert cache.masks(rows, views).shape == (4, SIDE, SIDE)
        with pytest.raises(UserError, match="has no slices@view1 of subject B"):
            cache.images(cache.rows_of(["B"]), [1, 1])
        with pytest.raises(UserError, match="has no layer slices@view2"):
            cache.images(rows, views + 1)
    assert verify(path) == []


def test_a_view_that_was_begun_keeps_a_cache_from_being_finished(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    build(path, pack=False)
    writer = begin(path, 1)
    for subject in "AB":
        write(writer, subject, 1)
    with pytest.raises(UserError, match=r"slices@view1 lacks C; embeddings/tiny@view1 lacks C"):
        writer.finalize()
    with Cache(path) as cache:  # as it was before
        assert cache.views("tiny") == 0
    write(begin(path, 1), "C", 1)
    begin(path, 1).finalize()
    with Cache(path) as cache:
        assert cache.views("tiny") == 1


def test_embeddings_of_other_pictures_of_a_view_are_found(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    build(path, pack=False)
    writer = begin(path, 1)
    for subject in CARD.subjects:
        write(writer, subject, 1)
    writer.finalize(pack=False)
    assert verify(path) == []
    for shard in (shard_folder(path) / "slices@view1").glob("A.*"):
        os.chmod(shard, 0o644)
        shard.unlink()
    again = begin(path, 1)
    random = np.random.default_rng(9)
    again.write_view(
        "A", 1, random.integers(0, 256, (SLICES, 2, SIDE, SIDE), np.uint8), np.zeros((SLICES, SIDE, SIDE), np.uint8)
    )
    assert any("embeddings/tiny@view1, subject A: made from other slices" in finding for finding in verify(path))


def test_views_of_another_recipe_are_refused_with_what_to_do(path: Path) -> None:
    with pytest.raises(UserError, match=r"slices@view1 .*mirrored: \(absent\) -> true") as error:
        begin(path, 1, {"mirrored": True})
    assert "repeat the options" in str(error.value) and "--variant" not in str(error.value)


def test_a_view_has_the_slices_of_its_subject(path: Path) -> None:
    writer = begin(path, 2)
    with pytest.raises(ValueError, match="axis 'slice'"):
        writer.write_view("A", 2, np.zeros((3, 2, SIDE, SIDE), np.uint8), np.zeros((3, SIDE, SIDE), np.uint8))
    with pytest.raises(UserError, match="has no slices@view2 of A yet"):
        writer.write_embeddings("embeddings/tiny@view2", "A", make_embeddings("A"))
