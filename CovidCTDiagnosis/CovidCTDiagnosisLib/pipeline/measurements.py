"""The one set of measurements, from which every table is derived: volumes, involvement, mean HU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..networks import LESION_CLASSES
from .lung_sides import LEFT, RIGHT

SIDES = ("right", "left", "both")
ANY = "any"

_NUMBER = {"right": RIGHT, "left": LEFT}
# Sums are taken over (side, class) pairs in one pass: the lung's number times this, plus the class.
_STRIDE = len(LESION_CLASSES)


def measure(hu: np.ndarray, lungs: np.ndarray, lesions: np.ndarray, voxel_ml: float) -> dict[str, Any]:
    """Measure lungs and lesions.

    Args:
        hu: (K, J, I).
        lungs: uint8 (K, J, I), 1 right, 2 left.
        lesions: uint8 (K, J, I), 0 none, else the class's number in ``networks.LESION_CLASSES``; inside the
            lungs.
        voxel_ml: volume of a voxel.

    Returns:
        ``{"lungs": {side: {volume_ml, mean_hu, involvement_percent}}, "lesions": [{class, side, volume_ml,
        percent_of_lung, mean_hu}]}``; None where a lung, or for mean HU a lesion, is missing.
    """
    inside = lungs > 0
    pairs = lungs[inside].astype(np.intp) * _STRIDE + lesions[inside]
    size = (max(_NUMBER.values()) + 1) * _STRIDE
    counts = np.bincount(pairs, minlength=size).reshape(-1, _STRIDE)
    sums = np.bincount(pairs, weights=hu[inside], minlength=size).reshape(-1, _STRIDE)

    def rows(side: str) -> list[int]:
        return [_NUMBER[side]] if side in _NUMBER else sorted(_NUMBER.values())

    def total(table: np.ndarray, side: str, classes: slice) -> float:
        return float(table[rows(side), classes].sum())

    everything, lesion = slice(None), slice(1, None)
    measured_lungs = {}
    for side in SIDES:
        voxels = total(counts, side, everything)
        measured_lungs[side] = {
            "volume_ml": voxels * voxel_ml,
            "mean_hu": _ratio(total(sums, side, everything), voxels),
            "involvement_percent": _ratio(100 * total(counts, side, lesion), voxels),
        }
    measured_lesions = []
    for number, name in [*enumerate(LESION_CLASSES[1:], start=1), (0, ANY)]:
        classes = slice(number, number + 1) if number else lesion
        for side in SIDES:
            voxels = total(counts, side, classes)
            measured_lesions.append(
                {
                    "class": name,
                    "side": side,
                    "volume_ml": voxels * voxel_ml,
                    "percent_of_lung": _ratio(100 * voxels, total(counts, side, everything)),
                    "mean_hu": _ratio(total(sums, side, classes), voxels),
                }
            )
    return {"lungs": measured_lungs, "lesions": measured_lesions}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
