"""What is trained: the decoder and aligner of Zeus, or a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from zeus_union.stage2_segment.baselines.fusion import FusedNetwork
from zeus_union.stage2_segment.choices import ZEUS
from zeus_union.stage2_segment.model.zeus import Zeus

if TYPE_CHECKING:
    from zeus_union.stage2_segment.config import Architecture


def build_model(architecture: Architecture) -> Zeus | FusedNetwork:
    """A model of that architecture, with fresh weights."""
    shape = architecture
    if shape.model != ZEUS:
        return FusedNetwork(shape.model, shape.modalities, shape.classes, shape.fusion, shape.merge, shape.preset)
    return Zeus(
        modalities=shape.modalities,
        classes=shape.classes,
        text_width=shape.text_width,
        fusion=shape.fusion,
        combine=shape.combine,
        keep_iou_token=shape.iou_token,
        aligner=shape.aligner,
        aligner_depth=shape.aligner_depth,
        per_class=shape.instructions == "class",
        constant_text=shape.constant_text,
        token_states=shape.form == "tokens" and shape.aligner == "mlp",
    )


def parameter_table(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by part, over all copies."""
    parts = {"encoder": ["encoders"], "merging": ["merges"]} if isinstance(model, FusedNetwork) else {}
    if isinstance(model, Zeus):
        parts["aligner (f_tt)"] = ["aligners"] if model.bases is None else ["aligners", "bases"]
    parts["decoder"] = ["decoders"]
    if isinstance(model, Zeus):
        parts["combine"] = ["combine"]
    return {
        name: sum(p.numel() for part in named for p in model.get_submodule(part).parameters() if p.requires_grad)
        for name, named in parts.items()
    }
