"""What a step frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zeus_union.stage2_segment.training import memory

FAULTS = """
import resource, torch
from zeus_union.stage2_segment.training.memory import keep_freed_memory
assert keep_freed_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(12 << 20) for _ in range(3)]  # 144 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(step() for _ in range(12)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_of_a_step_is_used_again_without_a_page_fault() -> None:
    if not memory.keep_freed_memory():
        pytest.skip("no glibc")
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults = [int(number) for number in done.stdout.split()]
    assert faults[0] > 30_000 and faults[-1] < 300


def test_other_systems_allocators_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # musl
    assert not memory.keep_freed_memory()
