"""A run's own precision decides what is computed, whatever accelerate was configured to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.cli import main
from zeus_union.stage2_segment.device import check_environment, make_accelerator, pick_device


@pytest.mark.parametrize(
    ("asked", "precisions", "refused"),
    [
        (None, ["fp32"], False),
        ("no", ["fp32", "bf16"], False),
        ("bf16", ["bf16"], False),
        ("bf16", ["fp32"], True),
        ("BF16", ["bf16", "fp32"], True),
        ("fp16", ["fp32"], True),
        ("fp8", ["bf16"], True),
    ],
)
def test_an_environment_that_contradicts_the_runs_precision_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, precisions: list[str], refused: bool
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    if not refused:
        check_environment(precisions)
        return
    with pytest.raises(UserError, match=f"ACCELERATE_MIXED_PRECISION is {asked.lower()}.*--precision"):
        check_environment(precisions)


def test_the_command_refuses_it_in_one_line_and_leaves_no_folder(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments: list[Any] = ["train", "--cache", toy_cache, "--out", tmp_path / "run", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "ACCELERATE_MIXED_PRECISION is bf16" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_wrapped_models_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "false")
    check_environment(["fp32"])
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"{name} is on"):
        check_environment(["fp32"])


def test_nothing_of_the_environment_reaches_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator("cpu", precisions=["bf16"])
    assert accelerator.mixed_precision == "no"
    assert accelerator.state.dynamo_plugin.backend.value == "NO"
    assert accelerator.ddp_handler.broadcast_buffers is False
    AcceleratorState._reset_state(True)


def test_fp32_is_not_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pick_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
