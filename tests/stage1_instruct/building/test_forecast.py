"""What a build says before it starts: bytes as they will be, a disk that is too small, time from real slices."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result

from zeus_union.cache.errors import NoSpaceError, UserError
from zeus_union.cache.layout import shard_folder
from zeus_union.cache.manifest import find_shards
from zeus_union.stage1_instruct.building.forecast import Forecast, LayerForecast, forecast, require_room, text_layers
from zeus_union.stage1_instruct.building.job import Splits
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.studies.study import Dataset, Study

MODELS = SimpleNamespace()  # the layer `slices` needs none
Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, int(count)))


def on_disk(path: Path) -> dict[str, int]:
    """Layer -> bytes of its shards, with the tables of texts beside them."""
    sizes: dict[str, int] = {}
    for name in find_shards(shard_folder(path)):
        shard = shard_folder(path) / name
        layer = name.rpartition("/")[0]
        if "_constants" not in name:
            texts = shard.with_suffix(".parquet")
            sizes[layer] = sizes.get(layer, 0) + shard.stat().st_size + (texts.stat().st_size if texts.exists() else 0)
    return sizes


@pytest.mark.parametrize("layout", ["chaos", "nnunet", "msd"])
def test_the_bytes_of_pictures_are_those_of_the_shards(layout: str, phantoms: Path, tmp_path: Path) -> None:
    """CHAOS has masks of each modality; MSD and nnU-Net one for all; no phantom has an empty slice."""
    dataset = open_dataset({"msd": "msd"}.get(layout, layout), phantoms / layout)
    options = BuildOptions(tmp_path / "a.h5", layers=("slices",), slice_step=5, pack=False)
    expected = forecast(dataset, "", options)
    build_cache(dataset, MODELS, options)  # type: ignore[arg-type]
    (layer,) = expected.layers
    written = on_disk(options.out)["slices"]
    assert 0 <= layer.bytes - written <= 0.03 * written
    assert [each.subjects for each in forecast(dataset, "", options).layers] == [0], "nothing is missing any more"


@pytest.mark.slow
def test_the_bytes_of_every_layer_are_those_of_its_shards(
    phantoms: Path, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    dataset = open_dataset("nnunet", phantoms / "nnunet", modalities=("T2-SPIR",))
    options = BuildOptions(tmp_path / "a.h5", slice_step=12, pack=False, views=1, variant="lite")
    models = load_models(load_profile("lite", {**tiny_parts, "projection": "untrained"}), "cpu")
    expected = forecast(dataset, "litemedsam", options, ["instructions/lite"])
    build_cache(dataset, models, options)
    written = on_disk(options.out)
    assert {layer.layer for layer in expected.layers} == set(written)
    for layer in expected.layers:
        # Of texts the widest vector is counted, as the encoder is not loaded.
        most = 30_000 if layer.layer.startswith("instructions/") else 0.03 * written[layer.layer] + 8192
        assert -2000 <= layer.bytes - written[layer.layer] <= most, layer


@pytest.fixture
def dataset(phantoms: Path) -> Dataset:
    return open_dataset("nnunet", phantoms / "nnunet", modalities=("T2-SPIR",))


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions(tmp_path / "a.h5", layers=("slices",), slice_step=4, pack=False, check=True)


def test_a_disk_that_is_certainly_too_small_is_refused_before_anything_is_written(
    dataset: Dataset, options: BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = forecast(dataset, "", options).bytes
    free(monkeypatch, 0.5 * needed)
    with pytest.raises(
        NoSpaceError, match=rf"a\.h5 needs at least \d+ KB more and \d+ KB are free at {options.out.parent}; "
    ):
        build_cache(dataset, MODELS, options)  # type: ignore[arg-type]
    assert find_shards(shard_folder(options.out)) == []


def half_empty(dataset: Dataset) -> Dataset:
    """Studies of which every second slice shows nothing: headers do not say so."""

    def load(subject: str) -> Study:
        study = dataset.load(subject)
        images = {name: image.copy() for name, image in study.images.items()}
        labels = None if study.labels is None else study.labels.copy()
        axis = int(np.argmin(study.grid.shape))
        half = [slice(None)] * 3
        half[axis] = slice(0, study.grid.shape[axis] // 2)
        for image in images.values():
            image[tuple(half)] = 0
        if labels is not None:
            labels[tuple(half)] = 0
        return replace(study, images=images, labels=labels)

    return replace(dataset, load=load)


def test_slices_that_show_nothing_are_no_reason_to_refuse(
    dataset: Dataset, options: BuildOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = forecast(dataset, "", options).bytes
    free(monkeypatch, 0.7 * needed)
    with pytest.raises(NoSpaceError):
        require_room(dataset, options, forecast(dataset, "", options))
    assert build_cache(half_empty(dataset), MODELS, options).complete  # type: ignore[arg-type]
    assert "it may not fit" in capsys.readouterr().err


def test_packing_needs_the_space_twice_and_is_refused_only_where_it_was_asked_for(
    dataset: Dataset, options: BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_open = replace(options, pack=None)
    missing = forecast(dataset, "", left_open)
    assert missing.packs == missing.bytes and forecast(dataset, "", options).packs == 0
    free(monkeypatch, 1.5 * missing.bytes)
    assert "--no-pack does without" in require_room(dataset, left_open, missing)
    with pytest.raises(NoSpaceError):
        require_room(dataset, replace(options, pack=True), missing)


def test_what_another_process_is_writing_is_not_counted_twice(
    dataset: Dataset, options: BuildOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Forecast((LayerForecast("slices", 1, 1, 10_000),))
    free(monkeypatch, 6_000)
    with pytest.raises(NoSpaceError):
        require_room(dataset, options, missing)
    in_work = shard_folder(options.out) / "slices" / ".A.0123456789ab.h5.01234567.tmp"
    in_work.parent.mkdir(parents=True)
    in_work.write_bytes(bytes(5_000))
    assert require_room(dataset, options, missing) == ""


def test_a_build_says_at_its_start_what_it_writes_and_behind_the_first_subject_how_long(
    dataset: Dataset, options: BuildOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    build_cache(dataset, MODELS, options)  # type: ignore[arg-type]
    said = capsys.readouterr().err
    count = forecast(dataset, "", replace(options, out=options.out.with_name("b.h5"))).slice_modalities
    assert f"a.h5: 2 subjects to build, at most {count:,} slice-modalities and " in said and " free)" in said
    assert re.search(r"in \d+ s \(1 of 2\); about \d+ s left for one process", said)
    assert "(2 of 2)\n" in said
    build_cache(dataset, MODELS, options)  # type: ignore[arg-type]
    assert "subjects to build" not in capsys.readouterr().err


def test_each_header_is_read_once_before_the_models(dataset: Dataset, options: BuildOptions) -> None:
    loaded: list[str] = []

    def load(subject: str) -> Study:
        loaded.append(subject)
        return dataset.load(subject)

    build_cache(replace(dataset, load=load), MODELS, options)  # type: ignore[arg-type]
    assert sorted(loaded) == sorted(dataset.card.subjects * 2), "once its header, once itself"


def test_the_layers_of_texts_are_those_of_the_build(dataset: Dataset, options: BuildOptions) -> None:
    every = replace(options, layers=("slices", "embeddings", "instructions"))
    assert list(text_layers(dataset, options, "lite", False)) == []
    assert list(text_layers(dataset, every, "lite", False)) == ["instructions/lite"]
    splits = replace(every, trained_for=Splits())
    assert list(text_layers(dataset, splits, "lite", True)) == ["instructions/lite@fold0"]
    assert list(text_layers(dataset, splits, "lite", False)) == ["instructions/lite"]
    folds = replace(every, trained_for=Splits(None))
    assert list(text_layers(dataset, folds, "a", True)) == ["instructions/a@fold0", "instructions/a@fold1"]
    of_each_class = list(text_layers(dataset, replace(every, per_class=True), "a", False))
    assert len(of_each_class) == len(dataset.card.classes)


def dry_run(root: Path, parts: dict[str, str], out: Path, *more: str) -> Result:
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(root), "--out", str(out), "--dry-run", *more]
    for part, value in parts.items():
        command += ["--set", f"{part}={value}"]
    return CliRunner().invoke(main, [*command, "--device", "cpu", "--modalities", "T2-SPIR", "--slice-step", "6"])


@pytest.mark.slow
def test_a_dry_run_measures_every_part_and_leaves_nothing(
    phantoms: Path, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    done = dry_run(phantoms / "nnunet", tiny_parts, tmp_path / "out" / "a.h5", "--views", "1")
    assert done.exit_code == 0, done.output
    assert re.search(r"instructions/lite@fold0: 2 subjects to build, at most \d+ slice-modalities, 0 MiB", done.output)
    for part in ("reading, slicing", "image encoder", "LLM", "text encoder", "writing", "views' pictures"):
        assert re.search(rf"  {part}: [\d.e-]+ s a slice-modality, \d+ (s|min)", done.output), part
    assert "  projection training: " in done.output and " for 1 split\n" in done.output
    assert re.search(r"about \d+ (s|min) by one process", done.output) and "to pack them into one file" in done.output
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".zeus-trial-*"))


def test_a_dry_run_names_a_damaged_study_counts_the_others_and_ends_as_the_build_would(
    nnunet: Path, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    damaged = next((nnunet / "imagesTr").glob("phantom_002*"))
    for file in (nnunet / "imagesTr").glob("phantom_002*"):
        file.write_bytes(damaged.read_bytes()[:50])
    done = dry_run(nnunet, tiny_parts, tmp_path / "a.h5", "--layers", "slices")
    assert done.exit_code == 2
    assert "slices: 1 subject to build" in done.output and "phantom_002 would be left out" in done.stderr
    assert "measured on slices of phantom_001" in done.output


def test_a_dry_run_on_a_disk_that_is_too_small_is_one_line(
    phantoms: Path, tiny_parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1000)
    done = dry_run(phantoms / "nnunet", tiny_parts, tmp_path / "a.h5", "--layers", "slices")
    assert done.exit_code == 2 and "error: " in done.stderr and "needs at least" in done.stderr
    assert "slices: 2 subjects to build" in done.stdout, "what it needs is said all the same"


def test_views_of_a_data_set_without_labels_are_refused(dataset: Dataset, options: BuildOptions) -> None:
    with pytest.raises(UserError, match="no labels"):
        forecast(replace(dataset, labelled={}), "", replace(options, views=1))
