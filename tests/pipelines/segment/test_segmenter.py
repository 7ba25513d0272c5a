"""A new study is read, cut and scaled as those the run was trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.pipelines.segment.conftest import SHAPE, run
from tests.stage2_segment.conftest import answer_with
from tests.stage2_segment.untrained import untrained_run
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.cli import main as zeus
from zeus_union.pipelines.segment import frozen, segmenter
from zeus_union.pipelines.segment.segmenter import Segmenter, load_run, segment_study
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage1_instruct.inspect import contents_of, describe
from zeus_union.stage2_segment import ensemble
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.chosen_postprocessing import PostProcessing
from zeus_union.stage2_segment.evaluation.missing import evaluate_missing
from zeus_union.stage2_segment.predict import predict_run


def test_the_cache_and_the_run_know_channels_view_and_windows(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cache(cohort / "cache.h5") as cache:
        assert cache.card.channels == {"T1Gd": 1}
        assert [cache.grid(subject).view for subject in cache.subjects] == ["sagittal"] * 2
        assert cache.images([0]).shape == (1, 1, 256, 256) and len(cache.rows_of(["pat0"])) == SHAPE[0]
        assert cache.recipe("slices")["windows"] == {"T1Gd": [300.0, 500.0]}
        assert cache.recipe("slices")["view"] == "acquisition"
        describe(contents_of(cache))
    assert "sagittal" in capsys.readouterr().out
    inputs = load_config(cohort / "run").inputs
    assert (inputs.channels, inputs.views) == ({"T1Gd": 1}, ("sagittal",))
    assert inputs.windows == {"T1Gd": [300.0, 500.0]}


def test_a_study_numbered_as_the_data_set_gets_the_mask_it_has_from_the_cache(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model that takes what is bright, as the tumour is in T1Gd: what is left to go wrong is what it is given."""
    answer_with(monkeypatch, lambda data: (data.cache.images(data.rows)[:, 0] > 110).astype(np.uint8))
    (tmp_path / "new").mkdir()
    for channel in range(2):
        name = f"pat1_{channel:04d}.nii.gz"
        (tmp_path / "new" / name).write_bytes((cohort / "data" / "imagesTr" / name).read_bytes())
    done = run(zeus, "segment", tmp_path / "new", "--run", cohort / "run", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "pat1_0001.nii.gz" in done.output
    with Cache(cohort / "cache.h5") as cache:
        (expected,) = predict_run(cohort / "run", cache, tmp_path / "masks", subjects=["pat1"], device="cpu")
    mask, of_cache = nibabel.load(tmp_path / "out/new/mask.nii.gz"), nibabel.load(expected)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(of_cache.dataobj))
    found, truth = (np.asarray(nibabel.load(path).dataobj) for path in (expected, cohort / "data/labelsTr/pat1.nii.gz"))
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    source = nibabel.load(tmp_path / "new" / "pat1_0001.nii.gz")
    for image in (mask, of_cache):
        for form in ("get_qform", "get_sform"):
            np.testing.assert_array_equal(*(getattr(header, form)() for header in (image.header, source.header)))
    ml = found.sum() * 4.0 * 0.8 * 0.8 / 1000
    assert f"tumour {ml:.2f} ml" in done.output

    call = ["segment", tmp_path / "new", "--run", cohort / "run"]
    only_flair = run(zeus, *call, "--modality", "T1Gd=pat1_0000.nii.gz", "--out", tmp_path / "flair")
    assert "pat1_0000.nii.gz" in only_flair.output and only_flair.exit_code == 0  # as the user says
    (tmp_path / "new" / "pat1_0001.nii.gz").rename(tmp_path / "new" / "FLAIR_to_T1Gd.nii.gz")
    refused = run(zeus, *call, "--out", tmp_path / "none")
    assert refused.exit_code == 2
    assert "could be T1Gd, but its name also contains flair, to" in " ".join(refused.output.split())
    assert not (tmp_path / "none").exists()


def test_another_view_or_window_is_another_cache(cohort: Path) -> None:
    common = ["build-cache", "--dataset", "nnunet", "--data-root", cohort / "data", "--layers", "slices"]
    common += ["--out", cohort / "cache.h5", "--modalities", "T1Gd"]
    for more, differs in (["--view", "axial", "--window", "T1Gd=300,500"], "view"), ([], "windows.T1Gd"):
        refused = run(zeus_instruct, *common, *more)
        assert refused.exit_code == 2 and differs in " ".join(refused.output.split()), refused.output
    unknown = run(zeus_instruct, *common, "--window", "CT=40,400")
    assert unknown.exit_code == 2 and "a window is given for CT; the modalities are T1Gd" in unknown.output


def test_a_run_takes_no_pictures_of_another_window_and_says_where_the_view_is_another(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["build-cache", "--dataset", "nnunet", "--data-root", cohort / "data", "--layers", "slices"]
    for name, more in ("window", []), ("view", ["--view", "axial", "--window", "T1Gd=300,500"]):
        assert run(zeus_instruct, *common, "--out", tmp_path / f"{name}.h5", *more).exit_code == 0
    with (
        Cache(tmp_path / "window.h5") as cache,
        pytest.raises(
            UserError, match=r"T1Gd=percentiles, the run was trained with T1Gd=300,500; build the cache with"
        ),
    ):
        predict_run(cohort / "run", cache, tmp_path / "masks", device="cpu")
    with Cache(tmp_path / "view.h5") as cache:
        predict_run(cohort / "run", cache, tmp_path / "masks", subjects=["pat1"], device="cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert "pat0 and 1 more" in said and "cut into axial slices, the run was trained on sagittal ones" in said


def test_a_folder_of_cases_is_segmented_with_models_that_are_loaded_once(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's imagesTs: every case is a study; a second call leaves all as it is, and one that is lost is made again."""
    loaded = []
    monkeypatch.setattr(segmenter, "load_members", lambda *given: loaded.append(given) or ensemble.load_members(*given))
    call = ["segment", cohort / "data/imagesTr", "--run", cohort / "run", "--out", tmp_path / "out", "--device", "cpu"]
    done = run(zeus, *call)
    assert done.exit_code == 0, done.output
    masks = [tmp_path / "out" / case / "mask.nii.gz" for case in ("pat0", "pat1")]
    assert len(loaded) == 1 and all(mask.is_file() for mask in masks)
    before = [mask.read_bytes() for mask in masks]
    shutil.rmtree(masks[1].parent)
    again = run(zeus, *call)
    assert again.exit_code == 0 and "1 of 2 studies with results" in " ".join(again.output.split())
    assert [mask.read_bytes() for mask in masks] == before


def test_an_exported_run_gives_the_same_mask_and_knows_whom_it_was_trained_on(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the training cache and the run's folder nothing is needed."""
    archive = tmp_path / "shared.zeus.zip"
    assert run(zeus, "export", cohort / "run", archive).exit_code == 0
    for patient in ("pat0", "pat1"):
        (tmp_path / f"as {patient}").mkdir()
        source = cohort / f"data/imagesTr/{patient}_0001.nii.gz"
        (tmp_path / f"as {patient}" / "T1Gd.nii.gz").write_bytes(source.read_bytes())
    by_file, by_folder = load_run(archive, device="cpu"), load_run(cohort / "run", device="cpu")
    for patient, trained in (("pat0", True), ("pat1", False)):
        study = tmp_path / f"as {patient}"
        capsys.readouterr()
        shared = by_file.segment(study)
        assert ("was trained on (shared)" in " ".join(capsys.readouterr().err.split())) == trained
        np.testing.assert_array_equal(shared.mask, by_folder.segment(study).mask)
    assert shared.runs == (f"shared {shared.made_by['members'][0]['weights_sha256'][:8]}",)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_runs_post_processing_is_applied_unless_it_is_not_wanted(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    seen: list[Any] = []

    def chosen(*given: Any) -> PostProcessing:
        seen.append(given[1:])
        return PostProcessing("nothing is left", {"tumour": ()}, ("tumour",))

    monkeypatch.setattr(segmenter, "postprocessing_of", chosen)
    monkeypatch.setattr(PostProcessing, "__call__", lambda _, labels: np.full_like(labels, 1))
    Segmenter(cohort / "run", device="cpu", postprocess=wanted)
    assert seen == [("last", wanted)]
    source = cohort / "data/imagesTr/pat1_0001.nii.gz"
    segmentation = segment_study(
        cohort / "data/imagesTr", cohort / "run", modalities={"T1Gd": source.name}, device="cpu"
    )
    assert segmentation.mask.all() and segmentation.mask.shape == SHAPE


def test_slices_between_those_that_are_segmented_are_filled(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, lambda data: (data.cache.images(data.rows)[:, 0] > 110).astype(np.uint8))
    chosen = {"T1Gd": "pat1_0001.nii.gz"}
    every, third = (
        segment_study(cohort / "data/imagesTr", cohort / "run", modalities=chosen, device="cpu", slice_step=step)
        for step in (1, 3)
    )
    assert every.segmented == (0, 1, 2, 3, 4, 5) and third.segmented == (0, 3)
    np.testing.assert_array_equal(third.mask[[0, 3]], every.mask[[0, 3]])
    assert third.mask[2].any() and not third.mask[4:].any()  # nothing is known beyond the last


def test_several_runs_segment_a_study_as_they_do_from_a_cache(cohort: Path, tmp_path: Path) -> None:
    """Mask, probabilities, disagreement and agreement lie beside one another under the name that the user gave."""
    split = {"train_subjects": ["pat0"], "test_subjects": ["pat1"]}
    other = untrained_run(cohort / "cache.h5", tmp_path / "other", 1, model="unext", preset="quarter", **split)
    (tmp_path / "new").mkdir()
    source = cohort / "data/imagesTr/pat1_0001.nii.gz"
    (tmp_path / "new" / "pat1_0001.nii.gz").write_bytes(source.read_bytes())
    out = tmp_path / "masks"
    both = ["--run", cohort / "run", "--run", other]
    done = run(zeus, "segment", tmp_path / "new", *both, "--out", out, "--probabilities", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "2 members: DSC of their pairs" in done.output
    with Cache(cohort / "cache.h5") as cache:
        runs = [cohort / "run", other]
        predict_run(runs, cache, tmp_path / "cached", subjects=["pat1"], device="cpu", probabilities=True)
    for name, cached in (
        ("mask.nii.gz", "pat1.nii.gz"),
        ("tumour.prob.nii.gz", "pat1.tumour.prob.nii.gz"),
        ("disagreement.nii.gz", "pat1.disagreement.nii.gz"),
    ):
        image, expected = nibabel.load(out / "new" / name), nibabel.load(tmp_path / "cached" / cached)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))
        for form in ("get_qform", "get_sform"):
            np.testing.assert_array_equal(*(getattr(h, form)() for h in (image.header, nibabel.load(source).header)))
    agreement = json.loads((out / "new" / "statistics.json").read_text())["ensemble"]["agreement"]
    of_cache = json.loads((tmp_path / "cached" / "ensemble.json").read_text())["agreement"]
    assert agreement == of_cache["pat1"]

    twice = run(zeus, "segment", tmp_path / "new", "--run", other, "--run", other, "--out", tmp_path / "m")
    assert twice.exit_code == 2 and "are the same folder" in " ".join(twice.output.split())
    assert not (tmp_path / "m").exists()


def test_each_run_of_an_ensemble_gets_the_texts_of_its_own_projection(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folds of one variant, two with the same projection: two layers, each made once, under names that differ."""
    config = load_config(cohort / "run")
    runs, configs = [], []
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("silent", b"3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "projection.safetensors").write_bytes(content)
        recipes = {f"lite@fold{name}": {"projection": content.decode()}}
        texts = {"text": "instruction", "variants": tuple(recipes), "instruction_recipes": recipes}
        read = {"text": "none", "variants": ()} if name == "silent" else texts
        configs.append(replace(config, inputs=replace(config.inputs, **read)))
        runs.append(tmp_path / name)

    def models(profile: Any, *_: Any, **__: Any) -> Any:
        digest = Path(profile.projection).read_text()
        return SimpleNamespace(name=digest, instruction_recipe=lambda: {"projection": digest})

    monkeypatch.setattr(frozen, "load_models", models)
    parts = frozen.frozen_parts(runs, configs, None, {}, "cpu", None)
    assert [(made.name, texts) for made, texts in parts] == [("1", {"variant": "lite"}), ("2", {"variant": "lite-2"})]
    assert [texts for _, texts in frozen.frozen_parts(runs[3:], configs[3:], None, {}, "cpu", None)] == [{}]
    recipes = {"lite@foldb": {"projection": "9"}}
    other = [configs[0], replace(configs[1], inputs=replace(configs[1].inputs, instruction_recipes=recipes))]
    with pytest.raises(UserError, match=rf"by other models.*that build-cache was given for {runs[1]}"):
        frozen.frozen_parts(runs[:2], other, None, {}, "cpu", None)


def test_a_missing_modality_is_said_with_the_dsc_that_it_cost(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["build-cache", "--dataset", "nnunet", "--data-root", cohort / "data", "--layers", "slices"]
    assert run(zeus_instruct, *common, "--out", tmp_path / "both.h5").exit_code == 0
    split = {"train_subjects": ["pat0"], "test_subjects": ["pat1"]}
    both = untrained_run(tmp_path / "both.h5", tmp_path / "run", 1, model="unext", preset="quarter", **split)
    (tmp_path / "new").mkdir()
    source = cohort / "data/imagesTr/pat1_0001.nii.gz"
    (tmp_path / "new" / "T1Gd.nii.gz").write_bytes(source.read_bytes())
    segmentation = segment_study(tmp_path / "new", both, device="cpu")
    assert segmentation.missing == ("FLAIR",) and list(segmentation.images) == ["T1Gd"]
    said = " ".join(capsys.readouterr().err.split())
    assert "new has no FLAIR; the mask comes from T1Gd alone: what that costs, zeus-segment evaluate --missing" in said
    with Cache(tmp_path / "both.h5") as cache:
        found = evaluate_missing(both, cache, device="cpu")
    of_all, alone = (found[part].summary()["mean_over_classes"]["dsc"] for part in (("FLAIR", "T1Gd"), ("T1Gd",)))
    capsys.readouterr()
    segment_study(tmp_path / "new", both, device="cpu")
    said = " ".join(capsys.readouterr().err.split())
    assert f"without it the run lost {of_all - alone:.3f} DSC on its test subjects" in said
    assert said.index("has no FLAIR") < said.index("slice-modalities")  # before anything is computed
