"""From nothing to masks, through the commands a user types."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.projection import fold as fold_training

SMALL = ["--subjects", "2", "--slice-step", "6", "--epochs", "1"]


def run(command, *arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small demo, both stages on the embedded models."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold_training, "RECIPE", replace(fold_training.RECIPE, steps=3))
        result = run(zeus, "demo", "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_the_demo_says_first_what_it_will_do_and_ends_with_a_picture(demo: Path):
    picture = np.asarray(Image.open(demo / "picture.png").convert("L"))
    assert picture.shape[0] > 300 and picture.std() > 20


@pytest.mark.slow
def test_the_demos_cache_is_sound_and_every_image_has_its_instruction(demo: Path):
    path = demo / "cache" / "demo.h5"
    assert verify(path) == []
    with Cache(path) as cache:
        texts = cache.instructions(cache.variants[0]).to_pylist()
        assert len(texts) == len(cache.rows) * 3
        assert all(row["text"].strip() and row["output_tokens"] > 0 for row in texts)
        assert all(cache.card.terms[row["modality"]] in row["prompt"] for row in texts)
        recipe = cache.recipe(f"instructions/{cache.variants[0]}")
        train = [name for name in cache.subjects if cache.rows["fold"][cache.rows_of([name])[0]] != 0]
        assert recipe["projection"]["trained_on"]["subjects"] == train


@pytest.mark.slow
def test_the_demos_masks_lie_in_the_studys_own_grid(demo: Path):
    masks = sorted((demo / "masks").glob("*.nii.gz"))
    dataset = open_dataset("demo", demo / "data")
    assert masks
    for path in masks:
        image = nibabel.load(path)
        study = dataset.load(path.name.removesuffix(".nii.gz"))
        assert image.shape == study.grid.shape
        np.testing.assert_allclose(image.affine, study.grid.affine, atol=1e-4)


@pytest.mark.slow
def test_the_same_demo_again_does_nothing_twice(demo: Path):
    weights = demo / "run" / "weights" / "last.safetensors"
    before = {path: path.stat().st_mtime_ns for path in (weights, demo / "cache" / "demo.h5")}
    assert run(zeus, "demo", "--out", demo, *SMALL).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_inspect_shows_layers_and_draws_an_instruction_beside_its_image(demo: Path, tmp_path: Path):
    cache = demo / "cache" / "demo.h5"
    listing = run(zeus_instruct, "inspect", cache).output
    assert "embeddings/litemedsam" in listing and "liver" in listing and "128 x 128 x 12" in listing
    result = run(zeus_instruct, "inspect", cache, "--subject", "chaos01", "--png", tmp_path / "slice.png")
    assert result.exit_code == 0 and "chaos01, slice" in result.output
    assert np.asarray(Image.open(tmp_path / "slice.png")).std() > 20
    assert run(zeus_instruct, "verify", cache).output.strip().endswith("is sound")


@pytest.mark.slow
def test_report_draws_a_run(demo: Path, tmp_path: Path):
    assert run(zeus, "report", demo / "run", "--out", tmp_path / "run.png", "--slices", "2").exit_code == 0
    assert (tmp_path / "run.png").stat().st_size > 10_000


@pytest.mark.slow
def test_another_prompt_under_the_same_name_is_refused_and_under_another_is_added(demo: Path):
    common = ["build-cache", "--dataset", "demo", "--data-root", demo / "data", "--out", demo / "cache" / "demo.h5"]
    common += ["--slice-step", "6", "--set", "projection=untrained", "--set", "max_new_tokens=8"]
    with Cache(demo / "cache" / "demo.h5") as cache:
        rows = np.arange(len(cache.rows))
        before = cache.text_embeddings("lite@fold0", rows), cache.read_embeddings("litemedsam", rows, [0]).values
    assert run(zeus_instruct, *common, "--variant", "other").exit_code == 0
    another = [str(argument) for argument in (*common, "--set", "template=xraygpt", "--variant", "other")]
    refused = CliRunner().invoke(zeus_instruct, another)
    assert refused.exit_code == 2
    assert "template" in refused.output and "--variant" in refused.output
    with Cache(demo / "cache" / "demo.h5") as cache:
        assert cache.variants == ("lite@fold0", "other")
        np.testing.assert_array_equal(before[0], cache.text_embeddings("lite@fold0", rows))
        np.testing.assert_array_equal(before[1], cache.read_embeddings("litemedsam", rows, [0]).values)


@pytest.mark.slow
def test_a_study_that_is_in_no_cache_gets_the_mask_it_would_have_had_from_one(demo: Path, tmp_path: Path):
    mask = next(iter(sorted((demo / "masks").glob("*.nii.gz"))))
    study = open_dataset("demo", demo / "data").load(mask.name.removesuffix(".nii.gz"))
    folder = tmp_path / "patient 7"
    folder.mkdir()
    for name, image in study.images.items():
        nibabel.save(nibabel.Nifti1Image(image, study.grid.affine), folder / f"scan_{name}.nii.gz")
    common = ["segment", folder, "--run", demo / "run", "--slice-step", "6", "--out", tmp_path / "masks"]
    refused = run(zeus, *common, "--set", "projection=untrained")
    assert refused.exit_code == 2 and "give the --models and --set that build-cache was given" in refused.output
    done = run(zeus, *common)
    assert done.exit_code == 0, done.output
    assert "scan_T2-SPIR.nii.gz" in done.output
    found, expected = nibabel.load(tmp_path / "masks" / "patient-7" / "mask.nii.gz"), nibabel.load(mask)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
