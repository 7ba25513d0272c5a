"""SAM's two-way transformer: a handful of tokens and a 64 x 64 image read one another (SAM, appendix A).

The same arithmetic and the same state-dict keys as segment_anything's, done in another order. There are few tokens and
4096 image positions, so the projections of the image are folded into the tokens:
    q . (Wk x + bk) = (Wk^T q) . x + q . bk          sum_n a_n (Wv x_n + bv) = Wv (sum_n a_n x_n) + bv
With T tokens and 8 heads that is 8 T columns instead of 128 (T = 2 for a binary mask), and no projected image is kept
for the backward pass.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeus_union.stage2_segment.model.reading import ImageReadsTokens, TokensReadImage, scores_of


class Attention(nn.Module):
    """Multi-head attention with an inner width of `width / downsample`.

    Args:
        width: channels of queries, keys and values.
        heads: number of heads.
        downsample: `width` over the inner width.
    """

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = width // downsample
        self.heads = heads
        self.head_width = inner // heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, inner) -> (B, heads, T, head width)."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        """(B, heads, T, head width) -> (B, T, inner)."""
        return x.transpose(1, 2).flatten(2)

    def _worth_folding(self, tokens: int) -> bool:
        return tokens <= self.head_width

    @property
    def _key_bias(self) -> Tensor:
        """(inner,), with a gradient of 0: it adds the same to all of a query's scores, which the softmax takes out again.

        Computed, the gradient would be rounding, which Adam scales up to steps of full size. It is 0 and not None, an error
        where processes share a batch.
        """
        return self.k_proj.bias.detach() + 0 * self.k_proj.bias

    def _keys(self, x: Tensor) -> Tensor:
        return self._split(F.linear(x, self.k_proj.weight, self._key_bias))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """q (B, T, C), k and v (B, N, C) -> (B, T, C); `valid` (B, N): which of k and v are there, None: all."""
        q, k, v = self._split(self.q_proj(q)), self._keys(k), self._split(self.v_proj(v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_width)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None], -math.inf)
        return self.out_proj(self._merge(torch.softmax(scores, dim=-1) @ v))

    def tokens_read_image(self, q: Tensor, placed: Tensor, image: Tensor) -> Tensor:
        """`forward` for few tokens q (B, T, C) on an image (B, N, C), `placed` with its constant positional encoding."""
        if not self._worth_folding(q.shape[1]):
            return self(q, placed, image)
        q = self._split(self.q_proj(q)) / math.sqrt(self.head_width)
        k_weight = self.k_proj.weight.view(self.heads, self.head_width, -1)
        k_bias = self._key_bias.view(self.heads, self.head_width, 1)
        folded, shift = (q @ k_weight).flatten(1, 2), (q @ k_bias).flatten(1, 2)  # (B, heads T, C), (B, heads T, 1)
        if torch.is_autocast_enabled(image.device.type):
            seen = torch.softmax(scores_of(placed, folded) + shift, dim=-1) @ image
        else:
            seen, _ = TokensReadImage.apply(placed.detach(), image, folded, shift)
        v_weight = self.v_proj.weight.view(self.heads, self.head_width, -1)
        v_bias = self.v_proj.bias.view(self.heads, 1, self.head_width)
        return self.out_proj(self._merge(seen.unflatten(1, (self.heads, -1)) @ v_weight.transpose(1, 2) + v_bias))

    def image_reads_tokens(
        self, placed: Tensor, image: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """image (B, N, C) + `forward` of `placed` on few tokens k, v (B, T, C); `valid` (B, T)."""
        if not self._worth_folding(k.shape[1]):
            return image + self(placed, k, v, valid)
        k, v = self._keys(k) / math.sqrt(self.head_width), self._split(self.v_proj(v))
        q_weight = self.q_proj.weight.view(self.heads, self.head_width, -1)
        q_bias = self.q_proj.bias.view(self.heads, self.head_width, 1)
        folded, shift = (k @ q_weight).flatten(1, 2), k @ q_bias  # (B, heads T, C), (B, heads, T, 1)
        if valid is not None:
            shift = shift.masked_fill(~valid[:, None, :, None], -math.inf)
        shift = shift.flatten(1, 2)
        out_weight = self.out_proj.weight.view(-1, self.heads, self.head_width).permute(1, 2, 0)
        # A position's attention to a head's tokens adds up to 1: the bias in equal shares is in what every token says.
        said = (v @ out_weight + self.out_proj.bias / self.heads).flatten(1, 2)  # (B, heads T, C)
        if torch.is_autocast_enabled(image.device.type):
            scores = (scores_of(placed, folded) + shift).unflatten(1, (self.heads, -1))
            return image + torch.softmax(scores, dim=2).flatten(1, 2).transpose(1, 2) @ said
        return ImageReadsTokens.apply(placed.detach(), image, folded, shift, said, self.heads)[0]


class TokenMLP(nn.Module):
    """The transformer's MLP on the tokens, with ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens read the image, MLP, the image reads the tokens.

    Args:
        first: the first block adds no positional encoding before its self-attention (as SAM's).
    """

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, downsample=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TokenMLP(width, hidden)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, downsample=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """tokens, token_pe (B, T, C), image (B, N, C), image_pe (N, C), valid (B, T) -> tokens, image."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens, valid)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens, valid)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.tokens_read_image(tokens + token_pe, placed, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        read = self.cross_attn_image_to_token.image_reads_tokens(placed, image, tokens + token_pe, tokens, valid)
        return tokens, self.norm4(read)


class TwoWayTransformer(nn.Module):
    """SAM's decoder transformer; SAM's own sizes are depth 2, width 256, 8 heads, MLP 2048."""

    def __init__(self, depth: int = 2, width: int = 256, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(width, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, image: Tensor, image_pe: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """tokens (B, T, C), image (B, N, C), image_pe (N, C) -> tokens and image of the same shapes.

        `valid` (B, T): which tokens are there; nothing reads the others. None: all.
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, valid)
        read = self.final_attn_token_to_image.tokens_read_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + read), image
