"""Lung segmentation network after DeepMedic (paper section 4.1; Kamnitsas et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Convolution3d, pad_to_multiple, window_of


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution3d(inputs, outputs, kernel, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class Pathway(nn.Module):
    """3 x 3 x 3 convolutions on the input averaged over cubes of ``factor`` voxels, and a projection.

    The projection is this pathway's part of the first 1 x 1 x 1 convolution over all pathways: being linear
    and pointwise it may as well run before upsampling, where it is cheap.

    Shapes: (B, 1, K, J, I) to (B, joint, K, J, I); any K, J, I.
    """

    def __init__(self, factor: int, widths: Sequence[int], joint: int) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(*(_convolution(i, o, 3) for i, o in pairwise([1, *widths])))
        self.project = Convolution3d(widths[-1], joint, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.factor == 1:
            return self.project(self.layers(x))
        size = x.shape[2:]
        padded = pad_to_multiple(x, self.factor)
        low = self.project(self.layers(F.avg_pool3d(padded, window_of(x, self.factor))))
        high = F.interpolate(low, size=padded.shape[2:], mode="trilinear", align_corners=False)
        return high[:, :, : size[0], : size[1], : size[2]]


class DeepMedic(nn.Module):
    """Parallel pathways at several resolutions, joined by two 1 x 1 x 1 convolutions and a classifier.

    As in DeepMedic, each pathway has eight 3 x 3 x 3 convolutions and sees the same place at its own
    resolution. Here all pathways are computed densely on large segments whose edges are repeated, and the
    low-resolution pathways are the wide ones: they cost 1/27 and 1/125 per voxel, which keeps the paper's
    2.12 M parameters at a price two CPU cores can pay. Batch normalisation stands where DeepMedic has it;
    ReLU instead of PReLU.

    Args:
        pathways: (downsampling factor, width of each convolution) of every pathway.
        joint: width of the two 1 x 1 x 1 convolutions.

    Shapes: input (B, 1, K, J, I), HU clipped to [-1100, 100] and scaled to [0, 1]; output (B, 1, K, J, I),
    the logit of lung. Any K, J, I; K = 1 is a slice repeated without end.
    """

    def __init__(
        self,
        pathways: Sequence[tuple[int, Sequence[int]]] = ((1, (16,) * 8), (3, (56,) * 8), (5, (88,) * 8)),
        joint: int = 32,
    ) -> None:
        super().__init__()
        self.pathways = nn.ModuleList(Pathway(factor, widths, joint) for factor, widths in pathways)
        self.joint = nn.Sequential(nn.BatchNorm3d(joint), nn.ReLU(inplace=True), _convolution(joint, joint, 1))
        self.classify = nn.Conv3d(joint, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        first, *others = self.pathways
        joined = first(x)
        for pathway in others:
            joined = joined + pathway(x)
        return self.classify(self.joint(joined))
