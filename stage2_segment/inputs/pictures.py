"""Whether the pictures of a cache are made as those that a run was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zeus_union.cache.errors import UserError
from zeus_union.cache.reader import Cache
from zeus_union.cache.terminal import warn
from zeus_union.stage2_segment.config import Inputs


def windows_of(cache: Cache) -> dict[str, Any]:
    """modality -> [level, width] or 'percentiles', as the cache's recipe says."""
    return dict(cache.recipe("slices").get("windows", {}))


def check_pictures(inputs: Inputs, cache: Cache, modalities: Sequence[str]) -> None:
    """Raises UserError: grey values made otherwise than the run's, naming the modality and both windows."""
    windows = windows_of(cache)
    for name in modalities:
        if windows.get(name) != inputs.windows.get(name):
            needed = _as_option(inputs.windows.get(name))
            raise UserError(
                f"{cache.path} shows {name} with --window {name}={_as_option(windows.get(name))}, the run was trained with "
                f"{name}={needed}; build the cache with --window {name}={needed}"
            )


def say_other_views(inputs: Inputs, cache: Cache) -> None:
    """Says where slices are cut as none of the run's is."""
    other = {subject: view for subject in cache.subjects if (view := cache.grid(subject).view) not in inputs.views}
    if other:
        subject, view = next(iter(other.items()))
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        warn(
            f"{subject}{more} of {cache.path}: cut into {view} slices, the run was trained on {', '.join(inputs.views)} ones; "
            "--view builds a cache with those"
        )


def _as_option(window: Any) -> str:
    return ",".join(f"{number:g}" for number in window) if isinstance(window, (list, tuple)) else str(window)
