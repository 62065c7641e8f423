"""The encoder that CVAE and classifier share: two branches and a gate (paper section 4.2.1, equation 2)."""

from __future__ import annotations

from torch import Tensor, nn


def convolution_branch() -> nn.Sequential:
    """One CNN branch: conv 16 5x5 ReLU, pool, conv 32 3x3 leaky ReLU, pool, conv 64 3x3 leaky ReLU.

    Shapes: (S, 1, H, W) to (S, 64, H // 4, W // 4). Convolutions are padded to keep the size; the paper does
    not say, and the slope of its leaky ReLU is torch's 0.01.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.LeakyReLU(0.01),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.LeakyReLU(0.01),
    )


class GatedEncoder(nn.Module):
    """Global branch (masked CT slices) and side branch (binary lesion masks), multiplied, then ReLU.

    Equation 2: F = ReLU(F_gcnn * F_scnn). With ``side_information=False`` only the global branch stands,
    followed by the ReLU (rows 1 and 2 of Table 3).

    Shapes: ct and lesions (S, 1, H, W), CT clipped to [-1000, 400] HU, scaled to [0, 1] and zero outside the
    lungs, lesions 0 or 1 (fractions where a pixel is partly lesion); output (S, 64, H // 4, W // 4).
    """

    channels = 64

    def __init__(self, side_information: bool = True) -> None:
        super().__init__()
        self.ct_branch = convolution_branch()
        self.lesion_branch = convolution_branch() if side_information else None
        self.relu = nn.ReLU()

    def forward(self, ct: Tensor, lesions: Tensor) -> Tensor:
        """See the class."""
        features = self.ct_branch(ct)
        if self.lesion_branch is not None:
            features = features * self.lesion_branch(lesions)
        return self.relu(features)
