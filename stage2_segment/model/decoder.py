"""SAM's mask decoder without IoU estimation: one mask token and one hypernetwork per class (Zeus, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeus_union.stage2_segment.model.transformer import TwoWayTransformer

WIDTH = 256  # channels of SAM's image embedding, and of a token
GRID = 64  # positions along a side of SAM's embedding; masks have 4 x as many pixels


class HypernetworkMLP(nn.Module):
    """A mask token becomes the weights of a linear classifier over the upscaled pixels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Image embedding and prompt tokens -> one mask of logits per class.

    Parameters carry segment_anything's names, so SAM's own weights load. With four classes and no IoU token it has
    3,925,472 parameters.

    Args:
        classes: number of masks.
        keep_iou_token: keep SAM's IoU token among the tokens (its head is gone either way). With it the logits equal
            segment_anything's; without it they differ a little from the start.
    """

    def __init__(self, classes: int, keep_iou_token: bool = False) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(width=WIDTH)
        if keep_iou_token:
            self.iou_token = nn.Embedding(1, WIDTH)
        self.keep_iou_token = keep_iou_token
        self.mask_tokens = nn.Embedding(classes, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, kernel_size=2, stride=2),
            nn.LayerNorm(WIDTH // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(HypernetworkMLP(WIDTH, WIDTH // 8) for _ in range(classes))

    def forward(self, image: Tensor, image_pe: Tensor, prompt: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mask logits, of 4 x 4 pixels for each position of a square image.

        Args:
            image: (B, 4096, 256), embedding with the dense prompt added, positions row by row.
            image_pe: (4096, 256).
            prompt: (B, P, 256), sparse prompt tokens.
            valid: bool (B, P), which of them are there; None: all.
        Returns:
            (B, classes, 256, 256).
        """
        output_tokens = self.mask_tokens.weight
        if self.keep_iou_token:
            output_tokens = torch.cat([self.iou_token.weight, output_tokens])
        tokens = torch.cat([output_tokens.expand(len(image), -1, -1), prompt], dim=1)
        if valid is not None:
            valid = torch.cat([valid.new_ones(len(image), len(output_tokens)), valid], dim=1)
        tokens, image = self.transformer(tokens, image, image_pe, valid)
        first = int(self.keep_iou_token)
        classifiers = torch.stack(
            [mlp(tokens[:, first + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1
        )
        return self._masks(image, classifiers)

    def _masks(self, image: Tensor, classifiers: Tensor) -> Tensor:
        """Upscale (B, 4096, 256) four times and classify every pixel with (B, K, 32).

        A transposed convolution of kernel 2 and stride 2 is a matrix product per position. Keeping channels last makes
        each step one product or one pass over contiguous rows; only the K maps are ever reordered into a picture.
        """
        first, norm, _, second, _ = self.output_upscaling
        x = F.gelu(norm(_spread(image, first)))  # (B, 4096, 4, 64)
        x = F.gelu(_spread(x, second))  # (B, 4096, 4, 4, 32)
        logits = x.flatten(1, -2) @ classifiers.transpose(1, 2)
        side = math.isqrt(image.shape[1])
        logits = logits.unflatten(1, (side, side, 2, 2, 2, 2))  # row, column, then row and column within, twice
        return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(image), logits.shape[-1], 4 * side, 4 * side)

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Start from SAM's decoder; every class from mask token 0, the one SAM trains for a single mask.

        Args:
            state: a state dict of segment_anything's MaskDecoder; its IoU head is not used.
        """
        weights = {}
        for name in self.state_dict():
            if name == "mask_tokens.weight":
                weights[name] = state[name][:1].expand(self.mask_tokens.num_embeddings, -1)
            elif name.startswith("output_hypernetworks_mlps."):
                weights[name] = state["output_hypernetworks_mlps.0." + name.split(".", 2)[2]]
            else:
                weights[name] = state[name]
        self.load_state_dict(weights)


def _spread(x: Tensor, convolution: nn.Module) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 on channels-last (..., C) -> (..., 4, out), the 4 row by row."""
    weight, bias = convolution.parameters()  # (C, out, 2, 2), (out,)
    return F.linear(x, weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)).unflatten(-1, (4, -1))
