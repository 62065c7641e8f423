"""Lesion class network: 3-D U-Net (paper section 4.1; Çiçek et al. 2016; Tilborghs et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED = range(1, len(LESION_CLASSES))


def _level(inputs: int, outputs: int, kernel: int | tuple[int, int, int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            Convolution3d(channels, outputs, kernel, bias=False),
            nn.BatchNorm3d(outputs),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet3D(nn.Module):
    """3-D U-Net: per level two convolutions, each with batch normalisation and leaky ReLU.

    Max pooling (2 x 2 x 2) between levels, trilinear upsampling, concatenated skips. The paper says 4 levels
    and "32 features at the lowest level", read here as the full-resolution level; it reports 13.3 M
    parameters. Widths 32-64-128-256 make 5.2 M, 48-96-192-384 make 11.7 M.

    Normalised by what it sees, as by instance normalisation, a part of another size than those of the training is
    another picture to the network: crazy paving, learned in small parts, was not known again in large ones. Batch
    normalisation is the same everywhere, and free once folded into the convolutions.

    Two choices of ours halve the work on a CPU, where the paper is silent: kernels are 3 x 3 x 3 but at full
    resolution 1 x 3 x 3, as voxels are about twice as tall as wide there; and a 1 x 1 x 1 convolution brings
    the channels of the lower level down to the upper one's before they are upsampled (as the up-convolution
    in Ronneberger et al. 2015 does).

    Shapes: input (B, 1, K, J, I), HU clipped to [-1000, 400] and scaled to [0, 1]; output
    (B, 5, K, J, I), one logit per entry of ``LESION_CLASSES``. K, J, I need not be multiples of 8: the input
    is padded by its edge and the output cut; K = 1 is a slice repeated without end.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), classes: int = len(LESION_CLASSES)) -> None:
        super().__init__()
        kernels = [(1, 3, 3), *[(3, 3, 3)] * (len(widths) - 1)]
        self.down = nn.ModuleList(
            _level(i, o, kernel) for i, o, kernel in zip([1, *widths[:-1]], widths, kernels, strict=True)
        )
        self.narrow = nn.ModuleList(Convolution3d(low, high, 1) for high, low in pairwise(widths))
        self.up = nn.ModuleList(
            _level(2 * width, width, kernel) for width, kernel in zip(widths[:-1], kernels[:-1], strict=True)
        )
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
        for narrow, up in zip(reversed(self.narrow), reversed(self.up), strict=True):
            # In one expression, so that nothing holds on to the large maps while the level runs.
            x = up(torch.cat([skips.pop(), _double(narrow(x), window)], dim=1))
        return self.classify(x)[:, :, : size[0], : size[1], : size[2]]


def _double(x: Tensor, window: tuple[int, int, int]) -> Tensor:
    return F.interpolate(x, scale_factor=window, mode="trilinear", align_corners=False)
