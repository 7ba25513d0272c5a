"""Which device is taken. No Apple GPU is here: 'mps' is tested as a choice, and by what the models compute in, not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils._python_dispatch import TorchDispatchMode

from tests.stage1_instruct.conftest import (  # noqa: F401
    random_litemedsam,
    tiny_bert,
    tiny_llama,
    tiny_parts,
)
from tests.stage2_segment.conftest import toy_cache  # noqa: F401
from zeus_union.cache import devices
from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.pipelines.ablation.timing import noise_step
from zeus_union.pipelines.cli import main as zeus
from zeus_union.stage1_instruct.cli import main as zeus_instruct
from zeus_union.stage1_instruct.models import assembly
from zeus_union.stage1_instruct.models.language.prompts import question
from zeus_union.stage1_instruct.profiles.profile import load_profile
from zeus_union.stage2_segment.cli import main as zeus_segment
from zeus_union.stage2_segment.device import pick_device
from zeus_union.stage2_segment.plan import plan_run


@pytest.mark.parametrize(
    ("machine", "native", "taken", "expected"),
    [
        ("x86_64", True, True, True),
        ("AMD64", False, True, False),  # AVX-512 alone: torch takes bf16 there, slower than fp32
        ("aarch64", False, True, True),
        ("aarch64", False, False, False),
    ],
)
def test_a_processor_computes_bf16_where_it_has_instructions_for_it(
    machine: str, native: bool, taken: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: taken, raising=False)
    assert devices.computes_bf16(torch.device("cpu")) is expected
    assert devices.computes_bf16(torch.device("meta")) is False


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_both_stages_take_cuda_before_mps_before_the_cpu(
    cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.best_device().type == best
    assert torch.device(assembly.best_device()).type == best
    assert pick_device(None).type == best


@pytest.mark.parametrize("name", ["mps", "cuda:7", "nonsense"])
def test_device_that_is_not_there_is_one_line_in_both_stages(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(UserError, match=f"device {name} cannot be used.*--device cpu"):
        pick_device(name)
    with pytest.raises(UserError, match=f"device {name} cannot be used.*--device cpu"):
        assembly.load_models(load_profile("lite"), name)


@pytest.mark.parametrize(
    ("command", "name"),
    [(zeus_instruct, "build-cache"), (zeus_instruct, "doctor"), (zeus_segment, "train"), (zeus_segment, "predict")]
    + [(zeus, "segment"), (zeus, "demo"), (zeus, "ablate")],
)
def test_help_names_every_kind_of_device(command: Any, name: str) -> None:
    said = " ".join(CliRunner().invoke(command, [name, "--help"]).output.split())
    assert "cpu, cuda, cuda:1, mps" in said


class NoFloat64(TorchDispatchMode):
    """Fails where something is computed in float64, which Apple's GPUs do not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                assert value.dtype != torch.float64, func
        return result


def test_the_check_for_float64_sees_it() -> None:
    with pytest.raises(AssertionError), NoFloat64():
        torch.ones(2).double()


@pytest.mark.parametrize(
    "chosen", [{"fusion": "late"}, {"fusion": "hybrid"}, {"model": "unext", "preset": "quarter"}], ids=str
)
def test_training_step_uses_no_float64(chosen: dict[str, Any], toy_cache: Path) -> None:  # noqa: F811
    with Cache(toy_cache) as cache:
        config = plan_run(cache, run=Path("run"), batch_size=1, **chosen)
    step = noise_step(config, torch.device("cpu"))
    with NoFloat64():
        step()


def test_frozen_models_use_no_float64(tiny_parts: dict[str, str]) -> None:  # noqa: F811
    models = assembly.load_models(load_profile("lite", tiny_parts), "cpu", lambda _: None)
    pictures = torch.randint(0, 255, (1, 256, 256), dtype=torch.uint8).numpy()
    encoder, instructor, text_encoder = models.encoder, models.instructor, models.text_encoder
    with NoFloat64():
        embeddings = encoder.encode(pictures)
        (answer,) = instructor.answer([question("liver", "MRI-T2")], embeddings)
        text_encoder.encode([answer.text])


def test_numbers_drawn_in_the_block_leave_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with devices.random_numbers_kept(torch.device("cpu")):
        torch.manual_seed(2)
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)
