"""What HD95 and NSD cost: from one pair of surfaces, against MONAI's two functions that each find them.

    python tests/benchmarks/bench_metrics.py LABELS [--subjects 4] [--rows 5] [--workers 2]

LABELS is a folder of label maps (NIfTI). A prediction is the truth, moved by a slice and a few voxels, with a box of one
class somewhere else. Prints the seconds a subject and the ratio, all from one run: MONAI's, ours for a first row of an
ablation, for one of the further rows (whose truths are kept), and for those in threads.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

from zeus_union.cache.grid import Grid
from zeus_union.stage2_segment.evaluation import surfaces
from zeus_union.stage2_segment.evaluation.surfaces import SURFACE_TOLERANCE_MM, scores_of_labels, workers

Spacing = tuple[float, float, float]
Volume = tuple[NDArray[np.uint8], NDArray[np.uint8], Spacing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    files = sorted(arguments.labels.glob("*.nii.gz"))[: arguments.subjects]
    rows = [[volume(file, row) for file in files] for row in range(arguments.rows)]
    theirs, expected = timed(lambda: [of_monai(*one) for one in rows[0]])
    first, found = timed(lambda: [ours(*one) for one in rows[0]])
    assert found == expected, "the numbers differ"
    further, _ = timed(lambda: [ours(*one) for row in rows[1:] for one in row])
    surfaces.TRUTHS = surfaces.TruthSurfaces()

    def in_threads() -> None:
        with workers(arguments.workers) as pool:
            waiting = [scores_of_labels(p, t, labels_of(t), spacing, pool) for row in rows for p, t, spacing in row]
            for futures in waiting:
                for future in futures:
                    future.result()

    threads, _ = timed(in_threads)
    count = len(files)
    report = {
        "MONAI, two functions a class": theirs / count,
        "first row": first / count,
        "further rows": further / count / (arguments.rows - 1),
        f"all rows, {arguments.workers} threads": threads / count / arguments.rows,
    }
    print(f"{count} subjects of {rows[0][0][1].shape}, classes {list(labels_of(rows[0][0][1]))}")
    for name, seconds in report.items():
        print(f"{name:32} {seconds:7.3f} s a subject, {theirs / count / seconds:5.1f} times as fast")


def labels_of(truth: NDArray[np.uint8]) -> range:
    return range(1, int(truth.max()) + 1)


def volume(file: Path, row: int) -> Volume:
    image = nibabel.load(file)
    grid = Grid(image.shape, image.affine)
    truth = np.ascontiguousarray(grid.to_slices(np.asarray(image.dataobj).astype(np.uint8)))
    predicted = np.roll(truth, (row % 2, 2 + row, 3 - row), (0, 1, 2))
    predicted[: len(truth) // 4, 10:30, 10:30] = 1
    return predicted, truth, grid.slice_spacing


def of_monai(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], spacing: Spacing) -> list[tuple[float, float]]:
    """As the classes were measured before: around both masks, with a margin."""
    scores = []
    for label in labels_of(truth):
        occupied = np.argwhere((predicted == label) | (truth == label))
        box = tuple(slice(low, high + 1) for low, high in zip(occupied.min(0), occupied.max(0)))
        pair = [torch.from_numpy(np.pad((part == label)[box], 1))[None, None] for part in (predicted, truth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=list(spacing))
            nsd = compute_surface_dice(*pair, [SURFACE_TOLERANCE_MM], include_background=True, spacing=list(spacing))
        scores.append((float(hd95), float(nsd)))
    return scores


def ours(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], spacing: Spacing) -> list[tuple[float, float]]:
    futures = scores_of_labels(predicted, truth, labels_of(truth), spacing)
    return [(future.result().hd95_mm, future.result().nsd) for future in futures]


def timed(work: Callable[[], list[list[tuple[float, float]]] | None]) -> tuple[float, object]:
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


if __name__ == "__main__":
    main()
