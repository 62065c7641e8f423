"""Lesions that are only the partial-volume effect: thin skins of lung on liver, spleen or heart, or under an apex.

Where the diaphragm is nearly level, a slice shows half of it and half of the lung above: as dense as ground glass, or
as consolidation. Breathing blurs it further. The same is seen where an apex ends. What tells it apart from a lesion is
that it is thin and lies all on what is not lung, or has no lung anywhere above it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

THIN_MM = 6.0
SHARE = 0.8
"""Of a lesion's voxels that lie in thin skins, from which on it is none."""
_TOUCHING = np.ones((3, 3, 3), bool)


def partial_volume_skins(lesions: np.ndarray, lungs: np.ndarray, step_mm: float) -> np.ndarray:
    """Lesions that are skins over a dome or under a roof.

    Args:
        lesions, lungs: bool (K, J, I), k inferior to superior.
        step_mm: increment of k.

    Returns:
        bool (K, J, I), whole lesions; none where the slices are thicker than ``THIN_MM``.
    """
    thin = _thin_runs(lesions, step_mm)
    lung_above = np.logical_or.accumulate(lungs[::-1])
    on_dome, under_roof = _resting(lesions, lungs), _resting(lesions[::-1], lung_above)[::-1]
    labels, count = ndimage.label(lesions, _TOUCHING)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    skins = [np.bincount(labels[thin & skin], minlength=count + 1) for skin in (on_dome, under_roof)]
    found = np.max(skins, axis=0) >= SHARE * sizes
    found[0] = False
    return found[labels]


def _thin_runs(lesions: np.ndarray, step_mm: float) -> np.ndarray:
    """Voxels whose lesion is thin along k."""
    longest = int(THIN_MM / step_mm + 1e-6)
    window = np.ones((longest + 1, 1, 1), bool)
    # What an opening keeps has room for a longer run.
    return lesions & ~ndimage.binary_opening(lesions, window)


def _resting(lesions: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Voxels below whose lesion, along k, there is no lung; where the scan ends nothing is known."""
    resting = np.zeros_like(lesions)
    for k in range(1, len(lesions)):
        on_dome = np.where(lesions[k - 1], resting[k - 1], ~lungs[k - 1])
        resting[k] = lesions[k] & on_dome
    return resting
