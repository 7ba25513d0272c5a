"""One batch trains some models: each for itself, or those of one architecture as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zeus_union.stage2_segment.inputs.run_inputs import to_device
from zeus_union.stage2_segment.inputs.slices import Batch
from zeus_union.stage2_segment.training.learner import Learner
from zeus_union.stage2_segment.training.losses import Losses
from zeus_union.stage2_segment.training.stack import Stack

Pending = list[tuple[Learner, Losses]]  # gradients are there, the optimiser's step is not


class Alone:
    """A learner that runs its own forward and backward pass."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def backward(self, index: int, mine: NDArray[np.intp], slices: int, batch: Batch, batches: int) -> Pending:
        """Forward and backward of a batch, for the learners that are at it; `take_batch` takes what comes back.

        Args:
            index: the batch's number in the epoch.
            mine: this process's positions of a batch of `slices`.
            batches: of the epoch.
        """
        learner = self._learner
        if learner.index != index:
            return []
        learner.model.train()
        assert batch.masks is not None
        with learner.random_numbers(), learner.backward_alone(batches):
            logits = learner.inputs.logits(learner.model, mine, batch, learner.keep(), learner.use_text(slices))
            losses = learner.losses(logits, batch.masks, slices)
            (losses.total / learner.share(batches)).backward()
        return [(learner, losses)]


class Stacked:
    """Learners of one architecture; in turn while some of them are at another place than the rest (after a resume)."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self._learners = list(learners)
        self._stack = Stack([learner.bare for learner in learners])

    def backward(self, index: int, mine: NDArray[np.intp], slices: int, batch: Batch, batches: int) -> Pending:
        """As `Alone.backward`."""
        if any(learner.index != index for learner in self._learners):
            in_turn = (Alone(learner).backward(index, mine, slices, batch, batches) for learner in self._learners)
            return [step for steps in in_turn for step in steps]
        assert batch.masks is not None
        first = self._learners[0]
        keep, use_text = first.keep(), first.use_text(slices)  # the same for all: they follow from the seed
        parts = [learner.inputs.of(mine, batch, keep) for learner in self._learners]
        alike = len({learner.config.inputs.modalities for learner in self._learners}) == 1
        embeddings = parts[0][0] if alike else torch.stack([part[0] for part in parts])
        for learner in self._learners:
            learner.model.train()
        with first.inputs.autocast():
            texts = torch.stack([part[1] for part in parts])
            used = None if use_text is None else to_device(use_text, texts.device)
            logits = self._stack.logits(embeddings, texts, parts[0][2], used).float()
        losses = [
            learner.losses(model_logits, batch.masks, slices) for learner, model_logits in zip(self._learners, logits)
        ]
        shares = [loss.total / learner.share(batches) for learner, loss in zip(self._learners, losses)]
        torch.stack(shares).sum().backward()
        self._stack.hand_out_gradients()
        return list(zip(self._learners, losses))


def group_learners(learners: Sequence[Learner], stacked: bool) -> list[Alone | Stacked]:
    """Each learner alone, or with `stacked` those together that can be computed as one."""
    if not stacked:
        return [Alone(learner) for learner in learners]
    alike: dict[tuple[Any, ...], list[Learner]] = {}
    for learner in learners:
        recipe = learner.config.recipe
        # Not the shape, but what a forward pass sees and how it is computed has to be the same too.
        key: tuple[Any, ...] = (
            learner.config.architecture,
            recipe.modality_drop,
            recipe.text_drop,
            recipe.precision,
            recipe.accumulate,
        )
        # A baseline's batch norm writes its running means within the forward pass, which vmap does not allow; and
        # dropout would be drawn for all models together, so that a run beside others would not be the run alone.
        drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in learner.bare.modules())
        alike.setdefault(key if learner.config.is_zeus and not drops else (id(learner),), []).append(learner)
    return [Stacked(group) if len(group) > 1 else Alone(group[0]) for group in alike.values()]
