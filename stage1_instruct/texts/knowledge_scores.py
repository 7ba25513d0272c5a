"""AUC and R2 of predictions, and of all draws of subjects with replacement at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zeus_union.stage1_instruct.texts.knowledge_targets import AUC

FEWEST = 5  # subjects for an interval
DRAWS = 2000


def draw_subjects(count: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each of `count` subjects is in each of `DRAWS` draws with replacement: (DRAWS, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float64)


def score(
    metric: str,
    truth: NDArray[np.float64],
    predicted: NDArray[np.float64],
    subjects: NDArray[np.intp],
    draws: NDArray[np.float64],
    comparable: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """The metric in each draw of subjects; NaN where it is not defined.

    Args:
        truth: (n,), for the AUC whole numbers from 0.
        predicted: (n, K), for the AUC a score of each of these numbers, for R2 K = 1.
        subjects: (n,), the column of `draws` of each row.
        draws: (B, subjects), how often each subject counts.
        comparable: (subjects, subjects), whether one probe answered for both. The AUC compares no others: a probe fitted
            without the subjects that show much expects less, and would so rank them lower than chance does.
    """
    if metric == AUC:
        levels = [
            _auc(predicted[:, int(level)], truth == level, subjects, draws, comparable)
            for level in np.unique(truth).astype(int)
        ]
        defined = np.isfinite(np.stack(levels))
        total = np.where(defined, np.stack(levels), 0).sum(axis=0)
        return np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan)
    return _r2(truth, predicted[:, 0], subjects, draws)


def _auc(
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    subjects: NDArray[np.intp],
    draws: NDArray[np.float64],
    comparable: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Share of pairs of a positive and a negative row in which the positive has the higher score, ties half.

    Pairs are counted once for every pair of subjects, so that a draw is a weighted sum of them.
    """
    count = draws.shape[1]
    wins, pairs = np.zeros((count, count)), np.zeros((count, count))
    by_subject = [np.sort(scores[~positive & (subjects == subject)]) for subject in range(count)]
    for subject in range(count):
        high = scores[positive & (subjects == subject)]
        for other, low in enumerate(by_subject):
            if not comparable[subject, other]:
                continue
            below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
            wins[subject, other], pairs[subject, other] = below.sum() / 2, len(high) * len(low)
    return _ratio(*(np.einsum("bi,ij,bj->b", draws, matrix, draws, optimize=True) for matrix in (wins, pairs)))


def _r2(
    truth: NDArray[np.float64],
    predicted: NDArray[np.float64],
    subjects: NDArray[np.intp],
    draws: NDArray[np.float64],
) -> NDArray[np.float64]:
    """1 - squared error / squared distance from the mean of the draw."""

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return draws @ np.bincount(subjects, values, draws.shape[1])

    centred = truth - truth.mean()  # numerically better, and the same
    spread = sums(centred**2) - _ratio(sums(centred) ** 2, sums(np.ones_like(truth)))
    return 1 - _ratio(sums((truth - predicted) ** 2), np.where(spread > 1e-9, spread, 0))


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
