"""Several processes at one cache: equal to one process, and none the worse for the loss of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from zeus_union.cache.reader import Cache
from zeus_union.cache.verify import verify
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.cli import main
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.phantom.write import write_demo
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage1_instruct.weights.store import zeus_home

ROOT = Path(__file__).parents[3]

# Builds the layer `slices`; with a second argument it is killed when it has that subject in work.
WORKER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from zeus_union.stage1_instruct.building.loop import BuildOptions, build_cache
from zeus_union.stage1_instruct.datasets import open_dataset
from zeus_union.stage1_instruct.models.assembly import load_models
from zeus_union.stage1_instruct.profiles.profile import load_profile

root, out, lost = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dataset = open_dataset("nnunet", root)

def load(subject):
    if subject == lost:
        print("taken", flush=True)
        signal.pause()
    return dataset.load(subject)

options = BuildOptions(out=out, layers=("slices",), slice_step=4)
report = build_cache(replace(dataset, load=load), load_models(load_profile("lite")), options)
print(report.subjects, flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms."""
    root = tmp_path_factory.mktemp("data") / "nnunet"
    write_demo("nnunet", root, subjects=4, seed=3)
    return root


def start(data: Path, out: Path, lost: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(data), str(out), lost]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def assert_equal(one: Path, other: Path) -> None:
    assert verify(one) == verify(other) == []
    with Cache(one) as a, Cache(other) as b:
        rows = np.arange(len(a.rows))
        assert a.layers == b.layers
        assert [a.fingerprint(layer) for layer in a.layers] == [b.fingerprint(layer) for layer in b.layers]
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.images(rows), b.images(rows))
        np.testing.assert_array_equal(a.masks(rows), b.masks(rows))
        for variant in a.variants:
            np.testing.assert_array_equal(a.text_embeddings(variant, rows), b.text_embeddings(variant, rows))
            assert a.instructions(variant).to_pylist() == b.instructions(variant).to_pylist()
        for encoder in a.encoders:
            one_read, other_read = (cache.read_embeddings(encoder, rows, [0]) for cache in (a, b))
            np.testing.assert_array_equal(one_read.values, other_read.values)


def test_two_processes_share_the_subjects_and_end_with_the_cache_of_one(data: Path, tmp_path: Path) -> None:
    workers = [start(data, tmp_path / "two.h5") for _ in range(2)]
    counts = [int(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sum(counts) == 4
    options = BuildOptions(out=tmp_path / "one.h5", layers=("slices",), slice_step=4)
    build_cache(open_dataset("nnunet", data), load_models(load_profile("lite")), options)
    assert_equal(tmp_path / "one.h5", tmp_path / "two.h5")
    assert not (tmp_path / "two.h5.d").exists()


def test_the_subject_of_a_lost_process_is_taken_over(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset("nnunet", data)
    lost = start(data, tmp_path / "two.h5", lost=dataset.card.subjects[1])
    assert lost.stdout is not None and lost.stdout.readline() == "taken\n"
    other = start(data, tmp_path / "two.h5")
    # The other one ends up waiting for the lost one's subject.
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=10)
    os.kill(lost.pid, signal.SIGKILL)
    assert other.communicate(timeout=120)[0] == "3\n"
    lost.wait()
    with Cache(tmp_path / "two.h5") as cache:
        assert cache.subjects == dataset.card.subjects
    assert verify(tmp_path / "two.h5") == []


@pytest.mark.slow
def test_a_launcher_with_two_processes_builds_every_layer_as_one_process_does(
    data: Path, tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    command = ["build-cache", "--dataset", "nnunet", "--data-root", str(data), "--subjects", "phantom_001,phantom_002"]
    command += ["--modalities", "T2-SPIR", "--slice-step", "8", "--set", "projection=untrained"]
    command += [word for name, value in tiny_parts.items() for word in ("--set", f"{name}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ZEUS_HOME": str(zeus_home())}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]
    launched = subprocess.run(
        [*launcher, "zeus_union.stage1_instruct.cli", *command, "--out", str(tmp_path / "two.h5")],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    alone = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "one.h5")])
    assert alone.exit_code == 0, alone.output
    assert_equal(tmp_path / "one.h5", tmp_path / "two.h5")
