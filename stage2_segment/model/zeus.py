"""Zeus's trained half: aligner, decoder and fusion put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeus_union.stage2_segment.model.aligner import HIDDEN, Aligner, TextPart, new_base_tokens
from zeus_union.stage2_segment.model.decoder import GRID, WIDTH, MaskDecoder
from zeus_union.stage2_segment.model.fusion import COMBINES
from zeus_union.stage2_segment.model.selection import select

DECODER_PREFIX = "decoder."  # of SAM's decoder among a cache's constants


class Zeus(nn.Module):
    """Frozen embeddings and instructions -> masks.

    Args:
        modalities: M.
        classes: K, without background.
        text_width: D; 0: no text.
        fusion: 'late' (decoder and aligner per modality) or 'hybrid' (one of each for all).
        combine: a name of `fusion.COMBINES`.
        keep_iou_token: see `MaskDecoder`.
        aligner: 'residual', a learned token per modality (and class, with `per_class`) plus `TextPart` of the text, brought
            to mean 0 and a common scale; or 'mlp', the paper's `Aligner` alone. Without text the learned token alone.
        aligner_hidden, aligner_depth: see `Aligner`.
        per_class: every class has an instruction of its own, and the decoder answers each with one binary mask, as
            SAM answers a prompt.
        constant_text: the same text for every slice, kept with the weights; see `set_constant_text`.
        token_states: for 'mlp': text is the language model's state at each of L tokens, D wide, and each becomes a prompt
            token (the paper's embedding form); a state of zeros is no token.
    """

    image_pe: Tensor
    no_mask: Tensor
    constant_text: Tensor | None
    text_mean: Tensor | None
    text_scale: Tensor | None

    def __init__(
        self,
        modalities: int,
        classes: int,
        text_width: int,
        fusion: str = "late",
        combine: str = "mean",
        keep_iou_token: bool = False,
        aligner: str = "residual",
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
        self.text_width = text_width
        copies = modalities if fusion == "late" else 1
        residual = aligner == "residual"
        kind = TextPart if residual else Aligner
        self.aligners = nn.ModuleList(
            kind(text_width, aligner_hidden, aligner_depth) for _ in range(copies if text_width else 0)
        )
        self.bases = new_base_tokens(modalities, classes if per_class else 1) if residual or not text_width else None
        self.decoders = nn.ModuleList(MaskDecoder(1 if per_class else classes, keep_iou_token) for _ in range(copies))
        self.combine = COMBINES[combine](modalities, classes)
        self.register_buffer("image_pe", torch.zeros(GRID * GRID, WIDTH))
        self.register_buffer("no_mask", torch.zeros(WIDTH))
        shape = (modalities, classes, text_width) if per_class else (modalities, text_width)
        self.register_buffer("constant_text", torch.zeros(shape) if constant_text else None)
        standardised = residual and text_width > 0
        self.register_buffer("text_mean", torch.zeros(shape) if standardised else None)
        self.register_buffer("text_scale", torch.ones(()) if standardised else None)

    def load_pretrained(self, constants: Mapping[str, Any]) -> None:
        """Start every decoder from SAM's, and take over SAM's positional encoding and no-mask prompt.

        Args:
            constants: arrays as a cache carries them: 'decoder.<name>', 'dense_pe' (256, 64, 64), 'no_mask' (256,).
        """
        tensors = {name: torch.as_tensor(array) for name, array in constants.items()}
        self.image_pe = tensors["dense_pe"].flatten(1).T.to(self.image_pe).contiguous()
        self.no_mask.copy_(tensors["no_mask"].flatten())
        state = {name.removeprefix(DECODER_PREFIX): t for name, t in tensors.items() if name.startswith(DECODER_PREFIX)}
        for decoder in self.decoders:
            assert isinstance(decoder, MaskDecoder)
            decoder.load_pretrained(state)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        """With as many positions as the embedding has that the weights were trained on."""
        positions = state.get(prefix + "image_pe")
        if positions is not None and positions.dim() and math.isqrt(len(positions)) ** 2 == len(positions):
            self.image_pe = self.image_pe.new_empty(len(positions), WIDTH)
        super()._load_from_state_dict(state, prefix, *more)

    def set_constant_text(self, text: Tensor) -> None:
        """The text of all slices, (M, D), or (M, K, D) where each class has its own."""
        assert self.constant_text is not None
        self.constant_text.copy_(text)

    def set_text_statistics(self, mean: Tensor, scale: float) -> None:
        """What text is brought to mean 0 and a common scale by.

        Args:
            mean: (M, D), or (M, K, D) where each class has its own.
            scale: of all entries.
        """
        assert self.text_mean is not None and self.text_scale is not None
        self.text_mean.copy_(mean)
        self.text_scale.fill_(scale)

    def prompts(
        self, text: Tensor, present: Sequence[int], use_text: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The prompt tokens (B, m, P, 256), and which of them are there, bool (B, m, P); None: all.

        Args: as `forward`. P is 1; K where each class has its own; L with `token_states`.
        """
        present = list(present)
        if self.constant_text is not None:
            text = select(self.constant_text, 0, present).expand(len(text), *[-1] * self.constant_text.dim())
        if not self.text_width:
            return self._base(present, len(text)), None
        if self.text_mean is None or self.text_scale is None:
            tokens = self._align(text, present)
            valid = (text != 0).any(dim=-1) if self.token_states else None
            return (tokens if tokens.dim() == 4 else tokens.unsqueeze(2)), valid
        part = self._align((text - select(self.text_mean, 0, present)) / self.text_scale, present)
        part = part if part.dim() == 4 else part.unsqueeze(2)
        if use_text is not None:
            part = part * use_text.to(part.dtype)[:, None, None, None]
        return self._base(present, len(text)) + part, None

    def _base(self, present: Sequence[int], batch: int) -> Tensor:
        assert self.bases is not None
        return torch.stack([self.bases[m] for m in present]).expand(batch, -1, -1, -1)

    def _align(self, text: Tensor, present: Sequence[int]) -> Tensor:
        """Text (B, m, ..., D) through the aligner of its modality."""
        if len(self.aligners) == 1:
            return self.aligners[0](text)
        return torch.stack([self.aligners[m](text[:, i]) for i, m in enumerate(present)], dim=1)

    def per_modality(
        self,
        embeddings: Tensor,
        text: Tensor,
        present: Sequence[int] | None = None,
        use_text: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, before the masks are combined: (B, m, K, 256, 256)."""
        present = range(self.modalities) if present is None else present
        batch = len(embeddings)
        prompts, valid = self.prompts(text, present, use_text)
        # SAM adds the no-mask embedding where no mask prompt is given.
        images = embeddings.flatten(3).transpose(2, 3) + self.no_mask  # (B, m, 4096, 256)
        if len(self.decoders) == 1:
            flat = None if valid is None else valid.flatten(0, 1)
            logits = self._decode(0, images.flatten(0, 1), prompts.flatten(0, 1), flat)
            return logits.unflatten(0, (batch, len(present)))
        masks = [
            self._decode(m, images[:, i], prompts[:, i], None if valid is None else valid[:, i])
            for i, m in enumerate(present)
        ]
        return torch.stack(masks, dim=1)

    def _decode(self, copy: int, images: Tensor, prompts: Tensor, valid: Tensor | None) -> Tensor:
        """Images (B, 4096, 256) and prompts (B, P, 256), bool (B, P) -> logits (B, K, 256, 256)."""
        decoder = self.decoders[copy]
        if not self.per_class:
            return decoder(images, self.image_pe, prompts, valid)
        masks = [decoder(images, self.image_pe, prompts[:, k : k + 1]) for k in range(prompts.shape[1])]
        return torch.cat(masks, dim=1)

    def forward(
        self,
        embeddings: Tensor,
        text: Tensor,
        present: Sequence[int] | None = None,
        use_text: Tensor | None = None,
    ) -> Tensor:
        """Mask logits, one binary mask per class.

        Args:
            embeddings: float (B, m, 256, 64, 64), SAM's image embeddings.
            text: float (B, m, D), the instructions' embeddings; (B, m, K, D) where each class has its own;
                (B, m, L, D) with `token_states`.
            present: which of the M modalities these are; None: all. The masks of those that are missing are left out.
            use_text: (B,), 1 for the slices whose text is read, 0 for those that the learned token answers alone; None:
                all. Only the residual aligner hears it.
        Returns:
            float (B, K, 256, 256).
        """
        present = range(self.modalities) if present is None else present
        return self.combine(self.per_modality(embeddings, text, present, use_text), present)


def class_map(logits: Tensor) -> Tensor:
    """Labels uint8 (B, 256, 256): the class with the highest logit, background (0) where none is above 0."""
    highest, index = logits.max(dim=1)
    return torch.where(highest > 0, index + 1, 0).to(torch.uint8)
