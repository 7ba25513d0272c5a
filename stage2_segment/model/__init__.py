"""What is trained: the decoder and aligner of Zeus, or a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.model.zeus import Zeus

if TYPE_CHECKING:
    from zeus_union.stage2_segment.config import RunConfig


def build_model(config: RunConfig) -> Zeus | FusedNetwork:
    """The model that a run trains, with fresh weights."""
    if not config.is_zeus:
        sizes = (len(config.modalities), len(config.classes))
        return FusedNetwork(config.model, *sizes, config.fusion, config.merge, config.preset)
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


def parameter_table(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by part, over all copies."""
    parts = (
        {"encoder": "encoders", "merging": "merges"}
        if isinstance(model, FusedNetwork)
        else {"aligner (f_tt)": "aligners"}
    )
    parts |= {"decoder": "decoders"}
    if isinstance(model, Zeus):
        parts |= {"combine": "combine"}
    return {
        name: sum(p.numel() for p in model.get_submodule(part).parameters() if p.requires_grad)
        for name, part in parts.items()
    }
