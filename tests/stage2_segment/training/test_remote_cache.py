"""A cache on a mount: read-only, without locks, lost in the middle."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from zeus_union.cache import locks, shard, system_errors
from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.inputs import slices
from zeus_union.stage2_segment.training.train import train_run

QUICK: dict[str, Any] = {
    "fusion": "hybrid",
    "modalities": ["T1"],
    "text": "none",
    "train_subjects": ["ada"],
    "test_subjects": ["ben"],
    "batch_size": 1,
    "epochs": 1,
    "device": "cpu",
    "resident": "disk",
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_state(run)["model"]


@pytest.fixture
def mount(toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy cache where nothing can be written, created or locked, whoever asks (root passes chmod)."""
    folder = tmp_path / "mount"
    folder.mkdir()
    for path in toy_cache.parent.glob("toy.*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).startswith(str(folder)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *rest, **named)

    def no_locks(path: Path, *_: Any, **__: Any) -> None:
        raise locks.NoLocksError(str(path))

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(locks, "acquire", no_locks)
    return folder / toy_cache.name


@pytest.mark.slow
def test_training_from_a_read_only_mount_that_is_lost_resumes_where_it_was(
    mount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_run(mount, whole, **QUICK)

    read, rows = shard.read_at, []

    def lost(fd: int, buffer: Any, offset: int) -> int:
        if memoryview(buffer).nbytes == 256 * 16 * 16:  # an embedding
            rows.append(offset)
            if len(rows) == 3:
                raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return read(fd, buffer, offset)

    with monkeypatch.context() as patch:
        patch.setattr(shard, "read_at", lost)
        patch.setattr(slices, "AHEAD", 1)  # else whichever of three threads comes third loses the mount
        with pytest.raises(OSError, match="not connected") as failed:
            train_run(mount, run, **QUICK)
    line = system_errors.one_line(failed.value)
    assert line is not None and str(mount) in line and "run the same command again" in line
    assert checkpoint.load_state(run)["place"] == (1, 2)  # of three steps two, which need not be taken again
    train_run(mount, run, resume=True, **QUICK)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(run)[name]), name


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "ENODEV"])
def test_whatever_a_lost_mount_answers_is_one_line(name: str) -> None:
    line = system_errors.one_line(OSError(getattr(errno, name), "lost", "/mnt/a.h5"))
    assert line is not None and "/mnt/a.h5" in line and "same command again" in line
