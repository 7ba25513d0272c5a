"""Image encoders by the names that a profile gives them; none is imported before it is opened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from zeus_union.stage1_instruct.models.frozen import Frozen

if TYPE_CHECKING:
    import torch

    from zeus_union.stage1_instruct.models.image.encoder import ImageEncoder


class EncoderLines(Protocol):
    """The lines of a profile that an encoder is opened by."""

    @property
    def encoder(self) -> str: ...

    @property
    def encoder_weights(self) -> str: ...

    @property
    def encoder_precision(self) -> str: ...


# Of a profile, on a device; pictures at a time on a GPU, None: as many as fit.
OpenEncoder = Callable[[EncoderLines, "torch.device", "int | None"], "Frozen[ImageEncoder]"]


def _open_litemedsam(profile: EncoderLines, device: torch.device, batch_size: int | None) -> Frozen[ImageEncoder]:
    from zeus_union.stage1_instruct.models.image.litemedsam import LiteMedSAM

    return Frozen(
        partial(LiteMedSAM.recipe_of, profile.encoder_weights),
        partial(LiteMedSAM, profile.encoder_weights, device, batch_size),
    )


def _open_sam(profile: EncoderLines, device: torch.device, batch_size: int | None) -> Frozen[ImageEncoder]:
    from zeus_union.stage1_instruct.models.image.sam import SamEncoder

    name, weights, precision = profile.encoder, profile.encoder_weights, profile.encoder_precision
    return Frozen(
        partial(SamEncoder.recipe_of, name, weights, precision),
        partial(SamEncoder, name, weights, device, precision, batch_size),
    )


ENCODERS: dict[str, OpenEncoder] = {
    "litemedsam": _open_litemedsam,
    **dict.fromkeys(("sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam"), _open_sam),
}
