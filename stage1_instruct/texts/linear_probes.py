"""Linear probes with scikit-learn: how well features answer a question about slices of subjects they were not fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.utils.extmath import randomized_svd

from zeus_union.stage1_instruct.texts.knowledge_targets import AUC, Target

COMPONENTS = 32  # of the features: some hundred slices cannot tell the use of more, and a fit takes milliseconds
FLOOR = 1e-3  # a feature that varies by less of the features' size does not vary: rounding must not become a signal
STRENGTHS = (0.1, 1.0, 10.0)  # 1 / penalty, with features of unit size; chosen on held-out training subjects
FOLDS, INNER_FOLDS = 5, 2

Split = tuple[NDArray[np.intp], NDArray[np.intp]]  # positions of the rows to fit on, and of those to test on


@dataclass(frozen=True, eq=False)
class ProbeAnswers:
    """What a probe says of the rows it was fitted on, and of those of other subjects.

    Attributes:
        fitted, held_out: (n, K), NaN in rows that it says nothing of; of several splits the mean (fitted).
    """

    fitted: NDArray[np.float64]
    held_out: NDArray[np.float64]


def grouped_splits(subjects: NDArray[np.intp], folds: int = FOLDS) -> list[Split]:
    """Every row is held out once, with all rows of its subject."""
    count = min(folds, len(np.unique(subjects)))
    return [(fit, test) for fit, test in GroupKFold(count).split(subjects, groups=subjects)]


def answer(
    features: NDArray[np.float32], targets: Sequence[Target], subjects: NDArray[np.intp], splits: Sequence[Split]
) -> Iterator[ProbeAnswers]:
    """The answers of a probe of each target, in order.

    Args:
        features: (n, F).
        subjects: (n,), whose row it is.
    """
    reduced = [_reduce(features, fit) for fit, _ in splits]
    for target in targets:
        known = ~np.isnan(target.values)
        width = int(np.nanmax(target.values)) + 1 if target.metric == AUC else 1
        held_out = np.full((len(known), width), np.nan)
        total, times = np.zeros((len(known), width)), np.zeros(len(known))
        for (fit, test), x in zip(splits, reduced):
            fit, test = fit[known[fit]], test[known[test]]
            if not len(fit):
                continue
            both = np.concatenate([fit, test])
            with config_context(assume_finite=True, skip_parameter_validation=True):  # a third of a small fit's time
                said = _fit_and_answer(x, target.values, subjects, fit, both, target.metric, width)
            total[fit] += said[: len(fit)]
            times[fit] += 1
            held_out[test] = said[len(fit) :]
        fitted = np.divide(total, times[:, None], out=np.full(total.shape, np.nan), where=times[:, None] > 0)
        yield ProbeAnswers(fitted, held_out)


def _reduce(features: NDArray[np.float32], fit: NDArray[np.intp]) -> NDArray[np.float64]:
    """The principal components of standardised features, of unit size together; made on the rows to fit on."""
    mean, deviation = features[fit].mean(axis=0), features[fit].std(axis=0)
    size = np.sqrt(np.square(features[fit], dtype=np.float64).mean())
    if size == 0 or deviation.max() <= FLOOR * size:
        return np.zeros((len(features), 1))
    scaled = (features - mean) / np.maximum(deviation, FLOOR * size) / np.sqrt(features.shape[1])
    components = min(COMPONENTS, *scaled[fit].shape)
    _, _, axes = randomized_svd(scaled[fit], components, random_state=0)
    return scaled.astype(np.float64) @ axes.T.astype(np.float64)


def _fit_and_answer(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    subjects: NDArray[np.intp],
    fit: NDArray[np.intp],
    ask: NDArray[np.intp],
    metric: str,
    width: int,
) -> NDArray[np.float64]:
    """Fits on some rows with the strength that is best on held-out subjects among them, and answers others: (m, K)."""
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if len(np.unique(subjects[fit])) > 1:
        inner = grouped_splits(subjects[fit], INNER_FOLDS)
        losses = [
            np.mean(
                [_loss(_predict(x, y, fit[a], fit[b], metric, width, candidate), y[fit[b]], metric) for a, b in inner]
            )
            for candidate in STRENGTHS
        ]
        strength = STRENGTHS[int(np.argmin(losses))]
    return _predict(x, y, fit, ask, metric, width, strength)


def _predict(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    fit: NDArray[np.intp],
    ask: NDArray[np.intp],
    metric: str,
    width: int,
    strength: float,
) -> NDArray[np.float64]:
    if metric != AUC:
        return Ridge(alpha=1 / strength).fit(x[fit], y[fit]).predict(x[ask])[:, None]
    said = np.zeros((len(ask), width))
    levels = np.unique(y[fit]).astype(int)
    if len(levels) == 1:
        said[:, levels[0]] = 1
        return said
    model = LogisticRegression(C=strength, max_iter=500, tol=1e-3).fit(x[fit], y[fit].astype(int))
    said[:, model.classes_] = model.predict_proba(x[ask])
    return said


def _loss(said: NDArray[np.float64], truth: NDArray[np.float64], metric: str) -> float:
    if metric != AUC:
        return float(np.mean((said[:, 0] - truth) ** 2))
    return float(-np.log(np.clip(said[np.arange(len(truth)), truth.astype(int)], 1e-3, 1)).mean())
