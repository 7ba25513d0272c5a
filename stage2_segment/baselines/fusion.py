"""The three ways to fuse modalities (Zeus, section 3.3), one wrapper for every network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zeus_union.cache.errors import UserError
from zeus_union.stage2_segment.choices import FUSIONS, MERGES, PRESETS


class FusedNetwork(nn.Module):
    """A baseline for several modalities.

    Args:
        network: key of `NETWORKS`.
        modalities: M.
        classes: K, without background.
        fusion: 'early', 'hybrid' or 'late'.
        merge: of hybrid fusion: 'concat' or 'mean'.
        preset: key of `PRESETS`.
        width: a factor of the published widths instead of the preset's.
    Raises:
        UserError: an unknown network, fusion, merge or preset.
    """

    def __init__(
        self,
        network: str,
        modalities: int,
        classes: int,
        fusion: str,
        merge: str = "concat",
        preset: str = "published",
        width: float | None = None,
    ) -> None:
        from zeus_union.stage2_segment.baselines.networks import NETWORKS  # with MONAI, which takes seconds to import

        super().__init__()
        for what, name, known in (
            ("model", network, NETWORKS),
            ("fusion", fusion, FUSIONS),
            ("merge", merge, MERGES),
            ("preset", preset, PRESETS),
        ):
            if name not in known:
                raise UserError(f"there is no {what} {name!r} among the baselines; choose one of {', '.join(known)}")
        self.network, self.modalities, self.fusion, self.merge = network, modalities, fusion, merge
        parts = NETWORKS[network]
        channels, encoders = (modalities, 1) if fusion == "early" else (1, modalities)
        self.encoders = nn.ModuleList(parts.encoder(channels, preset, width) for _ in range(encoders))
        maps: list[int] = self.encoders[0].channels  # type: ignore[assignment]
        self.merges = nn.ModuleList()
        if fusion == "hybrid" and merge == "concat":
            self.merges.extend(nn.Conv2d(modalities * count, count, 1) for count in maps)
        decoders = modalities if fusion == "late" else 1
        self.decoders = nn.ModuleList(parts.decoder(maps, classes, preset, width) for _ in range(decoders))

    def forward(self, images: Tensor, present: Sequence[int] | None = None) -> Tensor:
        """Mask logits, one binary mask per class.

        Args:
            images: float (B, m, 256, 256).
            present: which of the M modalities these are; None: all. Of a missing one, early fusion sees zeros; hybrid
                fusion sees maps of zeros, or takes the mean of the others; late fusion takes the mean of the others.
        Returns:
            float (B, K, 256, 256).
        """
        present = range(self.modalities) if present is None else present
        if len(present) != images.shape[1]:
            raise ValueError(f"{images.shape[1]} images a slice, but {len(present)} modalities are said to be present")
        if self.fusion == "early":
            return self.decoders[0](self.encoders[0](self._all_channels(images, present)))
        features = {m: self.encoders[m](images[:, i : i + 1]) for i, m in enumerate(present)}
        if self.fusion == "late":
            return torch.stack([self.decoders[m](maps) for m, maps in features.items()]).mean(dim=0)
        scales = range(len(next(iter(features.values()))))
        return self.decoders[0](
            [self._merged(scale, {m: maps[scale] for m, maps in features.items()}) for scale in scales]
        )

    def _all_channels(self, images: Tensor, present: Sequence[int]) -> Tensor:
        if list(present) == list(range(self.modalities)):
            return images
        channels = images.new_zeros(len(images), self.modalities, *images.shape[2:])
        channels[:, list(present)] = images
        return channels

    def _merged(self, scale: int, maps: dict[int, Tensor]) -> Tensor:
        """One scale's maps (B, C, H, W) of the modalities that are there -> (B, C, H, W)."""
        if self.merge == "mean":
            return torch.stack(list(maps.values())).mean(dim=0)
        nothing = torch.zeros_like(next(iter(maps.values())))
        return self.merges[scale](torch.cat([maps.get(m, nothing) for m in range(self.modalities)], dim=1))
