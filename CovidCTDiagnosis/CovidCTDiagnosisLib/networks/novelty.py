"""How far a volume lies from those that the classifier learned from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import GatedEncoder

FLOOR = 1e-3
"""Added before the logarithm: maps that stay dark would otherwise tell volumes apart by nothing."""


FACTS = 3
"""Features of the CT itself: its mean grey, its mean square, and how much pixels differ from their neighbours."""


class Novelty(nn.Module):
    """Mahalanobis distance of pooled features, in units of the largest usual one (Lee et al. 2018).

    The features need no label: logarithms of the encoder's gated maps and of plain facts of the CT, each averaged over
    the lungs of all slices, so that it makes no difference how much of the box around them is lung. The maps know what
    the classifier looks for; the facts tell noise, blur and odd contrast, which it was made not to see.

    Args:
        features: of the encoder's maps, and ``FACTS``.

    Shapes: ``forward`` takes the averages (features,) of one volume and gives a number; from 1 on it is unusual.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, features: int = GatedEncoder.channels + FACTS) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("whiten", torch.eye(features))

    @staticmethod
    def lung_sums(maps: Tensor, ct: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the lungs of some slices, and over how many pixels, (C + FACTS,) each.

        Args:
            maps: (S, C, h, w).
            ct: (S, 1, H, W), zero outside the lungs.
        """
        lungs = (ct > 0).to(maps.dtype)
        seen = F.adaptive_max_pool2d(lungs, maps.shape[2:])
        inner = 1 - F.max_pool2d(1 - F.pad(lungs, (1, 1, 1, 1)), 3, 1)
        differences = (ct - F.avg_pool2d(F.pad(ct, (1, 1, 1, 1)), 3, 1)).abs() * inner
        facts = torch.stack([ct.sum(), ct.square().sum(), differences.sum()])
        pixels = torch.stack([lungs.sum(), lungs.sum(), inner.sum()])
        sums = torch.cat([(maps * seen).sum((0, 2, 3)), facts])
        return sums, torch.cat([seen.sum().expand(maps.shape[1]), pixels])

    @staticmethod
    def features(averages: Tensor) -> Tensor:
        """What distances are measured between."""
        return torch.log(averages + FLOOR)

    def forward(self, averages: Tensor) -> Tensor:
        """See the class."""
        return ((self.features(averages) - self.mean) @ self.whiten).norm()
