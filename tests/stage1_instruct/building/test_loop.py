"""Stage 1's loop on the embedded models: interrupted, resumed, and the same in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache, parse_layers
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import Profile
from zeus_union.stage1_instruct.studies.study import Dataset, Study


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two phantoms, one modality, of which slices 0 and 6 are used."""
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=2, seed=5)
    return open_dataset("nnunet", root, modalities=("T2-SPIR",))


def options(out: Path) -> BuildOptions:
    return BuildOptions(out=out, slice_step=6)


@pytest.mark.slow
def test_an_interrupted_build_goes_on_and_ends_equal_row_for_row(dataset: Dataset, lite: Profile, tmp_path: Path):
    models = load_models(replace(lite, projection="untrained", max_new_tokens=12))
    build_cache(dataset, models, options(tmp_path / "whole.h5"))
    loaded: list[str] = []

    def interrupted(subject: str) -> Study:
        loaded.append(subject)
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return dataset.load(subject)

    with pytest.raises(KeyboardInterrupt):
        build_cache(replace(dataset, load=interrupted), models, options(tmp_path / "parts.h5"))
    with pytest.raises(UserError, match=r"unfinished: 1 of 2 subjects.*phantom_002.*--allow-partial"):
        Cache(tmp_path / "parts.h5")
    report = build_cache(dataset, models, options(tmp_path / "parts.h5"))
    assert report.subjects == 1
    with Cache(tmp_path / "whole.h5") as whole, Cache(tmp_path / "parts.h5") as parts:
        rows = np.arange(len(whole.rows))
        assert whole.layers == parts.layers and len(rows) == 4
        assert [whole.fingerprint(layer) for layer in whole.layers] == [
            parts.fingerprint(layer) for layer in parts.layers
        ]
        np.testing.assert_array_equal(whole.rows, parts.rows)
        np.testing.assert_array_equal(whole.images(rows), parts.images(rows))
        np.testing.assert_array_equal(whole.masks(rows), parts.masks(rows))
        np.testing.assert_array_equal(whole.text_embeddings("lite", rows), parts.text_embeddings("lite", rows))
        one, two = (cache.read_embeddings("litemedsam", rows, [0]) for cache in (whole, parts))
        np.testing.assert_array_equal(one.values, two.values)
        assert whole.instructions().to_pylist() == parts.instructions().to_pylist()


@pytest.mark.slow
def test_changed_source_files_are_noticed(dataset: Dataset, lite: Profile, tmp_path: Path):
    models = load_models(lite)
    build_cache(dataset, models, replace(options(tmp_path / "a.h5"), layers=("slices",)))
    changed = tmp_path / "changed.nii.gz"
    changed.write_bytes(b"another file")

    def load(subject: str) -> Study:
        study = dataset.load(subject)
        return replace(study, sources={name: changed for name in study.sources})

    with pytest.raises(UserError, match="have changed since"):
        build_cache(
            replace(dataset, load=load), models, replace(options(tmp_path / "a.h5"), layers=("slices", "embeddings"))
        )


def test_a_layer_brings_those_it_stands_on():
    assert parse_layers(["instructions"]) == ("slices", "embeddings", "instructions")
    assert parse_layers(["slices"]) == ("slices",)
