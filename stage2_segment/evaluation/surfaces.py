"""HD95 and NSD as MONAI defines them, each surface found once and the truth's kept for the next prediction.

MONAI 1.6's `compute_hausdorff_distance` and `compute_surface_dice` find the edges of both masks and the distances between
them anew in every call. Here one pair of distances serves both metrics. SciPy lets go of Python's lock in what takes the
time (erosion, trees, queries), so threads share the cores: no process has to start, and no volume is copied to one.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

SURFACE_TOLERANCE_MM = 2.0
LEAF = 32  # points; MONAI's, as a tree serves one query of many points
KEPT_BYTES = 256 * 2**20  # of surfaces of truths; an organ has about 3 MB
# Smaller volumes are measured within milliseconds, and threads would cost more than they save.
WORTH_THREADS = 2**18  # voxels


@dataclass(frozen=True)
class SurfaceScores:
    """hd95_mm (NaN where truth or prediction is empty), nsd in [0, 1] (NaN where both are)."""

    hd95_mm: float
    nsd: float


class Surface:
    """The surface voxels of a mask: those that its erosion by the six neighbours takes away.

    What touches the edge of the volume has a surface there.

    Args:
        mask: bool (slices, rows, columns).
        spacing: mm along each axis.

    Attributes:
        points: float64 (n, 3), in mm.
    """

    def __init__(self, mask: NDArray[np.bool_], spacing: Sequence[float]) -> None:
        occupied = np.unravel_index(np.flatnonzero(mask), mask.shape)
        if not len(occupied[0]):
            self.points: NDArray[np.float64] = np.empty((0, 3))
            self._tree = None
            return
        low = [int(axis.min()) for axis in occupied]
        inside = np.pad(mask[tuple(slice(start, int(axis.max()) + 1) for start, axis in zip(low, occupied))], 1)
        edges = np.argwhere(inside & ~ndimage.binary_erosion(inside)) - 1 + low
        self.points = edges.astype(np.float64) * np.asarray(spacing, np.float64)
        self._tree = KDTree(self.points, leafsize=LEAF)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def bytes(self) -> int:
        return 3 * self.points.nbytes  # the tree keeps a copy in its order and the order

    def distances_from(self, other: Surface) -> NDArray[np.float32]:
        """mm from each point of `other` to the nearest of this surface."""
        assert self._tree is not None
        return self._tree.query(other.points)[0].astype(np.float32)


def surface_scores(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> SurfaceScores:
    """Distances between the surfaces of two binary volumes: MONAI's numbers to the last digit.

    Args:
        predicted, truth: (slices, rows, columns).
        spacing: mm along each axis.
    """
    return compare(Surface(predicted, spacing), Surface(truth, spacing))


def compare(predicted: Surface, truth: Surface) -> SurfaceScores:
    if not len(predicted) or not len(truth):
        return SurfaceScores(math.nan, 0.0 if len(predicted) or len(truth) else math.nan)
    both = [torch.from_numpy(truth.distances_from(predicted)), torch.from_numpy(predicted.distances_from(truth))]
    hd95 = max(float(torch.quantile(distances, 0.95)) for distances in both)
    near = sum(int((distances <= SURFACE_TOLERANCE_MM).sum()) for distances in both)
    return SurfaceScores(hd95, float(np.float32(near) / np.float32(sum(map(len, both)))))


class TruthSurfaces:
    """Surfaces of true masks by what they are made of, for every prediction that is compared with them.

    Args:
        most: bytes to keep; those not used for longest are dropped.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._bytes = most, 0
        self._surfaces: OrderedDict[tuple[object, ...], Surface] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, volume: NDArray[np.uint8], digest: str, label: int, spacing: Sequence[float]) -> Surface:
        """Of one label in a volume with that `digest_of`."""
        key = (digest, label, *spacing)
        with self._lock:
            if key in self._surfaces:
                self._surfaces.move_to_end(key)
                return self._surfaces[key]
        surface = Surface(volume == label, spacing)
        with self._lock:
            if key not in self._surfaces:
                self._surfaces[key] = surface
                self._bytes += surface.bytes
            while self._bytes > self._most and len(self._surfaces) > 1:
                self._bytes -= self._surfaces.popitem(last=False)[1].bytes
        return surface


TRUTHS = TruthSurfaces()


def digest_of(volume: NDArray[np.uint8]) -> str:
    """Of shape and content."""
    return f"{volume.shape} {xxhash.xxh3_128_hexdigest(np.ascontiguousarray(volume).tobytes())}"


@contextmanager
def workers(count: int | None = None) -> Iterator[Executor | None]:
    """Threads to measure in; None: as many as cores. One alone needs none."""
    count = os.cpu_count() or 1 if count is None else count
    if count <= 1:
        yield None
        return
    with ThreadPoolExecutor(count) as pool:
        yield pool


def scores_of_labels(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    labels: Sequence[int],
    spacing: tuple[float, float, float],
    pool: Executor | None = None,
) -> list[Future[SurfaceScores]]:
    """`surface_scores` of each label, measured in `pool` where that is worth it.

    Args:
        predicted, truth: label maps (slices, rows, columns), not changed before the last is measured.
    """
    digest = digest_of(truth)

    def measure(label: int) -> SurfaceScores:
        surface = TRUTHS.of(truth, digest, label, spacing)
        return compare(Surface(predicted == label, spacing), surface)

    if pool is not None and truth.size >= WORTH_THREADS:
        return [pool.submit(measure, label) for label in labels]
    measured = []
    for label in labels:
        future: Future[SurfaceScores] = Future()
        future.set_result(measure(label))
        measured.append(future)
    return measured
