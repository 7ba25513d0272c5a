"""Cached views: layers like all others. They are resumed, added to, counted, and refused where they are of another kind."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.stage1_instruct.building.quick_encoder import QuickEncoder
from zeus_union.cache import augmentation_draws
from zeus_union.cache.errors import UserError
from zeus_union.cache.pack import pack
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter
from zeus_union.stage1_instruct.building.loop import LAYERS, BuildOptions, build_cache
from zeus_union.stage1_instruct.building.parts import Share
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import Models, load_models
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.study import Dataset, Study

SUBJECTS = ("phantom_001", "phantom_002")
MODALITIES = ("T1-DUAL-in", "T2-SPIR")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", folder, subjects=2, seed=5)
    return folder


@pytest.fixture
def dataset(root: Path) -> Dataset:
    """Two phantoms in two modalities."""
    return open_dataset("nnunet", root, modalities=MODALITIES)


@pytest.fixture
def models(tiny_parts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setattr(Models, "encoder", QuickEncoder())
    return load_models(load_profile("lite", {**tiny_parts, "projection": "untrained"}))


def options(out: Path, views: int, **more: Any) -> BuildOptions:
    """Slices 0 and 6 of each, without texts."""
    return BuildOptions(out=out, slice_step=6, layers=("slices", "embeddings"), views=views, **more)


def rows_of_views(cache: Cache, views: int) -> list[bytes]:
    """Pictures, masks and embeddings of every view, of all slices of the labelled subjects."""
    rows = np.flatnonzero(cache.rows["labelled"])
    read = []
    for view in range(1, views + 1):
        of = np.full(len(rows), view)
        stored = cache.read_embeddings("litemedsam", rows, range(len(cache.modalities)), views=of)
        read += [cache.images(rows, of).tobytes(), cache.masks(rows, of).tobytes(), stored.values.tobytes()]
    return read


def unlabelled(dataset: Dataset, *names: str) -> Dataset:
    """The same without the labels of some subjects."""

    def load(subject: str) -> Study:
        study = dataset.load(subject)
        return replace(study, labels=None, modality_labels={}) if subject in names else study

    assert dataset.labelled is not None
    labelled = {subject: case for subject, case in dataset.labelled.items() if subject not in names}
    return replace(dataset, load=load, labelled=labelled)


def test_a_view_has_the_slices_of_its_subject_with_other_pictures_and_masks(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    build_cache(dataset, models, options(tmp_path / "a.h5", views=2))
    with Cache(tmp_path / "a.h5") as cache:
        assert cache.layers == (
            "embeddings/litemedsam",
            "embeddings/litemedsam@view1",
            "embeddings/litemedsam@view2",
            "slices",
            "slices@view1",
            "slices@view2",
        )
        assert cache.encoders == ("litemedsam",) and cache.views("litemedsam") == 2 and cache.views("sam") == 0
        rows = np.arange(len(cache.rows))
        copies = [cache.images(rows, np.full(len(rows), view)) for view in range(3)]
        np.testing.assert_array_equal(copies[0], cache.images(rows))
        masks = [cache.masks(rows, np.full(len(rows), view)) for view in range(3)]
        shown = cache.rows["foreground"] > 0
        assert shown.any()
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert all((copies[a][row] != copies[b][row]).any() for row in rows)
            assert all((masks[a][row] != masks[b][row]).any() for row in rows[shown])
        # Rows of several views in one call are those of each alone.
        mixed = cache.read_embeddings("litemedsam", rows, [1], views=rows % 3)
        for row in rows:
            alone = cache.read_embeddings("litemedsam", [row], [1], views=[row % 3])
            np.testing.assert_array_equal(mixed.values[row], alone.values[0])
        # The embeddings are those of the stored pictures.
        encoder, one = models.encoder, copies[2][0]
        stored = cache.read_embeddings("litemedsam", [0], [0, 1], views=[2])
        decoded = stored.values * stored.scale[..., None, None] + stored.offset[..., None, None]
        np.testing.assert_allclose(decoded[0], encoder.encode(one).numpy(), atol=float(stored.scale.max()))
        assert cache.recipe("slices@view2")["view"] == 2 and not cache.recipe("slices@view2")["mirrored"]
        assert cache.recipe("slices@view1")["slices"] == cache.fingerprint("slices")
        assert cache.recipe("embeddings/litemedsam@view1")["slices"] == cache.fingerprint("slices@view1")
    assert verify(tmp_path / "a.h5") == []


def test_a_killed_build_of_views_goes_on_and_ends_equal(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(dataset, models, options(tmp_path / "whole.h5", views=2))
    write, count = CacheWriter.write_view, []

    def interrupted(self: CacheWriter, *rest: Any) -> None:
        count.append(rest[:2])
        if len(count) == 4:
            raise KeyboardInterrupt
        write(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheWriter, "write_view", interrupted)
        build_cache(dataset, models, options(tmp_path / "parts.h5", views=2))
    assert count[-1] == ("phantom_002", 2)
    with pytest.raises(UserError, match=r"unfinished: 1 of 2 subjects.*slices@view2 lacks phantom_002"):
        Cache(tmp_path / "parts.h5")
    with Cache(tmp_path / "parts.h5", allow_partial=True) as cache:
        assert cache.subjects == ("phantom_001",) and cache.views("litemedsam") == 2
    assert build_cache(dataset, models, options(tmp_path / "parts.h5", views=2)).subjects == 1
    with Cache(tmp_path / "whole.h5") as whole, Cache(tmp_path / "parts.h5") as parts:
        assert rows_of_views(whole, 2) == rows_of_views(parts, 2)
        assert [whole.fingerprint(layer) for layer in whole.layers] == [
            parts.fingerprint(name) for name in parts.layers
        ]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "sharded"])
def test_views_are_added_to_a_finished_cache_and_fewer_leave_the_others(
    dataset: Dataset, models: Models, tmp_path: Path, packed: bool
) -> None:
    out = tmp_path / "a.h5"
    build_cache(dataset, models, options(out, views=0, pack=packed))
    with Cache(out) as cache:
        assert cache.views("litemedsam") == 0
        before = cache.fingerprint("slices"), cache.images(range(len(cache.rows))).tobytes()
    for asked, there in ((1, 1), (3, 3), (2, 3), (0, 3)):
        build_cache(dataset, models, options(out, views=asked, pack=packed))
        with Cache(out) as cache:
            assert cache.views("litemedsam") == there
            assert (cache.fingerprint("slices"), cache.images(range(len(cache.rows))).tobytes()) == before
    build_cache(dataset, models, options(tmp_path / "at-once.h5", views=3))
    with Cache(out) as cache, Cache(tmp_path / "at-once.h5") as at_once:
        assert cache.state == ("packed" if packed else "sharded")
        assert rows_of_views(cache, 3) == rows_of_views(at_once, 3)
    assert verify(out) == []
    if not packed:
        pack(out, tmp_path / "one.h5")
        with Cache(tmp_path / "one.h5") as one, Cache(out) as cache:
            assert rows_of_views(one, 3) == rows_of_views(cache, 3)


def test_subjects_without_labels_have_no_views_and_are_finished_all_the_same(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    mixed = unlabelled(dataset, "phantom_001")
    assert build_cache(mixed, models, options(tmp_path / "a.h5", views=1)).complete
    with Cache(tmp_path / "a.h5") as cache:
        assert cache.subjects == SUBJECTS and cache.views("litemedsam") == 1
        assert len(rows_of_views(cache, 1)[0]) == 2 * 2 * 256 * 256
        with pytest.raises(UserError, match="has no embeddings/litemedsam@view1 of subject phantom_001"):
            cache.read_embeddings("litemedsam", [0], [0], views=[1])
        with pytest.raises(UserError, match="has no labels of phantom_001"):
            cache.masks([0], [1])
    assert build_cache(mixed, models, options(tmp_path / "a.h5", views=1)).subjects == 0
    assert verify(tmp_path / "a.h5") == []
    pack(tmp_path / "a.h5", tmp_path / "b.h5")


def test_parts_that_see_no_locks_build_their_views_and_the_last_finishes(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    for number in (1, 2):
        report = build_cache(dataset, models, options(tmp_path / "a.h5", views=1, part=Share(number, 2)))
        assert report.complete == (number == 2)
    build_cache(dataset, models, options(tmp_path / "b.h5", views=1))
    with Cache(tmp_path / "a.h5") as parts, Cache(tmp_path / "b.h5") as whole:
        assert rows_of_views(parts, 1) == rows_of_views(whole, 1)


def test_views_of_nothing_labelled_and_fewer_than_none_are_refused_before_anything_is_written(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    out = tmp_path / "a.h5"
    with pytest.raises(UserError, match="has no labels: --views makes copies of labelled slices"):
        build_cache(unlabelled(dataset, *SUBJECTS), models, options(out, views=1))
    with pytest.raises(UserError, match="--views -1: expected"):
        build_cache(dataset, models, options(out, views=-1))
    with pytest.raises(UserError, match="--mirror-views is about augmented copies"):
        build_cache(dataset, models, options(out, views=0, mirror_views=True))
    with pytest.raises(UserError, match="show right kidney, left kidney on the other side"):
        build_cache(dataset, models, options(out, views=1, mirror_views=True))
    assert not list(tmp_path.glob("a*"))


def test_views_of_another_recipe_are_never_mixed(
    root: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("nnunet", root, "binary", modalities=MODALITIES)
    build_cache(dataset, models, options(tmp_path / "a.h5", views=1))
    with pytest.raises(UserError, match=r"slices@view1.*mirrored: false -> true"):
        build_cache(dataset, models, options(tmp_path / "a.h5", views=2, mirror_views=True))
    monkeypatch.setitem(augmentation_draws.GEOMETRY, "rotation", augmentation_draws.Chance(0.2, -90.0, 90.0))
    with pytest.raises(UserError, match=r"slices@view1.*geometry.rotation"):
        build_cache(dataset, models, options(tmp_path / "a.h5", views=2))
    monkeypatch.undo()
    only = replace(dataset, card=replace(dataset.card, subjects=("phantom_001",)))
    build_cache(only, models, options(tmp_path / "b.h5", views=1, mirror_views=True))
    with Cache(tmp_path / "b.h5") as cache:
        assert cache.recipe("slices@view1")["mirrored"]


def test_views_come_beside_texts_and_a_second_variant_leaves_them_as_they_are(
    dataset: Dataset, tiny_parts: dict[str, str], models: Models, tmp_path: Path
) -> None:
    prompt = load_models(load_profile("lite", {**tiny_parts, "instructor": "prompt"}))
    for variant, views in (("prompt", 1), ("again", 0)):
        how = replace(options(tmp_path / "a.h5", views), layers=LAYERS, variant=variant)
        assert build_cache(dataset, prompt, how).complete
    with Cache(tmp_path / "a.h5") as cache:
        assert cache.variants == ("again", "prompt") and cache.views("litemedsam") == 1
        assert cache.text_embeddings("prompt", [0, 1]).shape[:2] == (2, 2)
    assert verify(tmp_path / "a.h5") == []


def test_one_slice_has_views(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    only = replace(dataset, card=replace(dataset.card, subjects=("phantom_001",)))
    build_cache(only, models, replace(options(tmp_path / "a.h5", views=2), slice_step=30))
    with Cache(tmp_path / "a.h5") as cache:
        assert len(cache.rows) == 1 and cache.views("litemedsam") == 2


def test_a_view_for_an_encoder_of_larger_pictures_is_the_same_view(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {}
    for size in (256, 512):
        quick[size] = QuickEncoder(size)
        monkeypatch.setattr(Models, "encoder", quick[size])
        build_cache(dataset, models, options(tmp_path / f"{size}.h5", views=1))
    with Cache(tmp_path / "256.h5") as small, Cache(tmp_path / "512.h5") as large:
        rows = np.arange(len(small.rows))
        ones = np.ones(len(rows), int)
        np.testing.assert_array_equal(small.images(rows, ones), large.images(rows, ones))
    for pictures, enlarged in zip(quick[256].seen, quick[512].seen, strict=True):
        assert enlarged.shape[-1] == 512
        means = enlarged.reshape(len(enlarged), 256, 2, 256, 2).mean(axis=(2, 4))
        assert np.abs(means - pictures).mean() < 3  # of 255 grey values; two different copies differ by more
    slices, views = quick[256].seen[0], quick[256].seen[4]  # after two slices of two modalities
    assert np.abs(slices.astype(float) - views).mean() > 3


def test_the_command_says_what_it_takes(root: Path, tiny_parts: dict[str, str], tmp_path: Path) -> None:
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(root), "--slice-step", "30", "--views", "1"]
    command += [
        "--subjects",
        "phantom_002",
        "--modalities",
        "T2-SPIR",
        "--layers",
        "embeddings",
        "--out",
        str(tmp_path / "a.h5"),
        "--device",
        "cpu",
    ]
    for part, value in tiny_parts.items():
        command += ["--set", f"{part}={value}"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    looked = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.h5")])
    assert "layer      slices@view1" in looked.output and "embeddings/litemedsam@view1" in looked.output
    assert CliRunner().invoke(main, [*command, "--views", "-1"]).exit_code == 2
    more = CliRunner().invoke(main, [*command, "--views", "3", "--dry-run"])
    assert "slices: 0 subjects to build" in more.output
    assert "embeddings/litemedsam@view3: 1 subject to build, at most 1 slice-modality, 1 MiB" in more.output
    assert re.search(
        r"about \d+ (s|min) by one process, one part after the other \(\d+ (s|min) of it views\)", more.output
    )


def test_a_dry_run_counts_every_view_and_writes_nothing(root: Path, tiny_parts: dict[str, str], tmp_path: Path) -> None:
    """Two subjects of 12 slices, every 6th taken, in two modalities: 8 slice-modalities a layer, 1 MiB each."""
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(root), "--slice-step", "6", "--dry-run"]
    command += ["--modalities", ",".join(MODALITIES), "--out", str(tmp_path / "a.h5")]
    for part, value in tiny_parts.items():
        command += ["--set", f"{part}={value}"] if part != "encoder_weights" else []
    done = CliRunner().invoke(main, [*command, "--views", "2"])
    assert done.exit_code == 0, done.output
    for layer in ("embeddings/litemedsam", "embeddings/litemedsam@view1", "embeddings/litemedsam@view2"):
        assert f"{layer}: 2 subjects to build, at most 8 slice-modalities, 8 MiB" in done.output
    assert "in total 26 MiB, 18 of them views" in done.output and "the time is not measured" in done.output
    assert not list(tmp_path.glob("a.h5*"))
