"""The validation subjects while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from zeus_union.cache.reader import Cache
from zeus_union.stage2_segment.evaluation.metrics import dsc, iou, mean_defined, mean_over_subjects, overlap_counts
from zeus_union.stage2_segment.inputs.run_inputs import RunInputs
from zeus_union.stage2_segment.inputs.slices import SliceData
from zeus_union.stage2_segment.model.zeus import class_map
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.processes import sum_counts


class Validation:
    """The subjects that were spared to choose the best weights on, read once for all learners.

    Each process predicts its share of the slices.
    """

    def __init__(
        self,
        cache: Cache,
        learners: Sequence[Learner],
        modalities: Sequence[str],
        accelerator: Accelerator,
        resident: str,
    ) -> None:
        plan = learners[0].config
        self._classes, self._device = plan.inputs.classes, accelerator.device
        rows = cache.rows_of(plan.split.validation)[accelerator.process_index :: accelerator.num_processes]
        self._data = SliceData(cache, plan.inputs.encoder, modalities, rows, accelerator.device, resident=resident)
        index_of = {cache.subjects.index(name): index for index, name in enumerate(plan.split.validation)}
        self._owner = np.array([index_of[int(subject)] for subject in cache.rows["subject"][rows]], np.intp)
        self._subjects = len(index_of)
        self._inputs = {id(learner): RunInputs(learner.config, self._data) for learner in learners}

    @torch.inference_mode()
    def __call__(self, learners: Sequence[Learner]) -> dict[int, dict[str, float]]:
        """id of a learner -> mean over subjects of DSC (mean over the classes) and mIoU (with background), at 256.

        Of a model that can do without its text also the DSC without.
        """
        shape = (2, self._subjects, len(self._classes) + 1, 3)  # with the text, and without
        counts = {id(learner): np.zeros(shape, np.int64) for learner in learners}
        batch_size = max((learner.config.recipe.batch_size for learner in learners), default=1)
        for positions, batch in self._data.in_order(batch_size):
            assert batch.masks is not None
            truth = batch.masks.cpu().numpy()
            for learner in learners:
                model, inputs = learner.predictor.eval(), self._inputs[id(learner)]
                texts = (
                    (None, np.zeros(len(positions), bool)) if learner.config.architecture.text_is_a_part else (None,)
                )
                for which, use_text in enumerate(texts):
                    logits = inputs.logits(model, positions, batch, use_text=use_text)
                    predicted = class_map(logits).cpu().numpy()
                    for owner in np.unique(self._owner[positions]):
                        mine = self._owner[positions] == owner
                        counted = overlap_counts(predicted[mine], truth[mine], len(self._classes))
                        counts[id(learner)][which, owner] += counted
        scores = {}
        for learner in learners:
            with_text, without = sum_counts(counts[id(learner)], self._device)
            scores[id(learner)] = self._scores(with_text)
            if learner.config.architecture.text_is_a_part:
                scores[id(learner)]["validation_dsc_without_text"] = _mean(dsc(without)[:, 1:])
        return scores

    def _scores(self, counts: NDArray[np.int64]) -> dict[str, float]:
        per_class = dsc(counts)[:, 1:]
        values = {"validation_dsc": _mean(per_class), "validation_miou": _mean(iou(counts))}
        for index, name in enumerate(self._classes):
            values[f"validation_dsc_{name}"] = mean_defined(per_class[:, index])
        return values


def _mean(scores: NDArray[np.float64]) -> float:
    """Of (subjects, classes)."""
    return mean_over_subjects((subject, score) for subject, row in enumerate(scores) for score in row)
