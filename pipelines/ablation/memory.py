"""How many runs fit side by side, from the memory that one measured step of each takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
import torch

from zeus_union.pipelines.ablation.plan import PlannedRun
from zeus_union.pipelines.ablation.timing import noise_step, step_key
from zeus_union.stage2_segment.config import RunConfig

BYTES_A_PARAMETER = 24  # weights, gradient, Adam's two moments, and what a state costs while it is written


def runs_at_once(
    runs: Sequence[PlannedRun],
    device: torch.device,
    stacked: bool,
    measure: Callable[[RunConfig, torch.device], int] | None = None,
) -> int:
    """As many of `runs` as fit into half of the memory that is free, at least one.

    A run that waits keeps its weights, gradient and moments. What a step takes beside them, a hundred times as much for a
    small model, is there once where the runs take turns, and once a run where they are stacked.

    Args:
        measure: bytes of a step on a GPU, `measure_step`. In main memory runs take turns, and the other half is for that.
    """
    kept = max(run.parameters for run in runs) * BYTES_A_PARAMETER
    if device.type != "cuda":
        return max(1, psutil.virtual_memory().available // 2 // kept)
    half = torch.cuda.mem_get_info(device)[0] // 2
    distinct = {step_key(run.config): run.config for run in runs}
    step = max((measure or measure_step)(config, device) for config in distinct.values())
    fitting = half // (kept + step) if stacked else (half - step) // kept
    return max(1, fitting)


def measure_step(config: RunConfig, device: torch.device) -> int:
    """Peak bytes on a GPU of a training step, beside weights, gradient and moments; on noise."""
    step = noise_step(config, device)
    step()  # gradient and moments are there from now on
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del step
    torch.cuda.empty_cache()
    return peak
