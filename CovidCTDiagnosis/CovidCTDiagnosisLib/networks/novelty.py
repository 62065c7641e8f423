"""How far a volume lies from those that the classifier learned from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import GatedEncoder

FLOOR = 1e-3
"""Added before the logarithm: maps that stay dark would otherwise tell volumes apart by nothing."""


class Novelty(nn.Module):
    """Mahalanobis distance of pooled gated feature maps, in units of the largest usual one (Lee et al. 2018).

    The features need no label: logarithms of the encoder's maps, each averaged over the lungs of all slices, so that
    it makes no difference how much of the box around them is lung.

    Args:
        features: of the encoder's maps.

    Shapes: ``forward`` takes the averages (features,) of one volume and gives a number; from 1 on it is unusual.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, features: int = GatedEncoder.channels) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("whiten", torch.eye(features))

    @staticmethod
    def lung_sums(maps: Tensor, ct: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over slices: of the maps (S, C, h, w) in the lungs of ct (S, 1, H, W), (C,), and of their pixels."""
        inside = F.adaptive_max_pool2d((ct > 0).to(maps.dtype), maps.shape[2:])
        return (maps * inside).sum((0, 2, 3)), inside.sum()

    @staticmethod
    def features(averages: Tensor) -> Tensor:
        """What distances are measured between."""
        return torch.log(averages + FLOOR)

    def forward(self, averages: Tensor) -> Tensor:
        """See the class."""
        return ((self.features(averages) - self.mean) @ self.whiten).norm()
