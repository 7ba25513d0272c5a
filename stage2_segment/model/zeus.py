"""Zeus's trained half: aligner, decoder and fusion put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeus_union.stage2_segment.model.aligner import HIDDEN, Aligner, LearnedToken
from zeus_union.stage2_segment.model.decoder import GRID, WIDTH, MaskDecoder
from zeus_union.stage2_segment.model.fusion import Combine

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
        per_class: every class has an instruction of its own, and the decoder answers each with one binary mask, as
            SAM answers a prompt.
        constant_text: the same text for every slice, kept with the weights; see `set_constant_text`.
        token_states: text is the language model's state at each of L tokens, D wide, and each becomes a prompt token
            (the paper's embedding form); a state of zeros is no token.
    """

    image_pe: Tensor
    no_mask: Tensor
    constant_text: Tensor | None

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
        per_class: bool = False,
        constant_text: bool = False,
        token_states: bool = False,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.per_class = per_class
        self.token_states = token_states
        copies = modalities if fusion == "late" else 1
        prompts = classes if per_class else 1
        self.aligners = nn.ModuleList(
            Aligner(text_width, aligner_hidden, aligner_depth) if text_width else LearnedToken(prompts)
            for _ in range(copies)
        )
        self.decoders = nn.ModuleList(MaskDecoder(1 if per_class else classes, keep_iou_token) for _ in range(copies))
        self.combine = Combine(combine, modalities, classes)
        self.register_buffer("image_pe", torch.zeros(GRID * GRID, WIDTH))
        self.register_buffer("no_mask", torch.zeros(WIDTH))
        shape = (modalities, classes, text_width) if per_class else (modalities, text_width)
        self.register_buffer("constant_text", torch.zeros(shape) if constant_text else None)

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

    def set_constant_text(self, text: Tensor) -> None:
        """The text of all slices, (M, D), or (M, K, D) where each class has its own."""
        assert self.constant_text is not None
        self.constant_text.copy_(text)

    def per_modality(self, embeddings: Tensor, text: Tensor, present: Sequence[int] | None = None) -> Tensor:
        """As `forward`, before the masks are combined: (B, m, K, 256, 256)."""
        present = range(self.modalities) if present is None else present
        batch = len(embeddings)
        if self.constant_text is not None:
            text = self.constant_text[list(present)].expand(batch, *[-1] * self.constant_text.dim())
        # SAM adds the no-mask embedding where no mask prompt is given.
        images = embeddings.flatten(3).transpose(2, 3) + self.no_mask  # (B, m, 4096, 256)
        if len(self.decoders) == 1:
            logits = self._decode(0, images.flatten(0, 1), text.flatten(0, 1))
            return logits.unflatten(0, (batch, len(present)))
        return torch.stack([self._decode(m, images[:, i], text[:, i]) for i, m in enumerate(present)], dim=1)

    def _decode(self, copy: int, images: Tensor, text: Tensor) -> Tensor:
        """Images (B, 4096, 256) and text (B, D), (B, K, D) or (B, L, D) -> logits (B, K, 256, 256)."""
        decoder, prompt = self.decoders[copy], self.aligners[copy](text)
        if self.token_states:
            return decoder(images, self.image_pe, prompt.squeeze(-2), (text != 0).any(dim=-1))
        if not self.per_class:
            return decoder(images, self.image_pe, prompt)
        masks = [decoder(images, self.image_pe, prompt[:, k]) for k in range(prompt.shape[1])]
        return torch.cat(masks, dim=1)

    def forward(self, embeddings: Tensor, text: Tensor, present: Sequence[int] | None = None) -> Tensor:
        """Mask logits, one binary mask per class.

        Args:
            embeddings: float (B, m, 256, 64, 64), SAM's image embeddings.
            text: float (B, m, D), the instructions' embeddings; (B, m, K, D) where each class has its own;
                (B, m, L, D) with `token_states`.
            present: which of the M modalities these are; None: all. The masks of those that are missing are left out.
        Returns:
            float (B, K, 256, 256).
        """
        present = range(self.modalities) if present is None else present
        return self.combine(self.per_modality(embeddings, text, present), present)


def class_map(logits: Tensor) -> Tensor:
    """Labels uint8 (B, 256, 256): the class with the highest logit, background (0) where none is above 0."""
    highest, index = logits.max(dim=1)
    return torch.where(highest > 0, index + 1, 0).to(torch.uint8)
