"""A later layer is made from what the cache holds: without the raw data, and without models that it does not need."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.stage1_instruct.building.quick_encoder import QuickEncoder
from zeus_union.cache.reader import Cache
from zeus_union.stage1_instruct.building import reading
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.phantom.write import write_demo

SUBJECTS = ("phantom_001", "phantom_002", "phantom_003")
READING = ("--modalities", "T2-SPIR", "--slice-step", "12")


@dataclass(frozen=True)
class Command:
    """build-cache of phantoms in one modality with tiny models.

    Attributes:
        root: the raw data.
        path: the cache.
        parts: of the profile.
    """

    root: Path
    path: Path
    parts: dict[str, str]

    def run(self, *more: str) -> Result:
        command = ["build-cache", "--out", str(self.path), "--device", "cpu"]
        for part, value in {**self.parts, "projection": "untrained"}.items():
            command += ["--set", f"{part}={value}"]
        return CliRunner().invoke(main, [*command, *more])

    def from_raw(self, *more: str) -> Result:
        return self.run("--dataset", "nnunet", "--data-root", str(self.root), *READING, *more)


@pytest.fixture(scope="module")
def phantoms_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=3, seed=1)
    return root


@pytest.fixture
def command(
    phantoms_of_three: Path, tiny_parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    monkeypatch.setattr(Models, "encoder", QuickEncoder())
    root = Path(shutil.copytree(phantoms_of_three, tmp_path / "raw"))
    return Command(root, tmp_path / "c.h5", tiny_parts)


@pytest.fixture
def built(command: Command) -> Command:
    """A finished cache whose raw data are gone; whatever reads a study or loads the image encoder fails."""
    done = command.from_raw("--variant", "first", "--set", "instructor=prompt")
    assert done.exit_code == 0, done.output
    shutil.rmtree(command.root)
    return command


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("a study is read or an image encoder is loaded")


def texts(path: Path, variant: str) -> tuple[bytes, list[dict]]:
    with Cache(path) as cache:
        rows = np.arange(len(cache.rows))
        return cache.text_embeddings(variant, rows).tobytes(), cache.instructions(variant).to_pylist()


def test_variant_needs_neither_raw_data_nor_image_encoder_and_is_that_of_a_build_with_both(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.from_raw("--variant", "first", "--set", "instructor=prompt").exit_code == 0
    shutil.copy(command.path, whole := command.path.with_name("whole.h5"))
    shutil.copy(command.path.with_name("c.instructions.parquet"), whole.with_name("whole.instructions.parquet"))
    done = Command(command.root, whole, command.parts).from_raw("--variant", "llm")
    assert done.exit_code == 0, done.output
    shutil.rmtree(command.root)
    monkeypatch.setattr(reading, "load_study", refuse)
    monkeypatch.setattr(Models, "encoder", property(refuse))
    done = command.run("--variant", "llm")
    assert done.exit_code == 0, done.output
    assert "without the raw data" in done.output
    assert texts(command.path, "llm") == texts(whole, "llm")
    with Cache(command.path) as grown, Cache(whole) as other:
        assert grown.recipe("instructions/llm") == other.recipe("instructions/llm")
        assert grown.layers == other.layers and grown.card == other.card


def test_the_same_command_goes_on_when_the_raw_data_are_gone(built: Command) -> None:
    done = built.from_raw("--variant", "again", "--set", "instructor=prompt")
    assert done.exit_code == 0, done.output
    assert texts(built.path, "again")[0] == texts(built.path, "first")[0]


def test_layers_of_classes_need_no_raw_data(built: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "load_study", refuse)
    monkeypatch.setattr(Models, "encoder", property(refuse))
    done = built.run("--variant", "each", "--per-class", "--set", "instructor=prompt")
    assert done.exit_code == 0, done.output
    with Cache(built.path) as cache:
        assert {name.partition(".")[0] for name in cache.variants} == {"first", "each"}
        assert len(cache.variants) == 1 + len(cache.classes)


def test_with_the_raw_data_there_a_text_layer_looks_at_their_digests_and_at_no_voxel(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.from_raw("--variant", "first", "--set", "instructor=prompt").exit_code == 0
    monkeypatch.setattr(reading.slicing, "study_to_slices", refuse)
    done = command.from_raw("--variant", "second", "--set", "instructor=prompt")
    assert done.exit_code == 0, done.output
    labels = next((command.root / "labelsTr").iterdir())
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes()), 1))
    changed = command.from_raw("--variant", "third", "--set", "instructor=prompt")
    assert changed.exit_code == 2 and "have changed since" in changed.output


@pytest.mark.slow
def test_views_come_from_the_stored_pictures_where_the_encoder_reads_their_size(
    command: Command, phantoms_of_three: Path
) -> None:
    layers = ("--layers", "embeddings")
    assert command.from_raw(*layers).exit_code == 0
    whole = Command(command.root, command.path.with_name("whole.h5"), command.parts)
    assert whole.from_raw(*layers, "--views", "1").exit_code == 0
    shutil.rmtree(command.root)
    done = command.run(*layers, "--views", "1")
    assert done.exit_code == 0, done.output
    with Cache(command.path) as grown, Cache(whole.path) as other:
        assert grown.layers == other.layers
        for layer in grown.layers:
            assert grown.content_digest(layer, SUBJECTS) == other.content_digest(layer, SUBJECTS)


def test_an_encoder_that_reads_larger_pictures_is_refused_before_it_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.from_raw("--layers", "slices").exit_code == 0
    shutil.rmtree(command.root)
    recipe = Models.encoder_recipe
    monkeypatch.setattr(Models, "encoder", property(refuse))
    monkeypatch.setattr(Models, "encoder_recipe", lambda self: {**recipe(self), "input_size": 1024})
    done = command.run("--layers", "embeddings")
    assert done.exit_code == 2
    assert (
        f"embeddings/litemedsam of {', '.join(SUBJECTS)} cannot be made from {command.path} alone, litemedsam reads pictures "
        "of 1024 pixels, made from the native resolution, and the cache holds 256: give the raw data"
    ) in " ".join(done.output.replace("\n", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slice-step", "3"), "slice_step: 12 -> 3"),
        (("--view", "coronal"), "view: acquisition -> coronal"),
        (("--modalities", "T1-DUAL-in"), "modalities"),
        (("--subjects", "phantom_001"), "subjects"),
        (("--instance", "tumour"), "instance"),
        (("--term", "T2-SPIR=CT"), "terms.T2-SPIR"),
        (("--window", "T2-SPIR=40,400"), "windows.T2-SPIR"),
        (("--labels", "binary"), "--labels binary has one class"),
        (("--splits", "splits.json"), "--splits names cases of the raw data"),
    ],
)
def test_options_that_ask_for_other_pictures_are_refused(
    built: Command, options: tuple[str, ...], message: str
) -> None:
    before = built.path.read_bytes()
    done = built.run("--variant", "x", "--set", "instructor=prompt", *options)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert built.path.read_bytes() == before


def test_a_cache_without_all_its_pictures_needs_the_raw_data(command: Command) -> None:
    (next((command.root / "labelsTr").iterdir())).write_bytes(b"damaged")
    assert command.from_raw("--layers", "slices").exit_code == 2
    shutil.rmtree(command.root)
    done = command.run("--variant", "x", "--set", "instructor=prompt")
    output = " ".join(done.output.split())
    assert done.exit_code == 2
    assert "slices of" in output and "they are not in the cache yet: give the raw data" in output


def test_neither_data_set_nor_cache_is_one_line(tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["build-cache", "--out", str(tmp_path / "none.h5")])
    assert missing.exit_code == 2 and "none.h5 does not exist; give --dataset" in missing.output
    nothing = CliRunner().invoke(main, ["build-cache"])
    assert nothing.exit_code == 2 and "Missing option '--dataset'" in nothing.output


def test_a_forecast_needs_no_raw_data(built: Command) -> None:
    done = built.run("--dry-run", "--layers", "embeddings", "--views", "1")
    assert done.exit_code == 0, done.output
    assert "slices: 0 subjects to build" in done.output and "slices@view1: 3 subjects to build" in done.output


def test_a_data_set_that_has_grown_joins_the_finished_cache(command: Command, tmp_path: Path) -> None:
    prompt = ("--variant", "first", "--set", "instructor=prompt")
    few = Command(tmp_path / "few", command.path, command.parts)
    write_demo("nnunet", few.root, subjects=2, seed=1)
    assert few.from_raw(*prompt).exit_code == 0
    with Cache(command.path) as cache:
        old = {layer: cache.content_digest(layer, SUBJECTS[:2]) for layer in cache.layers}
        folds = cache.rows["fold"].tolist()
    done = command.from_raw(*prompt)
    assert done.exit_code == 0, done.output
    assert "adding 1 new subject to the 2 of" in done.output and "2 of 3 subjects finished already" in done.output
    with Cache(command.path) as cache:
        assert cache.subjects == SUBJECTS
        assert {layer: cache.content_digest(layer, SUBJECTS[:2]) for layer in cache.layers} == old
        assert cache.rows["fold"].tolist()[: len(folds)] == folds
    fewer = few.from_raw(*prompt)
    assert fewer.exit_code == 2 and "holds subjects that are not chosen here" in fewer.output


def test_a_layer_that_new_subjects_lack_is_named_and_the_cache_stays(command: Command, tmp_path: Path) -> None:
    few = Command(tmp_path / "few", command.path, command.parts)
    write_demo("nnunet", few.root, subjects=2, seed=1)
    for variant in ("first", "second"):
        assert few.from_raw("--variant", variant, "--set", "instructor=prompt").exit_code == 0
    before = command.path.read_bytes()
    done = command.from_raw("--variant", "first", "--set", "instructor=prompt")
    assert done.exit_code == 0, done.output
    output = " ".join(done.output.split())
    assert "instructions/second (phantom_003)" in output and "does not hold its new subjects yet" in output
    assert command.path.read_bytes() == before
    assert command.from_raw("--variant", "second", "--set", "instructor=prompt").exit_code == 0
    with Cache(command.path) as cache:
        assert cache.subjects == SUBJECTS and cache.variants == ("first", "second")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_embeddings_alone_need_the_weights_of_no_language_model(
    nnunet: Path, random_litemedsam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ZEUS_HOME", str(tmp_path / "home"))  # holds no weights
    monkeypatch.setattr("zeus_union.stage1_instruct.weights.fetch.fetch", lambda profile: pytest.fail(profile.name))
    path = tmp_path / "cache.h5"
    built = CliRunner().invoke(
        main,
        ["build-cache", "--dataset", "nnunet", "--data-root", str(nnunet), "--out", str(path), *READING]
        + ["--set", f"encoder_weights={random_litemedsam}", "--layers", "slices,embeddings", "--device", "cpu", *more],
    )
    assert built.exit_code == 0, built.output
    if more:
        assert "image encoder:" in built.output and "time on cpu" in built.output
    else:
        with Cache(path) as cache:
            assert cache.encoders == ("litemedsam",) and not cache.variants
