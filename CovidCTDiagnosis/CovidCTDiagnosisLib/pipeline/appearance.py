"""What the classifier's coarse, masked slices no longer show: noise, blur, how grey tissue is, how wide lungs are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..ct.regrid import Region, Triple, bounding_region
from ..ct.windows import LUNG_WINDOW, scale
from .slice_orientation import body

MOST_SLICES = 64
"""More tell nothing new."""
SURROUND_MM = (1.4, 4.2)
"""How far from the lungs, in-plane, their surround begins and ends: chest wall and mediastinum, not a blurred edge."""
_NEIGHBOURS = np.ones((3, 3), bool)


class Appearance(NamedTuple):
    """How a CT looks in and around the lungs, grey as a share of the classifier's window; NaN where it is not known.

    Attributes:
        texture: mean difference of a lung pixel from the mean of its 3 x 3 neighbours, on the CT's own pixels.
        surround: mean grey of what lies around the lungs (``SURROUND_MM``).
        width: of the lungs, as a share of the body's, in the slice that shows most of them.
    """

    texture: float = math.nan
    surround: float = math.nan
    width: float = math.nan


UNKNOWN = Appearance()
UNRELIABLE = "do not rely on its probability"
"""What a warning says where this is so."""


class UsualAppearance(NamedTuple):
    """Limits of what a classifier has learned from."""

    least_texture: float
    greatest_texture: float
    least_surround: float
    least_width: float = 0.0
    fewest_slices: int = 0

    def warnings(self, found: Appearance, slices: int) -> list[str]:
        """What to tell the user of a scan's appearance and of how many slices the classifier sees; nothing of NaN."""
        told = []
        if slices < self.fewest_slices:
            told.append(("has fewer slices of the lungs", f"{slices} instead of {self.fewest_slices} and more"))
        if found.texture > self.greatest_texture:
            told.append(("is noisier or sharper", f"{found.texture / self.greatest_texture:.1f} times"))
        if found.texture < self.least_texture:
            told.append(("is smoother or more blurred", f"{self.least_texture / max(found.texture, 1e-9):.1f} times"))
        if found.surround < self.least_surround:
            told.append(("is darker around the lungs", "inverted, or shown in another window?"))
        if found.width < self.least_width:
            told.append(("shows narrower lungs", "not a chest, or one lung alone?"))
        return [
            f"This scan {how} than any that the classifier learned from ({more}): {UNRELIABLE}." for how, more in told
        ]


def lung_appearance(voxels: np.ndarray, lungs: np.ndarray, spacing: Triple) -> Appearance:
    """Texture, surround and width of the lungs.

    Args:
        voxels: HU, (K, J, I), k along the patient; whole slices.
        lungs: bool, same shape.
        spacing: mm along (k, j, i).
    """
    if not lungs.any():
        return UNKNOWN
    width = _share_of_width(voxels, lungs)
    around = _box_around(lungs, spacing)
    voxels, lungs = voxels[around], lungs[around]
    step = max(-(-len(voxels) // MOST_SLICES), 1)
    texture, surround = _Mean(), _Mean()
    for hu, mask in zip(voxels[::step], lungs[::step], strict=True):
        if mask.any():
            image = scale(hu, LUNG_WINDOW)
            inner = ndimage.binary_erosion(mask, _NEIGHBOURS)
            texture.add(np.abs(image - ndimage.uniform_filter(image, 3))[inner])
            surround.add(image[_ring(mask, spacing[1:])])
    return Appearance(texture.value, surround.value, width)


def _box_around(lungs: np.ndarray, spacing: Triple) -> Region:
    rows, columns = (math.ceil(SURROUND_MM[1] / size) for size in spacing[1:])
    return bounding_region(lungs, (0, rows, columns))


def _share_of_width(voxels: np.ndarray, lungs: np.ndarray) -> float:
    most = int(lungs.sum(axis=(1, 2)).argmax())
    return _width(lungs[most]) / _width(lungs[most] | body(voxels[most]))


def _width(mask: np.ndarray) -> int:
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1] - columns[0]) + 1


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
