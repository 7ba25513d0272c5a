"""Two patients, a cache and a run of them, small enough for every test."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import ndimage

from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage2_segment.training.train import train_run

SHAPE = (6, 40, 44)


def run(command, *arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def write_nnunet(root: Path) -> None:
    """Two patients, sagittal slices 4 mm apart, FLAIR and T1Gd; in FLAIR the tumour is dark. qform and sform differ."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    header = nibabel.Nifti1Header()
    header.set_qform(np.diag([4.0, 0.8, 0.8, 1]), 1)
    sform = np.diag([4.0, 0.8, 0.8, 1])
    sform[:3, 3] = (5, -7, 9)
    header.set_sform(sform, 2)
    for number in range(2):
        random = np.random.default_rng(number)
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:5, 8 + 4 * number : 24, 12:30] = 1
        noise = ndimage.gaussian_filter(random.normal(size=SHAPE), 1) * 60
        images = {0: 400 - 250.0 * labels + noise, 1: 150 + 250.0 * labels + noise}
        for channel, image in images.items():
            path = root / "imagesTr" / f"pat{number}_{channel:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), None, header), path)
        header.set_data_dtype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, None, header), root / "labelsTr" / f"pat{number}.nii.gz")
        header.set_data_dtype(np.float32)
    description = {"channel_names": {"0": "FLAIR", "1": "T1Gd"}, "labels": {"background": 0, "tumour": 1}}
    (root / "dataset.json").write_text(json.dumps({**description, "numTraining": 2, "file_ending": ".nii.gz"}))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, cache.h5 of T1Gd alone with a window of its own, and run/: a small network on its pictures."""
    folder = tmp_path_factory.mktemp("cohort")
    write_nnunet(folder / "data")
    common = ["build-cache", "--dataset", "nnunet", "--data-root", folder / "data", "--layers", "slices"]
    built = run(
        zeus_instruct, *common, "--out", folder / "cache.h5", "--modalities", "T1Gd", "--window", "T1Gd=300,500"
    )
    assert built.exit_code == 0, built.output
    assert "pat0: cut into sagittal slices" in built.output
    options = {"model": "unext", "preset": "quarter", "epochs": 1, "batch_size": 6, "validate_every": 0}
    split = {"train_subjects": ["pat0"], "test_subjects": ["pat1"]}
    train_run(folder / "cache.h5", folder / "run", device="cpu", **options, **split)
    return folder
