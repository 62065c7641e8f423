"""Classical lung labels to learn from: thresholding, the airway left out, holes filled.

They fail where lung is consolidated; training plants consolidation on top of them (``planting``), and adds
the known lesion masks to the labels of diseased slices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from skimage import measure, morphology
from skimage.segmentation import expand_labels

AIR_HU = -430
"""Between aerated lung and tissue; agrees best with the expert labels of ``ct-64``."""

AIRWAY_RIM_MM = 4.0
LEAST_WALLED = 0.5
"""Share of the rim of trachea and main bronchi that is tissue. Dark lung, into which they lead, has air around it."""

CLOSING_MM = 4.0
LARGEST_HOLE_MM2 = 400.0


def label_lungs(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Lungs of a whole-chest CT without large consolidations.

    Args:
        hu: (K, J, I), axial, k inferior to superior.
        spacing: mm along (k, j, i).

    Returns:
        bool array of the same shape: both lungs with their vessels, without trachea and main bronchi.
    """
    air = (ndimage.uniform_filter(hu.astype(np.float32), (1, 3, 3)) < AIR_HU) & ~_outside(hu)
    air &= ~_airway(air, hu, spacing)
    components = measure.label(air)
    sizes = np.bincount(components.ravel()) * np.prod(spacing) / 1000
    sizes[0] = 0
    lungs = np.isin(components, np.flatnonzero(sizes > 300))
    radius = max(round(CLOSING_MM / spacing[1]), 1)
    largest_hole = LARGEST_HOLE_MM2 / (spacing[1] * spacing[2])
    return np.stack([_smooth(s, radius, largest_hole) for s in lungs])


def label_lung_slice(hu: np.ndarray, lesions: np.ndarray | None = None, trusted: bool = False) -> np.ndarray:
    """Lungs of one slice cropped around the lungs, known lesions added.

    Args:
        hu: (J, I).
        lesions: bool (J, I) or None.
        trusted: whether all lesions lie in the lungs; otherwise see ``lesions_of_lungs``.

    Returns:
        bool (J, I).
    """
    lungs = aerated_lungs(hu)
    if lesions is not None:
        lungs |= lesions if trusted else lesions_of_lungs(lesions, lungs)
    return _smooth(lungs, max(round(0.015 * max(hu.shape)), 2), 0.008 * hu.size)


def aerated_lungs(hu: np.ndarray) -> np.ndarray:
    """Air of one slice (J, I) that is neither outside the body, nor trachea, nor small; bool."""
    air = ndimage.gaussian_filter(hu.astype(np.float32), 1) < AIR_HU
    air = morphology.opening(air, morphology.disk(2))
    keep = np.zeros_like(air)
    for region in measure.regionprops(measure.label(air)):
        top, left, bottom, right = region.bbox
        rows, columns = region.coords.T
        on_border = np.sum((rows == 0) | (rows == hu.shape[0] - 1))
        on_border += np.sum((columns == 0) | (columns == hu.shape[1] - 1))
        outside = on_border > 0.7 * np.sqrt(region.area)
        small = region.area < 0.004 * hu.size
        central = abs((left + right) / 2 - hu.shape[1] / 2) < 0.12 * hu.shape[1]
        round_ = region.area > 0.6 * (bottom - top) * (right - left)
        airway = central and round_ and region.area < 0.02 * hu.size
        if not (outside or small or airway):
            keep[rows, columns] = True
    return keep


def lesions_of_lungs(lesions: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """The pieces of a machine-made lesion mask that lie in the lungs: some lie on ribs, spine or the picture's edge.

    Args:
        lesions: bool (J, I).
        lungs: bool (J, I), aerated lung.

    Returns:
        bool (J, I): pieces that hold some aerated lung, lie mostly within the lungs' convex hulls or border on
        aerated lung for a good part of their rim, as consolidation does.
    """
    hulls = np.zeros_like(lungs)
    for region in measure.regionprops(measure.label(lungs)):
        top, left, bottom, right = region.bbox
        hulls[top:bottom, left:right] |= region.image_convex
    pieces = measure.label(lesions)
    rims = np.where(lesions, 0, expand_labels(pieces, 4))
    near = ndimage.binary_dilation(lungs, iterations=4)
    keep = _share(pieces, lungs) > 0.2
    keep |= _share(pieces, hulls) > 0.6
    keep |= _share(rims, near, len(keep)) > 0.12
    keep[0] = False
    return keep[pieces]


def _share(labels: np.ndarray, mask: np.ndarray, count: int = 0) -> np.ndarray:
    """Share of each label's pixels that the mask holds."""
    sizes = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
    return np.bincount(labels.ravel(), mask.ravel(), minlength=count) / sizes


def _smooth(mask: np.ndarray, radius: int, largest_hole: float) -> np.ndarray:
    """Close gaps up to the radius (pixels) without growing, and fill holes no larger than this (pixels)."""
    padded = np.pad(mask, 2 * radius)
    # A closing with a disk, by distances: far faster than a large structuring element.
    grown = ndimage.distance_transform_edt(~padded) <= radius if mask.any() else padded
    closed = ndimage.distance_transform_edt(grown) > radius
    closed = closed[2 * radius : -2 * radius, 2 * radius : -2 * radius] | mask
    holes = measure.label(ndimage.binary_fill_holes(closed) & ~closed)
    small = np.bincount(holes.ravel()) < largest_hole
    small[0] = False
    return closed | small[holes]


def _outside(hu: np.ndarray) -> np.ndarray:
    """Air that reaches the border of its axial slice."""
    outside = np.zeros(hu.shape, bool)
    for k, s in enumerate(hu):
        labels = measure.label(s < AIR_HU)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        outside[k] = np.isin(labels, border[border > 0])
    return outside


def _airway(air: np.ndarray, hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Trachea and main bronchi: followed downwards from a small round hole near the middle of the top slices."""
    airway = np.zeros(air.shape, bool)
    pixel_cm2 = spacing[1] * spacing[2] / 100
    tissue = np.argwhere((hu > -300).any(0))
    middle = tissue.mean(0)
    previous: np.ndarray | None = None
    for k in range(air.shape[0] - 1, -1, -1):
        # The very dark core parts the airway from the lung beside it.
        core = air[k] & (hu[k] < -880) if previous is not None else air[k]
        here = np.zeros_like(core)
        for region in measure.regionprops(measure.label(core)):
            area = region.area * pixel_cm2
            if previous is None:
                near = np.hypot(*((np.array(region.centroid) - middle) * spacing[1:])) < 50
                fits = near and 0.8 < area < 6 and region.solidity > 0.85
            else:
                fits = area < 6 and previous[region.coords[:, 0], region.coords[:, 1]].any()
                fits = fits and _walled(region, hu[k], spacing[1])
            if fits:
                here[region.coords[:, 0], region.coords[:, 1]] = True
        if here.any():
            airway[k] = ndimage.binary_dilation(here, iterations=max(round(1.5 / spacing[1]), 1))
            previous = here
        elif previous is not None:
            break
    return airway


def _walled(region: Any, hu: np.ndarray, pixel_mm: float) -> bool:
    """Whether the rim of a region of the slice (J, I) is mostly no air."""
    width = max(round(AIRWAY_RIM_MM / pixel_mm), 1) + 1
    top, left, bottom, right = region.bbox
    box = np.s_[max(top - width, 0) : bottom + width, max(left - width, 0) : right + width]
    core = np.zeros(hu.shape, bool)
    core[region.coords[:, 0], region.coords[:, 1]] = True
    distance = ndimage.distance_transform_edt(~core[box])
    rim = (distance > 1) & (distance <= width)
    return bool(np.mean(hu[box][rim] > AIR_HU) > LEAST_WALLED)
