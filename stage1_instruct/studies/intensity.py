"""Voxel values become grey values: by a window, or by percentiles of what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeus_union.cache.errors import UserError
from zeus_union.cache.terminal import nearest

PERCENTILES = (0.5, 99.5)
BY_PERCENTILES = "percentiles"

# A background has one value. It is one where at least this share of the volume's sides lies in runs of it: padding and
# removed skulls reach the sides, and noise of few grey levels has no runs.
_RUN, _SHARE_OF_SIDES = 5, 0.01
# Distance from a background, as a share of the range, up to which resampling and rounding leave values around it.
_NEAR = 1e-3
# Fewer foreground voxels than this share below the background are undershoot; more are an image around its mean.
_UNDERSHOOT = 0.15
# A voxel that differs from its neighbours by more than this share of the range does not count for the percentiles.
_STICKS_OUT = 0.5
# A window that leaves fewer grey levels than this between the percentiles shows nothing.
_FEWEST_LEVELS = 10


@dataclass(frozen=True)
class Window:
    """Values from `level` - `width` / 2 to `level` + `width` / 2 are shown, in the image's own unit (CT: Hounsfield)."""

    level: float
    width: float

    @property
    def bounds(self) -> tuple[float, float]:
        return self.level - self.width / 2, self.level + self.width / 2


# The abdomen's: soft tissue of 70 to 160 HU takes 57 grey levels; between the percentiles of a whole CT it takes 14.
CT_WINDOW = Window(40, 400)


def is_ct(term: str) -> bool:
    """Whether an instruction's name of a modality says CT: 'CT', 'CT-1', 'low-dose CT', but not 'MRI-CT' or 'PET-CT'."""
    words = set(re.findall(r"[a-z0-9]+", term.lower()))
    return "ct" in words and not words & {"mri", "mr", "pet"}


def windows_of(terms: Mapping[str, str], given: Mapping[str, Window | None]) -> dict[str, Window | None]:
    """modality -> its window, None for percentiles: as `given`, else the abdomen's for CT and none for the others.

    Args:
        terms: modality -> what the instruction calls it.

    Raises:
        UserError: a window for a modality that is not there.
    """
    unknown = [name for name in given if name not in terms]
    if unknown:
        raise UserError(
            f"a window is given for {', '.join(unknown)}; the modalities are {', '.join(terms)}{nearest(unknown[0], terms)}"
        )
    return {name: given.get(name, CT_WINDOW if is_ct(term) else None) for name, term in terms.items()}


def parse_windows(texts: Iterable[str]) -> dict[str, Window | None]:
    """('CT=40,400', 'PET=percentiles') -> {'CT': Window(40, 400), 'PET': None}.

    Raises:
        UserError: anything else, a width that is not above 0, a modality named twice.
    """
    windows: dict[str, Window | None] = {}
    for text in texts:
        modality, _, value = (part.strip() for part in text.rpartition("="))
        numbers = re.fullmatch(r"([-+]?[\d.]+(?:e[-+]?\d+)?)\s*,\s*([\d.]+(?:e[-+]?\d+)?)", value, re.IGNORECASE)
        try:
            window = None if value == BY_PERCENTILES else Window(*map(float, numbers.groups() if numbers else ()))
        except (TypeError, ValueError):
            window = Window(0, 0)
        if not modality or modality in windows or (window is not None and not window.width > 0):
            raise UserError(
                f"--window {text!r}: expected one MODALITY=LEVEL,WIDTH for a modality, e.g. CT=40,400, "
                f"or MODALITY={BY_PERCENTILES}"
            )
        windows[modality] = window
    return windows


def windows_recipe(windows: Mapping[str, Window | None]) -> dict[str, list[float] | str]:
    """The windows for the cache's recipe: modality -> [level, width] or 'percentiles'; `windows_in` reads it back."""
    return {
        name: BY_PERCENTILES if window is None else [float(window.level), float(window.width)]
        for name, window in windows.items()
    }


def windows_in(recipe: Mapping[str, Any]) -> dict[str, Window | None]:
    """modality -> window, from what `windows_recipe` gave."""
    return {name: None if value == BY_PERCENTILES else Window(*value) for name, value in recipe.items()}


def foreground(slices: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which voxels of a volume show something, and the volume without its single outliers.

    Args:
        slices: (slices, rows, columns).
    Returns:
        bool and float32, as `slices`. In a volume without a background (noise in the air) everything is foreground.
    """
    calm = _without_outliers(slices)
    backgrounds = _backgrounds(slices)
    measured = _differs(calm, backgrounds, 0.0)
    if measured.any():
        low, high = np.percentile(calm[measured], PERCENTILES)
        measured = _differs(calm, backgrounds, _NEAR * (high - low))
    for background in backgrounds[::-1]:
        below = measured & (calm < background)
        if np.count_nonzero(below) < _UNDERSHOOT * np.count_nonzero(measured):
            measured &= ~below & (slices > background)  # at a rim the median and the voxel may lie on both sides
            break
    if not measured.any():  # nothing but constants, or a constant
        measured = calm > calm.min()
    return measured, calm


def percentile_bounds(
    slices: NDArray[np.float32], measured: NDArray[np.bool_], calm: NDArray[np.float32]
) -> tuple[float, float]:
    """The values that become 0 and 255; equal where the volume is constant.

    Args:
        slices: (slices, rows, columns), with `measured` and `calm` as `foreground` gives them.
    """
    if not measured.any():
        return 0.0, 0.0
    values, neighbours = slices[measured], calm[measured]
    low, high = np.percentile(neighbours, PERCENTILES)
    usual = np.abs(values - neighbours) <= _STICKS_OUT * (high - low)
    if usual.any():
        low, high = np.percentile(values[usual], PERCENTILES)
    if high <= low:
        low, high = calm.min(), calm.max()
    return float(low), float(high)


def to_grey(slices: NDArray[np.float32], bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Values between the bounds as 0 to 255, those beyond cut off; black where the bounds are equal."""
    low, high = bounds
    if high <= low:
        return np.zeros(slices.shape, dtype=np.uint8)
    return np.rint(np.clip((slices - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def check_window(window: Window, percentiles: tuple[float, float], where: str, modality: str) -> None:
    """Refuses a window in which the image shows nothing.

    Args:
        percentiles: `percentile_bounds` of the image.

    Raises:
        UserError: fewer than ten grey levels for all of it.
    """
    levels = to_grey(np.array(percentiles, np.float32), window.bounds)
    if percentiles[0] < percentiles[1] and int(levels[1]) - int(levels[0]) < _FEWEST_LEVELS:
        low, high = window.bounds
        raise UserError(
            f"{where}: {modality} has values from {percentiles[0]:g} to {percentiles[1]:g} and shows nothing in the window from "
            f"{low:g} to {high:g}; is it in Hounsfield units? give --window {modality}=LEVEL,WIDTH, or "
            f"{modality}={BY_PERCENTILES}"
        )


def _without_outliers(slices: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median of three along the rows, then along the columns: a voxel unlike its neighbours takes their value."""
    for axis in (2, 1):
        if slices.shape[axis] < 3:
            continue
        along = np.moveaxis(slices, axis, 0)
        before, at, after = along[:-2], along[1:-1], along[2:]
        middle = np.maximum(np.minimum(before, at), np.minimum(np.maximum(before, at), after))
        slices = np.moveaxis(np.concatenate([middle[:1], middle, middle[-1:]]), 0, axis)
    return slices


def _backgrounds(slices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values of which the four sides of the slices have long runs, ascending."""
    sides = [slices[:, 0], slices[:, -1], slices[:, :, 0], slices[:, :, -1]]
    in_runs = []
    for side in sides:
        equal = side[:, 1:] == side[:, :-1]
        inner = max(0, side.shape[1] - _RUN + 1)
        run = np.ones((len(side), inner), dtype=bool)
        for shift in range(_RUN - 1):
            run &= equal[:, shift : shift + inner]
        in_runs.append(side[:, :inner][run])
    values, counts = np.unique(np.concatenate(in_runs), return_counts=True)
    return values[counts >= _SHARE_OF_SIDES * sum(side.size for side in sides)]


def _differs(volume: NDArray[np.float32], values: NDArray[np.float32], by_more_than: float) -> NDArray[np.bool_]:
    """Where a volume is none of `values`."""
    differs = np.ones(volume.shape, dtype=bool)
    for value in values:
        differs &= np.abs(volume - value) > by_more_than
    return differs
