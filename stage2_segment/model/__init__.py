"""The trained part of Zeus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stage2_segment.model.zeus import Zeus

if TYPE_CHECKING:
    from stage2_segment.config import RunConfig


def build_model(config: RunConfig) -> Zeus:
    """The model that a run trains, with fresh weights."""
    return Zeus(
        modalities=len(config.modalities),
        classes=len(config.classes),
        text_width=config.text_width,
        fusion=config.fusion,
        combine=config.combine,
        keep_iou_token=config.keep_iou_token,
        aligner_hidden=config.aligner_hidden,
        aligner_depth=config.aligner_depth,
        per_class=config.instructions == "class",
        constant_text=config.text == "constant",
        token_states=config.form == "tokens",
    )
