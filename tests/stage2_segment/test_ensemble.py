"""Several runs predict together: the mean of their probabilities, where and how far they disagree, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stage2_segment.conftest import CLASSES, make_cache, oblique_grid
from tests.stage2_segment.untrained import untrained_run
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.ablation_folder import PLAN, STOPPED, runs_of_row
from zeus_union.stage2_segment.checkpoint import load_config
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.ensemble import Agreement, LogitOfMean, check_members, load_members
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run, measure_run
from zeus_union.stage2_segment.evaluation.missing import evaluate_missing
from zeus_union.stage2_segment.model.zeus import class_map
from zeus_union.stage2_segment.native import NativeSlices, predict_subject, read_subject
from zeus_union.stage2_segment.predict import class_file_names, predict_run
from zeus_union.stage2_segment.trained import load_trained


def zeus_segment(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hybrid Zeus of two seeds, late Zeus without text, and two small networks that read the pictures."""
    folder = tmp_path_factory.mktemp("runs")
    kinds: dict[str, dict[str, Any]] = {
        "a": {"seed": 0},
        "b": {"seed": 1},
        "silent": {"seed": 2, "text": "none", "fusion": "late"},
        "unext": {"seed": 3, "model": "unext", "preset": "quarter"},
        "unext2": {"seed": 4, "model": "unext", "preset": "quarter"},
    }
    return {name: untrained_run(toy_cache, folder / name, **options) for name, options in kinds.items()}


def logits_of(run: Path, cache: Cache, subject: str) -> torch.Tensor:
    """Of one run alone, in the native slices, (n, K, rows, columns)."""
    from zeus_union.stage2_segment.inputs.run_inputs import RunInputs

    trained = load_trained(run, device="cpu")
    (data,) = read_subject(cache, subject, [trained], trained.config.inputs.modalities).values()
    with torch.inference_mode():
        parts = [RunInputs(trained.config, data).logits(trained.model, *batch) for batch in data.in_order(2)]
    return torch.cat(parts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(-60, 60), min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_logit_of_the_mean_is_that_of_the_mean_probability(members: list[list[float]]) -> None:
    mean = LogitOfMean()
    for logits in members:
        mean.add(torch.tensor(logits, dtype=torch.float64))
    exact = torch.stack([torch.tensor(logits, dtype=torch.float64).sigmoid() for logits in members]).mean(dim=0)
    torch.testing.assert_close(mean.logits().sigmoid(), exact)
    other = torch.stack([(-torch.tensor(logits, dtype=torch.float64)).sigmoid() for logits in members]).mean(dim=0)
    torch.testing.assert_close((-mean.logits()).sigmoid(), other)  # as exact near 1 as near 0
    if len(members) == 1:
        assert mean.logits().tolist() == members[0]


def test_an_ensemble_of_one_is_that_run(runs: dict[str, Path], toy_cache: Path, tmp_path: Path) -> None:
    with Cache(toy_cache) as cache:
        (alone,) = predict_run(runs["a"], cache, tmp_path / "alone", subjects=["ben"], device="cpu")
        (one,) = predict_run([runs["a"]], cache, tmp_path / "one", subjects=["ben"], device="cpu")
        assert alone.read_bytes() == one.read_bytes()
        assert [path.name for path in (tmp_path / "one").iterdir()] == ["ben.nii.gz"]
        same = [measure_run(run, cache, subjects=["ben"], device="cpu") for run in (runs["unext"], [runs["unext"]])]
    assert repr(same[0]) == repr(same[1])  # NaN is not equal to itself


def test_the_mask_is_of_the_mean_probability_interpolated_onto_the_native_grid(
    runs: dict[str, Path], toy_cache: Path, tmp_path: Path
) -> None:
    """Of Zeus with and without text and of a baseline that reads other layers of the cache, batch by batch."""
    members = load_members([runs["a"], runs["silent"], runs["unext"]], device="cpu")
    with Cache(toy_cache) as cache:
        grid = cache.grid("ben")
        data = read_subject(cache, "ben", members, cache.modalities)
        assert set(data) == {"toy", None}
        predicted = predict_subject(members, data, grid, probabilities_in=tmp_path, batch_size=2)
        at_256 = [logits_of(runs[name], cache, "ben") for name in ("a", "silent", "unext")]
    mean = torch.stack([logits.double().sigmoid() for logits in at_256]).mean(dim=0)
    np.testing.assert_array_equal(predicted.labels_256, class_map(mean - 0.5).numpy())
    to_native = NativeSlices(grid, torch.device("cpu"))
    native = to_native(torch.logit(mean).float())
    assert (predicted.labels != class_map(native).numpy()).mean() < 1e-4  # but for rounding
    assert predicted.probabilities is not None
    expected = native.sigmoid().transpose(0, 1).numpy()
    np.testing.assert_allclose(predicted.probabilities / 2.0**15, expected, atol=1e-4)
    of_members = [class_map(to_native(logits)).numpy() for logits in at_256]
    assert list(tmp_path.iterdir()) == []  # the file behind them has no name
    differing = np.sum([labels != predicted.labels for labels in of_members], axis=0)
    np.testing.assert_array_equal(predicted.differing, differing)
    for label, name in enumerate(CLASSES, 1):
        pairs = [(of_members[i] == label, of_members[j] == label) for i, j in ((0, 1), (0, 2), (1, 2))]
        scores = [2 * (p & q).sum() / (p.sum() + q.sum()) for p, q in pairs if p.any() or q.any()]
        assert predicted.agreement[name] == (pytest.approx(np.mean(scores)) if scores else None)


def test_agreement_counts_pairs_that_show_the_class() -> None:
    labels = torch.tensor([[[1, 1, 0]], [[1, 0, 0]], [[0, 0, 0]]], dtype=torch.uint8)
    agreement = Agreement(("liver", "spleen"), 3, (1, 1, 3))
    agreement.add(0, labels, torch.tensor([[1, 0, 0]], dtype=torch.uint8))
    np.testing.assert_array_equal(agreement.differing, [[[1, 1, 0]]])
    assert agreement.pairwise_dsc() == {"liver": pytest.approx((2 / 3 + 0 + 0) / 3), "spleen": None}


def test_the_command_writes_masks_probabilities_disagreement_and_a_number(
    runs: dict[str, Path], toy_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks"
    how = ["--run", runs["unext"], "--run", runs["unext2"], "--cache", toy_cache, "--out", out, "--device", "cpu"]
    done = zeus_segment("predict", *how, "--subjects", "ben", "--probabilities")
    assert done.exit_code == 0, done.output
    assert "2 members: DSC of their pairs" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "ben.nii.gz",
        "ben.liver.prob.nii.gz",
        "ben.spleen.prob.nii.gz",
        "ben.disagreement.nii.gz",
        "ensemble.json",
    }
    mask = nibabel.load(out / "ben.nii.gz")
    labels, maps = np.asarray(mask.dataobj), {}
    for name in CLASSES:
        image = nibabel.load(out / f"ben.{name}.prob.nii.gz")
        np.testing.assert_array_equal(image.affine, mask.affine)
        np.testing.assert_array_equal(image.get_qform(), mask.get_qform())
        assert image.header["sform_code"] == mask.header["sform_code"] and image.shape == oblique_grid().shape
        maps[name] = image.get_fdata()
        assert maps[name].min() >= 0 and maps[name].max() <= 1
        itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / f"ben.{name}.prob.nii.gz")))
        np.testing.assert_array_equal(itk.T, maps[name].astype(np.float32))
    # Of the slices that the cache left out the mask alone is filled.
    assert not any(values[:, 1::2].any() for values in maps.values()) and labels[:, 1::2].any()
    labels, maps = labels[:, ::2], {name: values[:, ::2] for name, values in maps.items()}
    highest = np.max(list(maps.values()), axis=0)
    np.testing.assert_array_equal(labels > 0, highest > 0.5)
    for label, name in enumerate(CLASSES, 1):
        assert (maps[name][labels == label] == highest[labels == label]).all()
    disagreement = nibabel.load(out / "ben.disagreement.nii.gz").get_fdata()
    assert set(np.unique(disagreement)) <= {0, 0.5, 1} and disagreement.any() and not disagreement[:, 1::2].any()
    written = json.loads((out / "ensemble.json").read_text())
    assert [member["run"] for member in written["members"]] == [str(runs["unext"]), str(runs["unext2"])]
    assert set(written["agreement"]) == {"ben"} and set(written["agreement"]["ben"]) == set(CLASSES)
    more = zeus_segment("predict", *how, "--subjects", "dan")
    assert more.exit_code == 0
    assert set(json.loads((out / "ensemble.json").read_text())["agreement"]) == {"ben", "dan"}  # nothing is lost


def test_an_ensemble_is_measured_in_a_folder_of_its_own(runs: dict[str, Path], toy_cache: Path, tmp_path: Path) -> None:
    before = set(runs["unext"].iterdir()) | set(runs["unext2"].iterdir())
    done = zeus_segment("evaluate", "--run", runs["unext"], "--run", runs["unext2"], "--device", "cpu", "--missing")
    assert done.exit_code == 0, done.output
    assert "2 runs together" in done.stdout and "2 members: DSC of their pairs" in done.stdout
    assert before == set(runs["unext"].iterdir()) | set(runs["unext2"].iterdir())
    (folder,) = runs["unext"].parent.glob("ensemble-*")
    assert {path.name for path in folder.iterdir()} == {
        "evaluation.csv",
        "evaluation.json",
        "evaluation.parquet",
        "ensemble.json",
        "missing.parquet",
    }
    summary = json.loads((folder / "evaluation.json").read_text())
    assert summary["members"] == [str(runs["unext"]), str(runs["unext2"])] and summary["subjects"] == ["ben", "dan"]
    assert (folder / summary["cache"]).resolve() == toy_cache.resolve()
    with Cache(toy_cache) as cache:
        rows = measure_run([runs["unext"], runs["unext2"]], cache, device="cpu").rows
        assert repr(pq.read_table(folder / "evaluation.parquet").to_pylist()) == repr(rows)
        predict_run([runs["unext"], runs["unext2"]], cache, tmp_path, subjects=["ben"], device="cpu")
        one = measure_run([runs["unext"], runs["unext2"]], cache, modalities=["T2"], device="cpu")
        missing = evaluate_missing([runs["unext"], runs["unext2"]], cache, device="cpu", out=tmp_path)
        assert repr(missing["T2",].rows) == repr(one.rows) != repr(rows)
    mask = np.asarray(nibabel.load(tmp_path / "ben.nii.gz").dataobj)[:, ::2]  # those that were segmented
    predicted = {row["class"]: row["predicted"] for row in rows if row["subject"] == "ben"}
    assert predicted == {name: int((mask == label).sum()) for label, name in enumerate(CLASSES, 1)}
    assert min(predicted.values()) > 0
    agreement = json.loads((folder / "ensemble.json").read_text())["agreement"]
    assert all(0 < value < 1 for classes in agreement.values() for value in classes.values())


def test_nobody_that_a_member_was_trained_on_is_measured_unnamed(toy_cache: Path, tmp_path: Path) -> None:
    groups = (["ada"], ["ben", "dan"]), (["ben"], ["ada", "dan"]), (["dan"], ["ada", "ben"])
    one, two, three = (
        untrained_run(
            toy_cache,
            tmp_path / f"run{seed}",
            seed,
            train_subjects=train,
            test_subjects=test,
            model="unext",
            preset="quarter",
        )
        for seed, (train, test) in enumerate(groups)
    )
    with Cache(toy_cache) as cache:
        both = measure_run([one, two], cache, device="cpu")
        assert list(both.miou_256) == ["dan"] and both.trained_on == ()
        with pytest.raises(UserError, match=r"no subject of .* is held out by all 3 runs.*or name --subjects"):
            measure_run([one, two, three], cache, device="cpu")
        named = measure_run([one, two, three], cache, subjects=["ada", "ben"], device="cpu")
        assert named.trained_on == ("ada", "ben")
    said = zeus_segment("evaluate", "--run", one, "--run", two, "--subjects", "ben", "--device", "cpu")
    assert "a member was trained on: ben" in said.stdout


def changed(run: Path, folder: Path, **inputs: Any) -> Path:
    """A copy of a run that says it read something else."""
    shutil.copytree(run, folder)
    config = load_config(folder)
    config = replace(config, inputs=replace(config.inputs, **inputs), seed=config.seed + 1)
    checkpoint.write_json(folder / checkpoint.CONFIG, config.to_json())
    return folder


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"classes": ("liver", "kidney")}, "they differ in classes (liver, spleen -> liver, kidney)"),
        ({"classes": ("spleen", "liver")}, "they differ in classes (liver, spleen -> spleen, liver)"),
        ({"modalities": ("T1",)}, "they differ in modalities (T1, T2 -> T1)"),
        ({"encoder": "vit_h"}, "they differ in image encoder (toy -> vit_h)"),
        ({"embedding_recipe": {"encoder": "other"}}, "they differ in image encoder (encoder: toy -> other)"),
        ({"preprocessing": {"version": 9}}, "they differ in preprocessing"),
        ({"windows": {"T1": [40, 400], "T2": "percentiles"}}, "they differ in windows"),
    ],
)
def test_runs_of_other_classes_modalities_or_encoders_are_refused_by_name(
    runs: dict[str, Path], toy_cache: Path, tmp_path: Path, inputs: dict[str, Any], says: str
) -> None:
    other = changed(runs["a"], tmp_path / "other", **inputs)
    for command in (["predict", "--out", tmp_path / "masks"], ["evaluate"]):
        refused = zeus_segment(*command, "--cache", toy_cache, "--run", runs["b"], "--run", other, "--device", "cpu")
        assert refused.exit_code == 2
        assert f"{runs['b']} and {other} cannot predict together" in refused.stderr and says in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "masks").exists()


def test_a_run_twice_is_refused_under_another_name_too(runs: dict[str, Path], toy_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(runs["a"], tmp_path / "copy")
    again = runs["a"].parent / "b" / ".." / "a"
    for other, says in ((again, "are the same folder"), (tmp_path / "copy", "hold the same weights")):
        refused = zeus_segment(
            "predict", "--run", runs["a"], "--run", other, "--cache", toy_cache, "--out", tmp_path / "masks"
        )
        assert refused.exit_code == 2 and says in refused.stderr and "give every run" in refused.stderr
    with pytest.raises(UserError, match="at least one run"):
        check_members([], [])


def test_best_weights_that_one_member_lacks_are_named(runs: dict[str, Path], toy_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(runs["a"], tmp_path / "best")
    shutil.copy(tmp_path / "best/weights/last.safetensors", tmp_path / "best/weights/best.safetensors")
    refused = zeus_segment(
        "predict", "--run", tmp_path / "best", "--run", runs["b"], "--out", tmp_path / "masks", "--weights", "best",
        "--cache", toy_cache,
    )  # fmt: skip
    assert refused.exit_code == 2 and f"{runs['b']}/weights/best.safetensors does not exist" in refused.stderr
    assert not (tmp_path / "masks").exists()


def test_a_baseline_needs_no_embeddings_and_an_ensemble_with_zeus_does(
    runs: dict[str, Path], toy_cache: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures.h5"
    make_pictures_only(pictures)
    with Cache(pictures) as cache:
        assert predict_run(runs["unext"], cache, tmp_path / "alone", subjects=["ben"], device="cpu")
        with pytest.raises(UserError, match="encoder"):
            predict_run([runs["unext"], runs["a"]], cache, tmp_path / "both", subjects=["ben"], device="cpu")


def make_pictures_only(path: Path) -> None:
    """The toy cache without its other layers."""
    from zeus_union.cache.writer import CacheWriter, SubjectSlices

    full = make_cache(path.with_name("full.h5"), ("ada", "ben"), ())
    with Cache(full) as cache:
        writer = CacheWriter(path, cache.card)
        writer.begin_layer("slices", cache.recipe("slices"))
        for subject in cache.subjects:
            rows = cache.rows_of([subject])
            numbers, images = np.asarray(cache.rows["number"][rows]), cache.images(rows)
            truth = cache.masks(rows), None, cache.native_masks(subject)
            writer.write_slices(subject, SubjectSlices(cache.grid(subject), numbers, images, *truth, {}))
        writer.finalize()


@pytest.fixture
def ablation(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Rows 'text' (folds 0 and 1; the third run was stopped) and 'broken' (stopped)."""
    folder = tmp_path / "ablation"
    planned = {"text-fold0": "text", "text-fold1": "text", "text-fold2": "text", "broken-fold0": "broken"}
    for name, source in zip(planned, ("unext", "unext2", "silent", "silent")):
        shutil.copytree(runs[source], folder / "runs" / name)
    for name in planned:
        config = load_config(folder / "runs" / name)
        fold = int(name[-1])
        config = replace(config, split=replace(config.split, fold=fold))
        checkpoint.write_json(folder / "runs" / name / checkpoint.CONFIG, config.to_json())
    plan = {"runs": {name: {"row": row} for name, row in planned.items()}}
    (folder / PLAN).write_text(json.dumps(plan))
    (folder / STOPPED).write_text(json.dumps({"text-fold2": "loss", "broken-fold0": "loss"}))
    return folder


def test_a_row_of_an_ablation_is_all_its_runs(ablation: Path, toy_cache: Path, tmp_path: Path) -> None:
    assert [run.name for run in runs_of_row(ablation, "text")] == ["text-fold0", "text-fold1"]
    assert [run.name for run in runs_of_row(ablation, "text", 1)] == ["text-fold1"]
    how = ["--cache", toy_cache, "--device", "cpu"]
    done = zeus_segment("evaluate", "--ablation", ablation, "--row", "text", *how, "--subjects", "ben")
    assert done.exit_code == 0, done.output
    assert (ablation / "ensembles" / "text" / "ensemble.json").is_file()
    done = zeus_segment(
        "predict", "--ablation", ablation, "--row", "text", *how, "--subjects", "ben", "--out", tmp_path
    )
    assert done.exit_code == 0 and (tmp_path / "ben.disagreement.nii.gz").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ablation", "{}", "--row", "broken"], "no run of row 'broken' of"),
        (["--ablation", "{}", "--row", "text", "--fold", 7], "no run of row 'text', fold 7, of"),
        (["--ablation", "{}", "--row", "txt"], "has no row 'txt'; its rows: text, broken"),
        (["--ablation", "{}"], "has runs of several rows; give --row NAME"),
        (["--ablation", "{}/runs", "--row", "text"], "is not an ablation: it has no ablation.json"),
        (["--ablation", "{}", "--run", "{}/runs/text-fold0"], "--run and --ablation exclude one another"),
        (["--row", "text"], "give --ablation FOLDER"),
        ([], "no run to predict with; give --run FOLDER"),
    ],
)
def test_what_names_no_run_is_one_line(ablation: Path, tmp_path: Path, options: list[object], says: str) -> None:
    arguments = [str(option).format(ablation) for option in options]
    for command in (["predict", "--out", tmp_path / "masks"], ["evaluate"]):
        refused = zeus_segment(*command, *arguments)
        assert refused.exit_code == 2 and says in refused.stderr, refused.output
    assert not (tmp_path / "masks").exists()


def test_classes_have_names_that_a_file_can_have() -> None:
    assert class_file_names(["left kidney", "tumour/core", "脾"]) == ["left-kidney", "tumour-core", "脾"]
    assert class_file_names(["A", "a", "/"]) == ["A-1", "a-2", "3"]


def test_evaluation_of_one_run_says_nothing_of_members(runs: dict[str, Path], tmp_path: Path) -> None:
    summary = evaluate_run(runs["a"], subjects=["ben"], device="cpu", out=tmp_path).summary()
    assert summary["members"] == [] and not (tmp_path / "ensemble.json").exists()
