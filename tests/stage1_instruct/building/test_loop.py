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
from zeus_union.stage1_instruct.models.bridge.connectors import Connector, save_connector
from zeus_union.stage1_instruct.models.image import litemedsam
from zeus_union.stage1_instruct.models.language import blip2, llm
from zeus_union.stage1_instruct.models.text import bert
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import Profile, load_profile
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
    models = load_models(replace(lite, projection="untrained", max_new_tokens=6))
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
        of_whole, of_parts = (cache.read_embeddings("litemedsam", rows, [0]) for cache in (whole, parts))
        np.testing.assert_array_equal(of_whole.values, of_parts.values)
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


def test_build_with_nothing_left_to_do_loads_no_model(
    dataset: Dataset, tiny_parts: dict[str, str], tiny_blip2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(variant: str, **overrides: str) -> int:
        models = load_models(load_profile("lite", {**tiny_parts, **overrides}))
        return build_cache(dataset, models, replace(options(tmp_path / "a.h5"), variant=variant)).subjects

    variants: dict[str, dict[str, str]] = {
        "llm": {},
        "blip2": {"instructor": "blip2", "blip2": str(tiny_blip2)},
        "prompt": {"instructor": "prompt"},
    }
    assert [build(variant, **overrides) for variant, overrides in variants.items()] == [2, 2, 2]

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model is loaded")

    for module, loader in (
        (litemedsam, "read_weights"),
        (bert, "load_pretrained"),
        (llm, "load_pretrained"),
        (blip2, "load_pretrained"),
    ):
        monkeypatch.setattr(module, loader, refuse)
    assert [build(variant, **overrides) for variant, overrides in variants.items()] == [0, 0, 0]
    with pytest.raises(AssertionError, match="a model is loaded"):
        build("another")
    with pytest.raises(UserError, match="another recipe"):
        build("llm", template="xraygpt")


def test_models_that_do_not_belong_together_are_refused_before_the_first_subject(
    dataset: Dataset, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    def load(subject: str) -> Study:
        raise AssertionError("a subject is read")

    def build(**overrides: str) -> None:
        models = load_models(load_profile("lite", {**tiny_parts, **overrides}))
        build_cache(replace(dataset, load=load), models, options(tmp_path / "a.h5"))

    first = load_models(load_profile("lite", tiny_parts)).projected_llm
    facts = {"vision": first.vision_recipe(), "llm_sha256": first.llm.digest}
    save_connector(Connector("mlp", 256, 8, 48), tmp_path / "wide.safetensors", facts)
    other = {**facts, "vision": {**first.vision_recipe(), "pooling": "another"}}
    save_connector(Connector("mlp", 256, 8, 32), tmp_path / "other.safetensors", other)
    with pytest.raises(UserError, match="feeds a language model 48 wide, but this profile's are 32"):
        build(projection=str(tmp_path / "wide.safetensors"))
    with pytest.raises(UserError, match=r"trained on other vision features \(pooling differ"):
        build(projection=str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="are not those of the language model"):
        build(projection="untrained", llm=tiny_parts["text_encoder"])


def test_a_layer_brings_those_it_stands_on():
    assert parse_layers(["instructions"]) == ("slices", "embeddings", "instructions")
    assert parse_layers(["slices"]) == ("slices",)
