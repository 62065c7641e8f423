"""Lesion class network: 3-D U-Net (paper section 4.1; Çiçek et al. 2016; Tilborghs et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Convolution3d, pad_to_multiple, window_of

LESION_CLASSES = (
    "background",
    "ground-glass opacity",
    "consolidation",
    "crazy paving",
    "combined pattern",
)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            Convolution3d(channels, outputs, 3, bias=False),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet3D(nn.Module):
    """3-D U-Net: per level two 3 x 3 x 3 convolutions, instance normalisation and leaky ReLU.

    Max pooling (2 x 2 x 2) between levels, trilinear upsampling, concatenated skips. The paper says 4 levels
    and "32 features at the lowest level", read here as the full-resolution level; it reports 13.3 M
    parameters. Widths 32-64-128-256 make 5.8 M, 48-96-192-384 make 13.1 M.

    Shapes: input (B, 1, K, J, I), HU clipped to [-1000, 400] and scaled to [0, 1]; output
    (B, 5, K, J, I), one logit per entry of ``LESION_CLASSES``. K, J, I need not be multiples of 8: the input
    is padded by its edge and the output cut; K = 1 is a slice repeated without end.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), classes: int = len(LESION_CLASSES)) -> None:
        super().__init__()
        inputs = [1, *widths[:-1]]
        self.down = nn.ModuleList(_level(i, o) for i, o in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(_level(widths[n] + widths[n + 1], widths[n]) for n in range(len(widths) - 1))
        self.classify = nn.Conv3d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        size = x.shape[2:]
        window = window_of(x, 2)
        x = pad_to_multiple(x, 2 ** (len(self.down) - 1))
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool3d(x, window) if level else x)
            skips.append(x)
        skips.pop()
        for up in reversed(self.up):
            # In one expression, so that nothing holds on to the large maps while the level runs.
            x = up(
                torch.cat(
                    [
                        skips.pop(),
                        F.interpolate(x, scale_factor=window, mode="trilinear", align_corners=False),
                    ],
                    dim=1,
                )
            )
        return self.classify(x)[:, :, : size[0], : size[1], : size[2]]
