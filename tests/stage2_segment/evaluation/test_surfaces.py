"""Surface distances against MONAI 1.6, to the last digit."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from zeus_union.stage2_segment.evaluation import surfaces
from zeus_union.stage2_segment.evaluation.surfaces import (
    SURFACE_TOLERANCE_MM,
    Surface,
    SurfaceScores,
    TruthSurfaces,
    digest_of,
    scores_of_labels,
    surface_scores,
    workers,
)

SPACING = st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.5, 0.5), (3.3, 1.4, 0.7), (0.9375, 0.9375, 1.2), (7.7, 1.89, 1.89)])


def of_monai(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, float]:
    """HD95 and NSD by MONAI, within a margin, as what touches the edge of the volume has a surface there."""
    pair = [torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (predicted, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=list(spacing))
        nsd = compute_surface_dice(*pair, [SURFACE_TOLERANCE_MM], include_background=True, spacing=list(spacing))
    return float(hd95), float(nsd)


def blobs(random: np.random.Generator, shape: tuple[int, ...], smooth: float, above: float) -> np.ndarray:
    return ndimage.gaussian_filter(random.standard_normal(shape), smooth) > above * 0.3


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 20), st.integers(1, 20)),
    smooth=st.sampled_from([0.0, 1.0, 2.0]),
    above=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    spacing=SPACING,
)
def test_distances_are_monais_to_the_last_digit(
    seed: int, shape: tuple[int, ...], smooth: float, above: tuple[float, float], spacing: tuple[float, float, float]
) -> None:
    random = np.random.default_rng(seed)
    predicted, truth = (blobs(random, shape, smooth, level) for level in above)
    scores = surface_scores(predicted, truth, spacing)
    if predicted.any() and truth.any():
        assert (scores.hd95_mm, scores.nsd) == of_monai(predicted, truth, spacing)
    else:
        assert math.isnan(scores.hd95_mm)
        assert scores.nsd == 0 if predicted.any() or truth.any() else math.isnan(scores.nsd)


def test_distances_of_a_real_study_are_monais_to_the_last_digit(shared_data: Path) -> None:
    path = shared_data / "Dataset502_CHAOS_T2SPIR" / "labelsTr"
    image = nibabel.load(sorted(path.glob("*.nii.gz"))[0])
    truth = np.asarray(image.dataobj).astype(np.uint8).transpose(2, 0, 1)
    spacing = tuple(float(step) for step in np.array(image.header.get_zooms())[[2, 0, 1]])
    predicted = np.roll(truth, (1, 3, -2), (0, 1, 2))
    for label in (1, 2):
        scores = surface_scores(predicted == label, truth == label, spacing)  # type: ignore[arg-type]
        assert (scores.hd95_mm, scores.nsd) == of_monai(predicted == label, truth == label, spacing)  # type: ignore[arg-type]


def volumes(seed: int, labels: int, shape: tuple[int, int, int] = (4, 16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, labels + 1, shape).astype(np.uint8)


def results(futures: list) -> list[SurfaceScores]:
    return [future.result() for future in futures]


def test_threads_and_kept_truths_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "WORTH_THREADS", 0)
    truth, spacing = volumes(0, 3), (3.0, 0.7, 0.7)
    predictions = [volumes(seed, 3) for seed in (1, 2)]
    alone = [
        [surface_scores(predicted == label, truth == label, spacing) for label in (1, 2, 3)]
        for predicted in predictions
    ]
    monkeypatch.setattr(surfaces, "TRUTHS", TruthSurfaces())
    with ThreadPoolExecutor(2) as pool:
        futures = [scores_of_labels(predicted, truth, (1, 2, 3), spacing, pool) for predicted in predictions]
        assert [results(part) for part in futures] == alone


def test_surfaces_of_a_truth_are_found_once_for_all_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Surface):
        def __init__(self, mask: np.ndarray, spacing: tuple[float, ...]) -> None:
            made.append(int(mask.sum()))
            super().__init__(mask, spacing)

    monkeypatch.setattr(surfaces, "Surface", Counted)
    monkeypatch.setattr(surfaces, "TRUTHS", TruthSurfaces())
    truth = volumes(0, 2)
    for seed in range(1, 6):
        results(scores_of_labels(volumes(seed, 2), truth.copy(), (1, 2), (1.0, 1.0, 1.0)))
    assert len(made) == 2 * (5 + 1)
    results(scores_of_labels(volumes(1, 2), truth, (1, 2), (2.0, 1.0, 1.0)))  # another spacing is another surface
    assert len(made) == 2 * (5 + 1) + 4


def test_kept_surfaces_stay_within_their_bytes() -> None:
    volume = volumes(0, 1)
    kept = TruthSurfaces(most=3 * Surface(volume == 1, (1, 1, 1)).bytes)
    for seed in range(10):
        truth = volumes(seed, 1)
        kept.of(truth, digest_of(truth), 1, (1.0, 1.0, 1.0))
        assert kept._bytes == sum(surface.bytes for surface in kept._surfaces.values()) <= kept._most
    assert 1 <= len(kept._surfaces) <= 3


def test_volumes_of_one_content_have_one_digest_and_others_another() -> None:
    volume = volumes(0, 2)
    assert digest_of(volume) == digest_of(np.asfortranarray(volume))
    assert digest_of(volume) != digest_of(volume.reshape(16, 4, 16))
    assert digest_of(volume) != digest_of(volumes(1, 2))


def test_one_worker_is_no_pool() -> None:
    with workers(1) as none, workers(2) as pool:
        assert none is None and pool is not None
