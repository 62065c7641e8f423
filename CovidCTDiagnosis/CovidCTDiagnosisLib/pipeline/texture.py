"""How noisy or blurred a CT is where the classifier looks: what its coarse grid no longer shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..ct.windows import CLASSIFIER, scale

MOST_SLICES = 64
"""More tell nothing new."""
_NEIGHBOURS = np.ones((3, 3), bool)


class TextureRange(NamedTuple):
    """Textures of the scans that a classifier has learned from: the least and the greatest."""

    low: float
    high: float

    def warnings(self, texture: float) -> list[str]:
        """What to tell the user of a scan's texture; nothing of NaN."""
        if texture > self.high:
            return [_warning("noisier or sharper", texture / self.high)]
        if texture < self.low:
            return [_warning("smoother or more blurred", self.low / max(texture, 1e-9))]
        return []


def _warning(how: str, times: float) -> str:
    return (
        f"This scan is {how} than any that the classifier learned from ({times:.1f} times): do not rely on its "
        "probability."
    )


def lung_texture(voxels: np.ndarray, lungs: np.ndarray) -> float:
    """Mean difference of a lung pixel from the mean of its 3 x 3 neighbours, on the CT's own pixels.

    Args:
        voxels: HU, (K, J, I), k along the patient.
        lungs: bool, same shape.

    Returns:
        As a share of the classifier's window; NaN where no lung pixel has lung all around it.
    """
    step = max(-(-len(voxels) // MOST_SLICES), 1)
    total, count = 0.0, 0
    for hu, mask in zip(voxels[::step], lungs[::step], strict=True):
        inner = ndimage.binary_erosion(mask, _NEIGHBOURS)
        if inner.any():
            image = scale(hu, CLASSIFIER)
            total += float(np.abs(image - ndimage.uniform_filter(image, 3))[inner].sum(dtype=np.float64))
            count += int(inner.sum())
    return total / count if count else float("nan")
