"""Telling the right lung from the left, also where they touch."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from ..ct.regrid import Triple, WorkingGrid
from ..ct.volume import Volume

RIGHT, LEFT = 1, 2
BODY_HU = -300
"""The body, and not the lungs or the room, is denser."""
ONE_LUNG_MM, WIDEST_LUNG_MM = 30.0, 170.0
"""A mask whose middle lies that far from the body's is one lung, and so is one no wider: in a narrow field of view, or
with a lung that has grown across the middle, the two middles lie near each other."""
SMALL_LUNG = 0.02
"""A piece on the other side is a lung, destroyed or cut off, from this share of both on."""


def midline(axial: Volume, grid: WorkingGrid) -> float:
    """Column i of a working grid where the body's middle lies."""
    body = axial.voxels[::8, ::8, ::8] > BODY_HU
    columns = np.nonzero(body)[2] * 8 + 0.5
    middle_mm = columns.mean() * axial.spacing[0] if columns.size else axial.shape[2] * axial.spacing[0] / 2
    return float((middle_mm - grid.start[2]) / grid.step[2] - 0.5)


def tell_sides(mask: np.ndarray, step: Triple, midline: float) -> np.ndarray:
    """Right (1) and left (2) of a lung mask, also where the two touch.

    The mask is eroded until it falls apart into two large cores on both sides of the body's middle (column
    ``midline``), which are grown back through it.
    """
    depth = ndimage.distance_transform_edt(mask, sampling=step)
    whole = mask.sum()
    for radius in np.arange(0.0, 30.0, 1.5):
        labels, _ = ndimage.label(depth > radius)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        cores = np.flatnonzero(sizes > 0.1 * whole)
        if len(cores) >= 2:
            first, second = sorted(cores, key=lambda c: -sizes[c])[:2]
            positions = {c: np.nonzero(labels == c)[2].mean() for c in (first, second)}
            right, left = sorted(positions, key=lambda c: positions[c])
            if not positions[right] < midline < positions[left]:
                continue  # two lobes of one lung
            markers = np.where(labels == right, RIGHT, np.where(labels == left, LEFT, 0))
            return _grow(markers, mask, depth, (positions[right] + positions[left]) / 2)
    columns = np.nonzero(mask)[2]
    if columns.size == 0:
        return np.zeros(mask.shape, np.uint8)
    apart = _sides_apart(mask, midline)
    if apart is not None:
        return apart
    width = (columns.max() - columns.min() + 1) * step[2]
    if width < WIDEST_LUNG_MM or abs(columns.mean() - midline) * step[2] > ONE_LUNG_MM:
        return np.where(mask, RIGHT if columns.mean() < midline else LEFT, 0).astype(np.uint8)
    # Two that cannot be parted otherwise.
    return np.where(mask, np.where(np.arange(mask.shape[2]) < midline, RIGHT, LEFT), 0).astype(np.uint8)


def _sides_apart(mask: np.ndarray, midline: float) -> np.ndarray | None:
    """Pieces by the side that each lies on, or None if all of more than ``SMALL_LUNG`` lie on one."""
    pieces, count = ndimage.label(mask)
    numbers = range(1, count + 1)
    on_the_right = np.array([False, *(c[2] < midline for c in ndimage.center_of_mass(mask, pieces, numbers))])
    large = np.bincount(pieces.ravel()) > SMALL_LUNG * mask.sum()
    large[0] = False
    if len(set(on_the_right[large].tolist())) < 2:
        return None
    return np.where(mask, np.where(on_the_right, RIGHT, LEFT)[pieces], 0).astype(np.uint8)


def _grow(markers: np.ndarray, mask: np.ndarray, depth: np.ndarray, middle: float) -> np.ndarray:
    """Sides grown from their cores; islands that touch neither, as a base below effusion, by the column ``middle``."""
    grown = watershed(-depth, markers.astype(np.int32), mask=mask)
    islands, count = ndimage.label(mask & (grown == 0))
    centers = ndimage.center_of_mass(mask, islands, range(1, count + 1))
    side = np.array([0, *(RIGHT if center[2] < middle else LEFT for center in centers)])
    return np.where(islands, side[islands], grown).astype(np.uint8)
