"""Texts that say nothing of the image are warned of where a run is trained on them and where it is probed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stage2_segment.conftest import make_cache
from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.evaluation.probe import probe_texts
from zeus_union.stage2_segment.training.train import train_run

WARNING = "warning: toy: 12 instructions, 1 distinct: the text says nothing of the image"


def test_training_and_probing_warn_of_texts_that_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_cache(tmp_path / "toy.h5", ("ada", "ben"), ())
    split = {"train_subjects": ["ada"], "test_subjects": ["ben"]}
    how = {"fusion": "hybrid", "modalities": ["T1"], "epochs": 1, "validate_every": 0, "device": "cpu", **split}
    train_run(path, tmp_path / "run", **how)
    assert capsys.readouterr().err.count(WARNING) == 1
    with Cache(path) as cache:
        probe_texts(tmp_path / "run", cache, device="cpu")
    assert capsys.readouterr().err.count(WARNING) == 1
    train_run(path, tmp_path / "none", text="none", **how)
    assert "warning" not in capsys.readouterr().err
