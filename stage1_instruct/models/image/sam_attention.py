"""Attention of SAM's image encoder through scaled_dot_product_attention, without the stock (heads, tokens, tokens) maps.

SAM adds to the logit of query (y, x) and key (v, u) a term of v and a term of u, both linear in the query (decomposed
relative positions, Li et al. 2022, MViTv2, section 4.1). Two ways lead that through a fused kernel:

- `attend_with_bias`: the sum of both terms as the kernel's mask, for a strip of queries at a time.
- `attend_with_channels`: no mask at all. Queries carry the two terms as further channels and keys the one-hot codes of
  their row and column, so that q' . k' is the whole logit.

Which is used (`uses_channels`): channels for global attention on an accelerator, bias everywhere else. Seconds a block
of ViT-B and slice on one core of an AVX-512 CPU, fp32, stock / channels / bias: global 3.0 / 2.2 / 1.5, the 25 windows
0.41 / 0.35 / 0.31. Channels lose there because the CPU kernel wants values as wide as keys, 192 instead of 64. On an
accelerator the rule is reasoned, not measured: a kernel that takes no mask reads none from memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Queries in a strip: a bias of 12 heads x 256 x 4096 is 48 MiB in fp32, the whole one 768 MiB and no faster; strips of 64
# are 1.2 times slower in bf16.
STRIP = 256
# SAM's windows have 196 tokens, its global attention 4096.
MOST_WINDOW_TOKENS = 1024


class SdpaAttention(nn.Module):
    """Takes the place of segment_anything's Attention; holds its parameters under the same state-dict keys.

    Equal to it within 1e-5 (relative, fp32); in bf16 no further from fp32 than it is.
    """

    def __init__(self, stock: Any) -> None:
        """Args: stock: a segment_anything.modeling.image_encoder.Attention, with or without relative positions."""
        super().__init__()
        self.num_heads = stock.num_heads
        self.scale = stock.scale
        self.qkv = stock.qkv
        self.proj = stock.proj
        self.use_rel_pos = stock.use_rel_pos
        if self.use_rel_pos:
            self.rel_pos_h = stock.rel_pos_h
            self.rel_pos_w = stock.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        """Windows or whole images (B, H, W, C) -> the same shape."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, H * W, C / heads)
        if not self.use_rel_pos:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            grid = q.unflatten(2, (height, width))
            rows = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_positions(self.rel_pos_h, height)).flatten(2, 3)
            columns = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_positions(self.rel_pos_w, width)).flatten(2, 3)
            attend = attend_with_channels if uses_channels(x.device, height * width) else attend_with_bias
            out = attend(q, k, v, rows, columns, self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))


def use_sdpa(encoder: Any) -> nn.Module:
    """Replaces the attention of every block of an ImageEncoderViT, in place; its state dict stays as it is."""
    for block in encoder.blocks:
        block.attn = SdpaAttention(block.attn)
    return encoder


def uses_channels(device: torch.device, tokens: int) -> bool:
    """Whether `attend_with_channels` is used; see the module's docstring."""
    return device.type != "cpu" and tokens > MOST_WINDOW_TOKENS


def relative_positions(table: Tensor, size: int) -> Tensor:
    """The table's row for every pair of positions on an axis.

    Args:
        table: (2 * n - 1, C), learnt for n positions; interpolated linearly where n is not `size`, as SAM does.
    Returns:
        (size, size, C), query position first.
    """
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k' + rows + columns) v, a strip of queries at a time.

    Args:
        q, k, v: (B, heads, H * W, C), not yet scaled.
        rows: (B, heads, H * W, H), what each query adds for a key's row.
        columns: (B, heads, H * W, W), the same for a key's column.
    Returns:
        (B, heads, H * W, C).
    """
    strips = []
    for at in range(0, q.shape[2], STRIP):
        strip = slice(at, at + STRIP)
        bias = (rows[:, :, strip, :, None] + columns[:, :, strip, None, :]).flatten(-2)
        strips.append(F.scaled_dot_product_attention(q[:, :, strip], k, v, attn_mask=bias, scale=scale))
    return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)


def attend_with_channels(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """As `attend_with_bias`, without a mask: the logits are q' k' with C + H + W channels."""
    height, width, channels = rows.shape[-1], columns.shape[-1], v.shape[-1]
    row_code = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, dim=0)
    column_code = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    code = torch.cat([row_code, column_code], dim=1).expand(*k.shape[:2], -1, -1)
    if v.device.type == "cpu":
        # torch's CPU kernel takes only values as wide as the keys, and else falls back to the whole attention map.
        v = F.pad(v, (0, height + width))
    wide_q, wide_k = torch.cat([q * scale, rows, columns], dim=-1), torch.cat([k, code], dim=-1)
    return F.scaled_dot_product_attention(wide_q, wide_k, v, scale=1.0)[..., :channels]
