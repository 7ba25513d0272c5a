"""Training that is stopped, as by Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zeus_union.stage2_segment import checkpoint
from zeus_union.stage2_segment.training.learner import Learner


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Training within is stopped before its next step when so many have been taken."""
    take, taken = Learner.take, []

    def killed(self: Learner, *rest: Any) -> None:
        taken.append(1)
        if len(taken) > steps:
            raise KeyboardInterrupt
        take(self, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "take", killed)
        yield


@contextmanager
def stopped_at_save(place: tuple[int, int], moment: str = "after") -> Iterator[None]:
    """Training within is stopped 'before' or 'after' it saves at that place, (epoch, batch)."""
    save = checkpoint.save_state

    def interrupted(folder: Path, state: dict[str, Any]) -> None:
        if state["place"] == place and moment == "before":
            raise KeyboardInterrupt
        save(folder, state)
        if state["place"] == place:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_state", interrupted)
        yield
