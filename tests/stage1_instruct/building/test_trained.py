"""build-cache trains the projection behind the instructions itself, for each split of the subjects, and crosses it."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from torch import Tensor

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.cache.writer import CacheWriter
from zeus_union.pipelines.cli import main as zeus
from zeus_union.pipelines.segment.frozen import frozen_parts
from zeus_union.pipelines.segment.segmentation import Segmentation
from zeus_union.pipelines.segment.segmenter import Segmenter, load_run
from zeus_union.stage1_instruct.building import reading, trained
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.models.assembly import Models
from zeus_union.stage1_instruct.models.bridge.connectors import read_connector
from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile, profile_from
from zeus_union.stage1_instruct.projection import fold as fold_training
from zeus_union.stage1_instruct.projection.fold import FoldProjection
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.carried import PROFILE, PROJECTION, carried_profile, carry, carry_projection
from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.layers import layers_read
from zeus_union.stage2_segment.marks import as_named
from zeus_union.stage2_segment.model import build_model
from zeus_union.stage2_segment.plan import plan_run
from zeus_union.stage2_segment.sharing.export import export_runs
from zeus_union.stage2_segment.sharing.importing import import_runs

SUBJECTS = 4
MODALITIES = ("T1-DUAL-in", "T2-SPIR")


@dataclass(frozen=True)
class Labelled:
    """Builds a cache of four labelled phantoms in two modalities with tiny models and no projection."""

    path: Path
    data: Path
    parts: tuple[str, ...]

    def build(self, *more: str) -> Result:
        command = ["build-cache", "--dataset", "nnunet", "--data-root", self.data, "--slice-step", "6"]
        command += ["--modalities", ",".join(MODALITIES), "--out", self.path, *self.parts, *more]
        return CliRunner().invoke(main, [str(word) for word in command])

    def built(self, *more: str) -> str:
        done = self.build(*more)
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())


def means(self: LiteMedSAM, images: Tensor) -> Tensor:
    """In place of the encoder, which takes seconds: what an embedding needs for the captions to be learnt from it."""
    cells = F.avg_pool2d(images.float()[:, None], 4) / 255
    return torch.sin(cells * torch.arange(1, 257)[None, :, None, None])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=SUBJECTS, seed=1)
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_training, "RECIPE", replace(fold_training.RECIPE, steps=3))
    monkeypatch.setattr(LiteMedSAM, "embed", means)


@pytest.fixture
def labelled(data: Path, tiny_parts: dict[str, str], tmp_path: Path) -> Labelled:
    parts = [word for part, value in tiny_parts.items() for word in ("--set", f"{part}={value}")]
    return Labelled(tmp_path / "c.h5", data, (*parts, "--device", "cpu"))


@pytest.fixture(scope="module")
def finished(
    data: Path, random_litemedsam: Path, tiny_llama: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Labelled]:
    """A cache with the layer of fold 0, only for reading."""
    folder = tmp_path_factory.mktemp("finished")
    parts = {"encoder_weights": random_litemedsam, "llm": tiny_llama, "text_encoder": tiny_bert, "max_new_tokens": 8}
    words = [word for part, value in parts.items() for word in ("--set", f"{part}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEUS_HOME", str(folder / "home"))
        patch.setattr(fold_training, "RECIPE", replace(fold_training.RECIPE, steps=3))
        patch.setattr(LiteMedSAM, "embed", means)
        cache = Labelled(folder / "c.h5", data, (*words, "--device", "cpu"))
        assert "UNTRAINED" not in cache.built()
        yield cache


def folds_of(cache: Cache) -> dict[str, int]:
    return {name: int(cache.rows["fold"][cache.rows_of([name])[0]]) for name in cache.subjects}


def stored(cache: Cache, variant: str) -> FoldProjection:
    layer = f"instructions/{variant}"
    recipe = cache.recipe(layer)
    return FoldProjection.from_constants(recipe["connector"], recipe["projection"], cache.constants(layer))


def test_a_build_trains_a_projection_on_the_training_subjects_of_fold_0(finished: Labelled) -> None:
    with Cache(finished.path) as cache:
        assert cache.variants == ("lite@fold0",)
        train = [name for name, fold in folds_of(cache).items() if fold != 0]
        trained_on = cache.recipe("instructions/lite@fold0")["projection"]["trained_on"]
        assert trained_on["fold"] == 0 and trained_on["subjects"] == sorted(train) and len(train) == SUBJECTS - 1
        assert (
            stored(cache, "lite@fold0").everyone.digest()
            == cache.recipe("instructions/lite@fold0")["projection"]["sha256"]
        )
    assert not list(verify(finished.path))
    assert not (finished.path.parent / "c.h5.d").exists()


def test_a_run_reads_the_layer_of_its_fold_and_no_other(finished: Labelled) -> None:
    with Cache(finished.path) as cache:
        for variant in (None, ("lite",), ("lite@fold0",)):
            assert plan_run(cache, run=Path("run"), fold=0, variant=variant).inputs.variants == ("lite@fold0",)
        with pytest.raises(
            UserError, match=r"for fold 1 are not in .*lite@fold0.*--folds all adds them \(about 1 min each"
        ):
            plan_run(cache, run=Path("run"), fold=1)
        with pytest.raises(UserError, match="which this run would be tested on"):
            plan_run(cache, run=Path("run"), fold=1, variant=("lite@fold0",))


def test_the_texts_of_half_of_the_training_subjects_come_from_the_other_half(finished: Labelled) -> None:
    with Cache(finished.path) as cache:
        projection = stored(cache, "lite@fold0")
        train = {name for name, fold in folds_of(cache).items() if fold != 0}
        one, other = (set(subjects) for subjects, _ in projection.crossed)
        assert one | other == train and not one & other
        digests = {projection.of(name).digest() for name in train}
        assert len(digests) == 2 and projection.everyone.digest() not in digests
        assert {projection.of(name) for name in set(cache.subjects) - train} == {projection.everyone}


def test_another_fold_computes_projection_and_texts_alone_and_nothing_is_trained_twice(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled.built()

    def refuse(*arguments: object) -> None:
        raise AssertionError("read or encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(LiteMedSAM, "embed", refuse)
        patch.setattr(reading, "load_study", refuse)
        said = labelled.built("--folds", "all")
    assert said.count("training 3 projections") == SUBJECTS - 1
    counts = re.findall(r"\((\d+) of (\d+)\)", said)  # of the subjects that each of the three folds still needs
    assert counts == [(str(number), str(SUBJECTS)) for number in range(1, SUBJECTS + 1)] * (SUBJECTS - 1)
    behind = re.findall(r"\(\d+ of \d+\)(; about \d+ \w+ of the texts left for one process)?", said)
    assert all(behind[:-1]) and not behind[-1]  # as long as there is a text to write, of this fold or a later one
    with Cache(labelled.path) as cache:
        assert cache.variants == tuple(f"lite@fold{fold}" for fold in range(SUBJECTS))
        for fold in range(SUBJECTS):
            assert plan_run(cache, run=Path("run"), fold=fold).inputs.variants == (f"lite@fold{fold}",)
    with monkeypatch.context() as patch:
        patch.setattr(trained, "train_fold_projection", refuse)
        assert "4 of 4 subjects finished already" in labelled.built("--folds", "all")


def test_named_training_subjects_have_a_layer_of_their_own(labelled: Labelled) -> None:
    labelled.built("--layers", "slices")
    with Cache(labelled.path) as cache:
        two, rest = cache.subjects[:2], cache.subjects[2:]
    labelled.built("--train-subjects", ",".join(reversed(two)))
    with Cache(labelled.path) as cache:
        (variant,) = cache.variants
        assert variant.startswith("lite@split-")
        assert plan_run(cache, run=Path("run"), train_subjects=two).inputs.variants == (variant,)
        assert plan_run(cache, run=Path("run"), test_subjects=rest).inputs.variants == (variant,)
        with pytest.raises(UserError, match=rf"training on {rest[0]}.*--train-subjects {rest[0]},{rest[1]} adds them"):
            plan_run(cache, run=Path("run"), train_subjects=rest)
    unknown = labelled.build("--train-subjects", "nobody")
    assert unknown.exit_code == 2 and "nobody" in unknown.output


def test_a_build_that_was_stopped_among_the_texts_goes_on_with_its_projection(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = CacheWriter.write_instructions

    def stopped(writer: CacheWriter, layer: str, subject: str, *arguments: Any) -> None:
        written.append(subject)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(writer, layer, subject, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_instructions", stopped)
        assert labelled.build().exit_code != 0
    monkeypatch.setattr(trained, "train_fold_projection", lambda *_: pytest.fail("trained again"))
    assert "2 of 4 subjects finished already" in labelled.built()


def test_nobody_waits_unasked_for_a_training_that_takes_long(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "UNASKED_MINUTES", 0)
    said = labelled.built()
    assert "gets no instructions" in said and "The same command with --fold 0 trains it all the same" in said
    assert "zeus-segment train --cache" in said and "--text none" in said
    with Cache(labelled.path) as cache:
        assert cache.layers == ("embeddings/litemedsam", "slices")
    labelled.built("--fold", "0")
    with Cache(labelled.path) as cache:
        assert cache.variants == ("lite@fold0",)


def test_a_language_model_of_gigabytes_is_not_even_loaded_unasked(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "weights_bytes", lambda part: int(14e9))
    monkeypatch.setattr(trained, "train_fold_projection", lambda *_: pytest.fail("loaded"))
    assert "through a language model of 14 GB takes hours on a CPU" in labelled.built()


def test_parts_have_their_projection_trained_by_a_command_of_its_own(labelled: Labelled) -> None:
    said = [labelled.built("--part", f"{part}/2", "--no-pack") for part in (1, 2)]
    assert all("train-projection --cache" in line and "--fold 0 --variant lite" in line for line in said)
    command = ["train-projection", "--cache", str(labelled.path), "--fold", "0", *labelled.parts]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0 and "trained for instructions/lite@fold0" in done.output, done.output
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0 and "training 3" in done.output and "training 3" not in again.output
    refused = CliRunner().invoke(main, [*command, "--epochs", "3"])
    assert refused.exit_code == 2 and "--epochs goes with --pairs" in refused.output
    for part in (1, 2):
        labelled.built("--part", f"{part}/2", "--no-pack")
    with Cache(labelled.path) as cache:
        assert cache.variants == ("lite@fold0",)


def test_a_projection_that_is_given_serves_all_subjects(labelled: Labelled) -> None:
    assert "UNTRAINED" in labelled.built("--projection", "untrained")
    with Cache(labelled.path) as cache:
        assert cache.variants == ("lite",)
        assert all(plan_run(cache, run=Path("run"), fold=fold).inputs.variants == ("lite",) for fold in range(SUBJECTS))
    both = labelled.build("--projection", "untrained", "--fold", "0")
    assert both.exit_code == 2 and "leave out one of the two" in both.output
    prompt = labelled.build("--fold", "0", "--set", "instructor=prompt", "--variant", "prompt")
    assert prompt.exit_code == 2 and "has no projection to train" in prompt.output


def test_every_class_has_captions_of_its_own(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[str]] = {}

    def noted(models: Any, split: Any, captioned: Any, *rest: Any) -> Any:
        for pair in captioned:
            asked.setdefault(pair.question, set()).add(pair.caption)
        return train(models, split, captioned, *rest)

    train = trained.train_fold_projection
    monkeypatch.setattr(trained, "train_fold_projection", noted)
    labelled.built("--per-class", "--variant", "own")
    with Cache(labelled.path) as cache:
        names = ("liver", "right kidney", "left kidney", "spleen")
        assert len(asked) == len(names) * len(MODALITIES)
        for question, captions in asked.items():
            (name,) = (name for name in names if f"given {name} MRI" in question)
            assert all(name in caption for caption in captions)
            assert not any(other in caption for other in names if other != name for caption in captions)
        layers = ("own.liver", "own.right-kidney", "own.left-kidney", "own.spleen")
        planned = plan_run(cache, run=Path("run"), fold=0, variant=layers, instructions="class")
        assert planned.inputs.variants == tuple(f"{layer}@fold0" for layer in layers)


def write_run(cache: Cache, folder: Path) -> RunConfig:
    """A run of fold 0 with random weights, and with what it carries of stage 1."""
    config = plan_run(cache, run=folder, fold=0)
    checkpoint.write_json(folder / checkpoint.CONFIG, config.to_json())
    torch.manual_seed(0)
    checkpoint.save_weights(folder, "last", build_model(config.architecture).state_dict(), 0)
    carry(cache, config, folder)
    return config


def named_files(cache: Labelled) -> dict[str, str]:
    """Part of the profile -> the file that the cache's build was given for it."""
    return {part: path for part, path in (word.split("=") for word in cache.parts if "=/" in word)}


def test_a_new_study_gets_the_texts_of_the_runs_projection(
    finished: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a subject that was tested: its texts in the cache are those that a new study of the same pictures gets.

    The run's folder says which models wrote them; of a shared run, their files are given.
    """
    with Cache(finished.path) as cache:
        config = write_run(cache, tmp_path / "run")
        subject = config.split.test[0]
        expected = cache.text_embeddings("lite@fold0", cache.rows_of([subject]))
        sha256 = cache.recipe("instructions/lite@fold0")["projection"]["sha256"]
        connector, facts = read_connector(tmp_path / "run" / PROJECTION)
        assert connector.digest() == sha256 and facts["subjects"] == sorted(config.split.train)
        channels = cache.card.channels
    (tmp_path / "new").mkdir()
    for channel in channels.values():
        (file,) = (finished.data / "imagesTr").glob(f"{subject}_{channel:04d}*")
        shutil.copy(file, tmp_path / "new")
    texts: list[NDArray[np.float32]] = []
    predict = Segmenter._predict

    def predicted(self: Segmenter, opened: Any, built: Cache, *how: Any) -> Segmentation:
        (layer,) = layers_read(config, built)
        assert layer == "lite"
        texts.append(built.text_embeddings(layer, range(len(built.rows))))
        return predict(self, opened, built, *how)

    monkeypatch.setattr(Segmenter, "_predict", predicted)
    export_runs([tmp_path / "run"], tmp_path / "lite.zeus.zip")
    for run, overrides in (tmp_path / "run", {}), (tmp_path / "lite.zeus.zip", named_files(finished)):
        load_run(run, overrides=overrides, device="cpu").segment(tmp_path / "new", slice_step=6)
        np.testing.assert_allclose(texts[-1], expected, atol=1e-6)
    assert len(texts) == 2
    assert json.loads((tmp_path / "run" / checkpoint.CONFIG).read_text())["inputs"]["variants"] == ["lite@fold0"]


def test_a_process_that_finds_the_projection_in_training_goes_on_with_the_pictures(labelled: Labelled) -> None:
    labelled.built("--layers", "slices", "--no-pack")
    with Cache(labelled.path) as cache:
        card = cache.card
    writer = CacheWriter(labelled.path, card)
    with writer.claim("lite@fold0.projection") as ours:
        assert ours
        stopped = labelled.build()  # a process does not wait for itself
        assert isinstance(stopped.exception, RuntimeError) and "would wait for itself" in str(stopped.exception)
        assert all(writer.finished("embeddings/litemedsam", name) for name in card.subjects)
    assert "training 3 projections" in labelled.built()


def test_a_grid_trains_a_projection_for_each_row_that_has_one(labelled: Labelled, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "- {variant: mlp, set: {connector: mlp}}\n"
        "- {variant: linear, set: {connector: linear}}\n"
        "- {variant: prompt, set: {instructor: prompt}}\n"
        "- {variant: silent, set: {projection: untrained}}\n"
    )
    assert labelled.built("--grid", str(tmp_path / "grid.yaml")).count("training 3 projections") == 2
    with Cache(labelled.path) as cache:
        assert set(cache.variants) == {"mlp@fold0", "linear@fold0", "prompt", "silent"}
        digests = {
            name: cache.recipe(f"instructions/{name}@fold0")["projection"]["sha256"] for name in ("mlp", "linear")
        }
        assert len(set(digests.values())) == 2


def test_an_ablation_over_folds_that_are_not_there_names_the_command(finished: Labelled, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("title: t\nfolds: all\nrows: [{name: text, set: {epochs: 1}}]\n")
    command = [
        "ablate",
        "--cache",
        str(finished.path),
        "--grid",
        str(tmp_path / "grid.yaml"),
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(zeus, [*command, "--device", "cpu"])
    assert done.exit_code == 2
    assert "row text: the texts of instructions/lite for fold 1 are not in" in " ".join(done.output.split())
    assert "--folds all adds them" in " ".join(done.output.split())


def test_a_layer_keeps_a_projection_that_was_given_and_a_run_carries_it(finished: Labelled, labelled: Labelled) -> None:
    folder = labelled.path.parent / "run"
    folder.mkdir()
    with Cache(finished.path) as cache:
        carry_projection(cache, plan_run(cache, run=folder, fold=0), folder)
        trained_on = cache.recipe("instructions/lite@fold0")["projection"]["trained_on"]["subjects"]
    labelled.built("--projection", str(folder))
    with Cache(labelled.path) as cache:
        assert cache.variants == ("lite",)
        assert cache.recipe("instructions/lite")["projection"]["trained_on"] == {"subjects": trained_on}
        config = plan_run(cache, run=folder, train_subjects=trained_on)
        with pytest.raises(UserError, match="which this run would be tested on"):
            plan_run(cache, run=folder, test_subjects=trained_on[:1])
        before = (folder / PROJECTION).read_bytes()
        carry_projection(cache, config, folder)
        assert (
            read_connector(folder / PROJECTION)[0].digest() == cache.recipe("instructions/lite")["projection"]["sha256"]
        )
        assert json.loads(before[8 : 8 + int.from_bytes(before[:8], "little")])["__metadata__"].keys() == {"projection"}


def test_a_run_carries_the_models_behind_its_cache(finished: Labelled, tmp_path: Path) -> None:
    with Cache(finished.path) as cache:
        config = plan_run(cache, run=tmp_path, fold=0)
        carry(cache, config, tmp_path)
        by_encoder = cache.profile(config.inputs.embedding_layer)
        assert config.inputs.card == replace(cache.card, subjects=())
    lines = carried_profile(tmp_path)
    assert lines is not None and lines == by_encoder
    again = profile_from(lines, "the run")
    words = dict(word.split("=", 1) for word in finished.parts if "=" in word)
    assert again == load_profile("lite", words)
    assert Models(again, "cpu").encoder_recipe() == config.inputs.embedding_recipe["encoder"]
    read = config.inputs.instruction_recipes["lite@fold0"]
    assert Models(again, "cpu").instruction_recipe_with(read["projection"]).items() <= read.items()
    for damaged in ('{"llm": ', "[]", '{"to_give": 5}'):
        (tmp_path / PROFILE).write_text(damaged)
        with pytest.raises(UserError, match=r"profile\.json is damaged .* give --models, and copy the run again"):
            carried_profile(tmp_path)


def test_a_shared_run_finds_its_models_by_what_is_given_and_its_projection_knows_whom_it_saw(
    finished: Labelled, tmp_path: Path
) -> None:
    with Cache(finished.path) as cache:
        write_run(cache, tmp_path / "run")
        trained_on = cache.recipe("instructions/lite@fold0")["projection"]["trained_on"]["subjects"]
    export_runs([tmp_path / "run"], tmp_path / "lite.zeus.zip")
    paths = named_files(finished)
    with zipfile.ZipFile(tmp_path / "lite.zeus.zip") as opened:
        content = b"".join(map(opened.read, opened.namelist()))
    for word in (*trained_on, *paths.values(), str(tmp_path)):
        assert word.encode() not in content
    (run,) = import_runs(tmp_path / "lite.zeus.zip", tmp_path / "imported")
    shared = checkpoint.load_config(run)
    with pytest.raises(
        UserError, match=r"was shared without files of the machine it was made on; give --set encoder_weights=\.\.\."
    ):
        frozen_parts([run], [shared], None, {}, "cpu", None)
    ((models, _),) = frozen_parts([run], [shared], None, paths, "cpu", None)
    seen = models.instruction_recipe()["projection"]["trained_on"]["subjects"]
    assert not {*seen} & {*trained_on} and {*as_named(seen, trained_on)} == {*trained_on}
    with pytest.raises(UserError, match="by other models"):
        frozen_parts([run], [shared], None, {**paths, "max_new_tokens": "9"}, "cpu", None)


def test_other_models_under_the_same_name_are_refused_before_any_work(
    labelled: Labelled, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled.built()
    monkeypatch.setattr(trained, "build_subjects", lambda *_: pytest.fail("worked"))
    refused = labelled.build("--set", "max_new_tokens=9")
    assert refused.exit_code == 2
    assert "another recipe (llm.decoding.max_new_tokens: 8 -> 9)" in " ".join(refused.output.split())
