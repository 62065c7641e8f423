"""EfficientNet-Lite0 as a contracting path: it can begin with weights that have learned to see from photographs.

Tan and Le 2019 (arXiv:1905.11946, Table 1); the Lite variant has no squeeze-and-excitation and ReLU6 throughout,
which keeps every layer a convolution, a fixed normalisation or a ReLU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

STEM = 32


class _Stage(NamedTuple):
    """Blocks of equal width.

    Attributes:
        expansion: channels inside a block over those that enter it.
        kernel: of the depthwise convolutions.
        stride: of the first block.
        outputs: channels.
        blocks: how many.
    """

    expansion: int
    kernel: int
    stride: int
    outputs: int
    blocks: int


STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)


class _DepthwiseConvolution(nn.Conv2d):
    """In single precision on a processor: in half precision its gradients take up to a hundred times as long there."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, J, I) to (B, outputs, J / stride, I / stride)."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """With its normalisation, whose small epsilon and slow statistics are those of the published weights."""
    kind = nn.Conv2d if groups == 1 else _DepthwiseConvolution
    return [
        kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    ]


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel on its own, project; added to the input where sizes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        expand = [*_convolution(inputs, inside, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_convolution(inside, inside, kernel, stride, groups=inside),
            nn.ReLU6(inplace=True),
            *_convolution(inside, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, J, I) to (B, outputs, J / stride, I / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size of a grey image.

    Shapes: input (B, 1, J, I), grey 0..1, J and I multiples of 32; output a list of maps with ``widths`` channels.
    """

    widths = (16, 24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, STEM, 3, 2), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        inputs = STEM
        for stage in STAGES:
            blocks = []
            for n in range(stage.blocks):
                stride = 1 if n else stage.stride
                blocks.append(InvertedBottleneck(inputs, stage.outputs, stage.kernel, stride, stage.expansion))
                inputs = stage.outputs
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        x = self.stem(2 * x - 1)
        maps = []
        for stage, after in zip(self.stages, (*STAGES[1:], None), strict=True):
            x = stage(x)
            if after is None or after.stride == 2:
                maps.append(x)
        return maps
