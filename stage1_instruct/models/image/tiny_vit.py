"""TinyViT as LiteMedSAM uses it: 256 x 256 in, 64 x 64 out, no down-sampling after the second stage.

Wu et al., TinyViT (ECCV 2022), in the variant of MobileSAM and LiteMedSAM; plain torch, parameter names as in the
published checkpoint. Features travel as (B, H, W, C), which is what a channels_last convolution reads without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, HEADS = (64, 128, 160, 320), (2, 4, 5, 10)


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm; `fuse` makes one convolution of the two."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return self.bn(self.c(x))

    @torch.no_grad()
    def fuse(self) -> None:
        norm = self.bn
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
            return
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        self.c.weight.copy_(self.c.weight.double() * scale[:, None, None, None])
        self.c.bias = nn.Parameter(shift.to(self.c.weight.dtype))
        self.bn = nn.Identity()


class PatchEmbed(nn.Module):
    """Two 1 x 1 convolutions: LiteMedSAM keeps all 256 x 256 pixels at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, width // 2), nn.GELU(), ConvBN(width // 2, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck: widen by 4, depthwise 3 x 3, narrow, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(width, 4 * width)
        self.conv2 = ConvBN(4 * width, 4 * width, kernel=3, groups=4 * width)
        self.conv3 = ConvBN(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))) + x)


class PatchMerging(nn.Module):
    """Changes the width, and halves the side where `stride` is 2."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(width, out)
        self.conv2 = ConvBN(out, out, kernel=3, stride=stride, groups=out)
        self.conv3 = ConvBN(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Attention within a square window, with a learned bias per head and per absolute offset (rows, columns)."""

    offset: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        row, column = row.flatten(), column.flatten()
        offset = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (windows, N, C)
        windows, count, width = x.shape
        # The checkpoint keeps q, k and v of one head together.
        qkv = self.qkv(self.norm(x)).view(windows, count, self.heads, 3, width // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        # (1, heads, N, N): with three dimensions PyTorch takes a path that is two to three times slower on a CPU.
        bias = self.attention_biases[:, self.offset][None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).reshape(windows, count, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Window attention, depthwise convolution, MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvBN(width, width, kernel=3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = x + self._attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x + self.mlp(x)).permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w = self.window
        # Zeros that fill the last windows take part in the attention, as in the original.
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        x = x.view(batch, rows, w, columns, w, channels).transpose(2, 3).reshape(-1, w * w, channels)
        x = self.attn(x).view(batch, rows, columns, w, w, channels).transpose(2, 3)
        return x.reshape(batch, rows * w, columns * w, channels)[:, :height, :width]


class Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


def widths_of(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The widths of the four stages of a TinyViT's state dict; the published ones where it is that of something else.

    A narrow TinyViT costs a test the square of its width less: 8, 16, 20, 40 channels take 1/64 of the 75 GFLOP.
    """
    layers = ["patch_embed.seq.2", *(f"layers.{i}.downsample.conv3" for i in range(3))]
    shapes = [state[f"{layer}.c.weight"].shape if f"{layer}.c.weight" in state else () for layer in layers]
    widths = tuple(shape[0] for shape in shapes if len(shape) == 4)
    fits = len(widths) == len(HEADS) and all(w > 0 and w % h == 0 for w, h in zip(widths, HEADS, strict=True))
    return widths if fits else WIDTHS


class TinyViT(nn.Module):
    """LiteMedSAM's image encoder: float32 (B, 3, 256, 256) in 0..1 -> (B, 256, 64, 64). 5,726,740 parameters.

    Args: widths: channels of the four stages, each a multiple of the stage's `HEADS`; the published ones by default.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        depths, heads, windows = (2, 2, 6, 2), HEADS, (7, 7, 14, 7)
        strides = (2, 2, 1)  # 256 -> 128 -> 64 -> 64
        self.patch_embed = PatchEmbed(widths[0])
        self.layers = nn.ModuleList()
        for i, width in enumerate(widths):
            blocks: list[nn.Module] = [
                MBConv(width) if i == 0 else TinyViTBlock(width, heads[i], windows[i]) for _ in range(depths[i])
            ]
            self.layers.append(Stage(blocks, PatchMerging(width, widths[i + 1], strides[i]) if i < 3 else None))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)

    def fuse(self) -> None:
        """Folds every batch norm into its convolution, for inference."""
        for module in self.modules():
            if isinstance(module, ConvBN):
                module.fuse()
