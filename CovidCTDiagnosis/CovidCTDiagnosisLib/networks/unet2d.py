"""2DS, pathological tissue: 2-D U-Net (paper section 3; Ronneberger et al. 2015; Tilborghs et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet2D(nn.Module):
    """2-D U-Net with 5 levels and 16 features at the first, doubled at each level.

    Learns from 128 x 128 axial patches inside the lungs' bounding box; being convolutional, it runs on whole
    slices of that box. Max pooling, bilinear upsampling, batch normalisation (not named in the paper).

    Shapes: input (B, 1, J, I), HU clipped to [-1000, 400] and scaled to [0, 1]; output (B, 1, J, I), the
    logit of pathological tissue. J and I need not be multiples of 16.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        inputs = [1, *widths[:-1]]
        self.down = nn.ModuleList(_level(i, o) for i, o in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(_level(widths[n] + widths[n + 1], widths[n]) for n in range(len(widths) - 1))
        self.classify = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        size = x.shape[2:]
        multiple = 2 ** (len(self.down) - 1)
        padding = [(-n) % multiple for n in size]
        x = F.pad(x, (0, padding[1], 0, padding[0]), mode="replicate")
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up in reversed(self.up):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = up(torch.cat([skips.pop(), x], dim=1))
        return self.classify(x)[:, :, : size[0], : size[1]]
