from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.stage2_segment.conftest import SLICES, answer_with, make_cache, native_labels, oblique_grid
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.checkpoint import write_csv
from zeus_union.stage2_segment.evaluation.evaluate import evaluate_run, mean_cell
from zeus_union.stage2_segment.label_names import read_label_table
from zeus_union.stage2_segment.predict import predict_run
from zeus_union.stage2_segment.trained import load_trained
from zeus_union.stage2_segment.training.train import train_run


@pytest.fixture(scope="module")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as a user's: masks of 64 pixels a side do not come back to the voxel."""
    return make_cache(tmp_path_factory.mktemp("cache") / "toy.h5", side=256)


@pytest.fixture(scope="module")
def run(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch: enough for weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(toy_cache, folder, fusion="hybrid", epochs=1, train_subjects=["ada"], test_subjects=["ben"], device="cpu")
    return folder


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says the truth: what is left to go wrong is geometry."""
    answer_with(monkeypatch, lambda data: data.cache.images(data.rows)[:, 0] // 80)


def test_nifti_lines_up_with_the_source_to_the_voxel(
    run: Path, toy_cache: Path, tmp_path: Path, perfect: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Cache(toy_cache) as cache:
        written = predict_run(run, cache, tmp_path / "masks", device="cpu")
    assert [path.name for path in written] == [f"{name}.nii.gz" for name in ("eve", "ada", "ben", "cleo", "dan")]
    image = nibabel.load(tmp_path / "masks" / "dan.nii.gz")
    grid = oblique_grid()
    assert image.get_data_dtype() == np.uint8
    assert read_label_table(image) == {1: "liver", 2: "spleen"}
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(), grid.affine, atol=1e-4)
    # The file's axes run to posterior, superior and left: (row, slice, column) of the axial view.
    segmented = native_labels("dan").transpose(1, 0, 2)[:, ::2]
    volume = np.asarray(image.dataobj)
    np.testing.assert_array_equal(volume[:, ::2], segmented)
    assert volume.any()
    # Between two segmented slices: what both have, and nothing that neither has. Beyond the last one: nothing.
    before, after, between = segmented[:, :-1], segmented[:, 1:], volume[:, 1:-1:2]
    np.testing.assert_array_equal(between[before == after], before[before == after])
    assert ((between == before) | (between == after)).all() and between.any()
    assert not volume[:, -1].any()
    said = f"{SLICES} of {2 * SLICES} slices segmented (one in 2), {SLICES - 1} between them filled, 1 stay 0"
    assert said in capsys.readouterr().err


def test_perfect_masks_score_perfectly_in_the_native_grid(run: Path, perfect: None) -> None:
    evaluation = evaluate_run(run, subjects=["ben", "dan"], device="cpu")
    assert [(row["subject"], row["class"]) for row in evaluation.rows] == [
        ("ben", "liver"), ("ben", "spleen"), ("dan", "liver"), ("dan", "spleen"),
    ]  # fmt: skip
    for row in evaluation.rows:
        assert row["dsc"] == row["dsc_256"] == row["iou"] == row["nsd"] == 1
        assert row["hd95_mm"] == 0
    table = pq.read_table(run / "evaluation.parquet").to_pylist()
    assert table == evaluation.rows
    spreadsheet = list(csv.DictReader((run / "evaluation.csv").open()))
    assert [line["subject"] for line in spreadsheet] == ["ben", "ben", "dan", "dan"]
    assert all(float(line["dsc"]) == 1 and float(line["hd95_mm"]) == 0 for line in spreadsheet)
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["miou_256"] == 1
    assert "DSC" in summary["definitions"]


def test_held_out_subjects_are_measured_by_default_as_their_written_masks_compare_with_the_truth(
    run: Path, toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model that is off by 16 of 256 rows, so that some of it is right and some is not."""
    answer_with(monkeypatch, lambda data: np.roll(data.cache.images(data.rows)[:, 0] // 80, 16, axis=1))
    evaluation = evaluate_run(run, device="cpu")
    assert [(row["subject"], row["class"]) for row in evaluation.rows] == [("ben", "liver"), ("ben", "spleen")]
    with Cache(toy_cache) as cache:
        (written,) = predict_run(run, cache, tmp_path / "masks", subjects=["ben"], device="cpu")
        mask, truth = np.asarray(nibabel.load(written).dataobj), native_labels("ben").transpose(1, 0, 2)
        mask, truth = mask[:, ::2], truth[:, ::2]  # the slices that are cached
        at_256 = np.stack([np.roll(part, 16, axis=0) for part in cache.masks(cache.rows_of(["ben"]))])
        true_256 = cache.masks(cache.rows_of(["ben"]))
    for label, row in enumerate(evaluation.rows, start=1):
        found, true = mask == label, truth == label
        both, either = (found & true).sum(), (found | true).sum()
        assert 0.2 < row["dsc"] < 0.9
        assert row["dsc"] == pytest.approx(2 * both / (found.sum() + true.sum()))
        assert row["iou"] == pytest.approx(both / either)
        found, true = at_256 == label, true_256 == label
        assert row["dsc_256"] == pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))


def test_predicting_some_rows_gives_their_label_maps(run: Path, toy_cache: Path) -> None:
    with Cache(toy_cache) as cache:
        rows = cache.rows_of(["eve"])
        labels = load_trained(run, device="cpu").predict(cache, rows[:2])
        assert labels.shape == (2, 256, 256) and labels.dtype == np.uint8 and labels.max() <= 2
        np.testing.assert_array_equal(labels, load_trained(run, device="cpu").predict(cache, rows)[:2])


def test_subjects_without_labels_are_predicted_but_never_measured(run: Path) -> None:
    with pytest.raises(UserError, match="no labels of eve; with labels: ada, ben, cleo, dan"):
        evaluate_run(run, subjects=["eve"], device="cpu")


def test_a_spreadsheet_has_nothing_where_nothing_is_defined(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"class": "liver, left", "dsc": 0.1 + 0.2, "hd95_mm": math.nan}, {"class": "x"}])
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert lines[0] == {"class": "liver, left", "dsc": "0.30000000000000004", "hd95_mm": ""}
    assert lines[1] == {"class": "x", "dsc": "", "hd95_mm": ""}


def test_a_mean_of_some_subjects_says_of_how_many() -> None:
    scores = [("ann", 0.5), ("ann", 0.7), ("ben", math.nan), ("cleo", None)]
    assert mean_cell(scores, 2, 3) == "0.60 (1 of 3)"
    assert mean_cell(scores[:2], 2, 1) == "0.60"
    assert mean_cell(scores[2:], 2, 2) == "-"
