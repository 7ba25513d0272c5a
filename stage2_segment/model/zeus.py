"""Zeus's trained half: aligner, decoder and fusion put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stage2_segment.model.aligner import HIDDEN, Aligner, LearnedToken
from stage2_segment.model.decoder import GRID, WIDTH, MaskDecoder
from stage2_segment.model.fusion import Combine

DECODER_PREFIX = "decoder."  # of SAM's decoder among a cache's constants


class Zeus(nn.Module):
    """Frozen embeddings and instructions -> masks.

    Args:
        modalities: M.
        classes: K, without background.
        text_width: D; 0: no text, a learned token instead.
        fusion: 'late' (decoder and aligner per modality) or 'hybrid' (one of each for all).
        combine: 'mean', 'max' or 'learned'.
        keep_iou_token: see `MaskDecoder`.
        aligner_hidden, aligner_depth: see `Aligner`.
    """

    image_pe: Tensor
    no_mask: Tensor

    def __init__(
        self,
        modalities: int,
        classes: int,
        text_width: int,
        fusion: str = "late",
        combine: str = "mean",
        keep_iou_token: bool = False,
        aligner_hidden: int = HIDDEN,
        aligner_depth: int = 2,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        copies = modalities if fusion == "late" else 1
        self.aligners = nn.ModuleList(
            Aligner(text_width, aligner_hidden, aligner_depth) if text_width else LearnedToken() for _ in range(copies)
        )
        self.decoders = nn.ModuleList(MaskDecoder(classes, keep_iou_token) for _ in range(copies))
        self.combine = Combine(combine, modalities, classes)
        self.register_buffer("image_pe", torch.zeros(GRID * GRID, WIDTH))
        self.register_buffer("no_mask", torch.zeros(WIDTH))

    def load_pretrained(self, constants: Mapping[str, Any]) -> None:
        """Start every decoder from SAM's, and take over SAM's positional encoding and no-mask prompt.

        Args:
            constants: arrays as a cache carries them: 'decoder.<name>', 'dense_pe' (256, 64, 64), 'no_mask' (256,).
        """
        tensors = {name: torch.as_tensor(array) for name, array in constants.items()}
        self.image_pe.copy_(tensors["dense_pe"].flatten(1).T)
        self.no_mask.copy_(tensors["no_mask"].flatten())
        state = {name.removeprefix(DECODER_PREFIX): t for name, t in tensors.items() if name.startswith(DECODER_PREFIX)}
        for decoder in self.decoders:
            assert isinstance(decoder, MaskDecoder)
            decoder.load_pretrained(state)

    def per_modality(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """As `forward`, before the masks are combined: (B, M, K, 256, 256)."""
        batch = len(embeddings)
        # SAM adds the no-mask embedding where no mask prompt is given.
        images = embeddings.flatten(3).transpose(2, 3) + self.no_mask  # (B, M, 4096, 256)
        if len(self.decoders) == 1:
            prompt = self.aligners[0](text.flatten(0, 1))
            logits = self.decoders[0](images.flatten(0, 1), self.image_pe, prompt)
            return logits.unflatten(0, (batch, self.modalities))
        parts = [
            decoder(images[:, m], self.image_pe, aligner(text[:, m]))
            for m, (decoder, aligner) in enumerate(zip(self.decoders, self.aligners))
        ]
        return torch.stack(parts, dim=1)

    def forward(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Mask logits, one binary mask per class.

        Args:
            embeddings: float (B, M, 256, 64, 64), SAM's image embeddings.
            text: float (B, M, D), the instructions' embeddings.
        Returns:
            float (B, K, 256, 256).
        """
        return self.combine(self.per_modality(embeddings, text))


def class_map(logits: Tensor) -> Tensor:
    """Labels uint8 (B, 256, 256): the class with the highest logit, background (0) where none is above 0."""
    highest, index = logits.max(dim=1)
    return torch.where(highest > 0, index + 1, 0).to(torch.uint8)


def parameter_table(model: Zeus) -> dict[str, int]:
    """Trainable parameters by part, over all copies."""
    parts: dict[str, nn.Module] = {
        "aligner (f_tt)": model.aligners,
        "decoder": model.decoders,
        "combine": model.combine,
    }
    return {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
