"""accelerate launch with two processes: the loss curve, the scores and the weights of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from zeus_union.stage2_segment.cli import main

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_two_processes_have_the_loss_curve_of_one_with_the_same_global_batch(
    viewed_cache: Path, tmp_path: Path, fusion: str
) -> None:
    """Six slices in batches of five: of the second batch one process has none. With `late`, modalities are dropped. Two views."""
    command = ["train", "--cache", str(viewed_cache), "--fusion", fusion, "--epochs", "2", "--batch-size", "5"]
    command += ["--train-subjects", "ada,cleo", "--test-subjects", "ben", "--device", "cpu"]
    command += ["--validation-subjects", "dan"]
    command += ["--modality-drop", "0.4"] if fusion == "late" else ["--ema", "0.9", "--accumulate", "2"]
    alone = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "one")], catch_exceptions=False)
    assert alone.exit_code == 0, alone.output
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]
    launched = subprocess.run(
        [*launcher, "zeus_union.stage2_segment.cli", *command, "--out", str(tmp_path / "two")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert alone.stdout.count("is trained") == launched.stdout.count("is trained") == 1
    runs = [tmp_path / name for name in ("one", "two")]
    records = [pq.read_table(run / "metrics.parquet").to_pylist() for run in runs]
    weights = [load_file(run / "weights" / "last.safetensors") for run in runs]
    for one, two in zip(*records, strict=True):
        for key in ("loss", "dice_loss", "cross_entropy", "lr"):
            assert two[key] == pytest.approx(one[key], rel=2e-5), key
        assert two["validation_dsc"] == pytest.approx(one["validation_dsc"], abs=1e-3)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
