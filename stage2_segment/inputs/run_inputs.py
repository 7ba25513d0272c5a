"""What one run takes of the slices that were read, for itself alone or for many runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zeus_union.stage2_segment.config import RunConfig
from zeus_union.stage2_segment.inputs.slices import Batch, SliceData
from zeus_union.stage2_segment.inputs.texts import read_text
from zeus_union.stage2_segment.model.selection import select


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on `device`; a GPU's work is not waited for."""
    return torch.from_numpy(np.asarray(array)).to(device, non_blocking=device.type == "cuda")


class RunInputs:
    """A run's modalities among those of `data`, and its text.

    Args:
        data: slices with at least the modalities that are asked for.
        available: modalities there are, of the run's; None: all the run was planned with.
        text: in place of the run's own, float32 (n, m, D) or (n, m, K, D).

    Attributes:
        present: which of the run's modalities these are.
        text: (n, m, D), (n, m, K, D) or (n, m, L, D) of all of `data`, as `read_text` gives it, on the device.
    """

    def __init__(
        self,
        config: RunConfig,
        data: SliceData,
        available: Sequence[str] | None = None,
        text: NDArray[np.floating] | None = None,
    ) -> None:
        names = config.inputs.modalities if available is None else tuple(available)
        cache = data.cache
        self.present = [config.inputs.modalities.index(name) for name in names]
        columns = [data.modalities.index(cache.modalities.index(name)) for name in names]
        self._columns = None if columns == list(range(len(data.modalities))) else columns
        if text is None:
            text = read_text(cache, config, data.rows, names)
        self.text = torch.from_numpy(np.ascontiguousarray(text)).to(data.device)
        self._reads_text = config.is_zeus
        self._low = config.recipe.precision == "bf16"

    def of(
        self, positions: NDArray[np.intp], batch: Batch, keep: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Embeddings (B, m, 256, 64, 64) or pictures (B, m, 256, 256), text (B, m, D) and which modalities they are.

        Args:
            positions: of the batch's slices in `data`.
            keep: indices into `present`; None: all.
        """
        images = batch.images if self._columns is None else select(batch.images, 1, self._columns)
        text = self.text[to_device(positions, self.text.device)].float()
        if keep is None or len(keep) == len(self.present):
            return images, text, self.present
        return select(images, 1, keep), select(text, 1, keep), [self.present[i] for i in keep]

    def autocast(self) -> torch.autocast:
        """The run's precision, for a forward pass."""
        return torch.autocast(self.text.device.type, torch.bfloat16, enabled=self._low)

    def logits(
        self,
        model: nn.Module,
        positions: NDArray[np.intp],
        batch: Batch,
        keep: Sequence[int] | None = None,
        use_text: NDArray[np.bool_] | None = None,
    ) -> Tensor:
        """Float32 (B, K, 256, 256); `keep` as in `of`, `use_text` (B,) as in `Zeus.forward`."""
        images, text, present = self.of(positions, batch, keep)
        with self.autocast():
            if not self._reads_text:
                logits = model(images, present)
            elif use_text is None:
                logits = model(images, text, present)
            else:
                logits = model(images, text, present, to_device(use_text, text.device))
        return logits.float()
