"""What the classifier's coarse, masked slices no longer show of a CT: noise, blur, and how grey tissue is shown."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..ct.regrid import Triple
from ..ct.windows import CLASSIFIER, scale

MOST_SLICES = 64
"""More tell nothing new."""
SURROUND_MM = (1.4, 4.2)
"""How far from the lungs, in-plane, their surround begins and ends: chest wall and mediastinum, not a blurred edge."""
_NEIGHBOURS = np.ones((3, 3), bool)


class Appearance(NamedTuple):
    """How a CT looks in and around the lungs, as shares of the classifier's window; NaN where it is not known.

    Attributes:
        texture: mean difference of a lung pixel from the mean of its 3 x 3 neighbours, on the CT's own pixels.
        surround: mean grey of what lies around the lungs (``SURROUND_MM``).
    """

    texture: float = math.nan
    surround: float = math.nan


UNKNOWN = Appearance()


class UsualAppearance(NamedTuple):
    """Limits of what a classifier has learned from."""

    least_texture: float
    greatest_texture: float
    least_surround: float

    def warnings(self, found: Appearance) -> list[str]:
        """What to tell the user of a scan's appearance; nothing of NaN."""
        told = []
        if found.texture > self.greatest_texture:
            told.append(("noisier or sharper", f"{found.texture / self.greatest_texture:.1f} times"))
        if found.texture < self.least_texture:
            told.append(("smoother or more blurred", f"{self.least_texture / max(found.texture, 1e-9):.1f} times"))
        if found.surround < self.least_surround:
            told.append(("darker around the lungs", "inverted, or shown in another window?"))
        return [
            f"This scan is {how} than any that the classifier learned from ({more}): do not rely on its probability."
            for how, more in told
        ]


def lung_appearance(voxels: np.ndarray, lungs: np.ndarray, spacing: Triple) -> Appearance:
    """Texture and surround of the lungs.

    Args:
        voxels: HU, (K, J, I), k along the patient; with some tissue around the lungs.
        lungs: bool, same shape.
        spacing: mm along (k, j, i).
    """
    step = max(-(-len(voxels) // MOST_SLICES), 1)
    texture, surround = _Mean(), _Mean()
    for hu, mask in zip(voxels[::step], lungs[::step], strict=True):
        if mask.any():
            image = scale(hu, CLASSIFIER)
            inner = ndimage.binary_erosion(mask, _NEIGHBOURS)
            texture.add(np.abs(image - ndimage.uniform_filter(image, 3))[inner])
            surround.add(image[_ring(mask, spacing[1:])])
    return Appearance(texture.value, surround.value)


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        self.total += float(values.sum(dtype=np.float64))
        self.count += values.size

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


def _ring(mask: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Pixels around the mask, bool (J, I): within a square's half side of ``SURROUND_MM``, at least one pixel wide."""
    near, far = ([round(mm / size) for size in pixel] for mm in SURROUND_MM)
    far = [max(a + 1, b) for a, b in zip(near, far, strict=True)]
    grown_near, grown_far = (
        ndimage.maximum_filter(mask, [2 * n + 1 for n in reach], mode="constant") for reach in (near, far)
    )
    ring: np.ndarray = grown_far & ~grown_near
    return ring
