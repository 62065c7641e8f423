"""Lesions that reach out of the lungs: consolidated lung that lung segmentation has missed is still lung (paper 3)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..ct.regrid import Triple, WorkingGrid, bounding_region, containing_voxels
from .lung_cleaning import contact_shares

THICK = np.ones((1, 3, 3), bool)
"""Working voxels that pathological tissue must fill outside the lungs somewhere, to be more than a blurred boundary."""
MOST_OUTSIDE, LOBES_OUTSIDE, LOBES_TOUCH = 0.75, 2.0, (0.2, 0.6)
"""Pathological tissue outside the lungs, as a share of the lungs. Consolidated lobes may fill more: they lie on a side
of the aerated lung, on this share of its surface. A body taken for lesion lies all around it, or a rim away from it."""
BROAD_CONTACT, SMALL_OUTSIDE = 0.3, 0.03
"""A piece outside the lungs with less of its surface on them is taken for a blurred apex or rib cartilage if it is
smaller than this share of the lungs."""
NEAR = (4, 16, 16)
"""Working voxels around them in which the nearer lung is looked for."""


def reach_out(lungs: np.ndarray, pathological: np.ndarray) -> np.ndarray:
    """Pathological tissue outside the lungs that hangs together with them and is more than a rim of the boundary.

    A small piece must lie broadly on them.
    If it fills twice as much as the lungs, or more than three quarters and does not lie on them as lobes do, the
    network has taken other tissue for it, and nothing is added.

    Args:
        lungs: bool (K, J, I).
        pathological: bool, same shape.

    Returns:
        bool, same shape: false in the lungs.
    """
    pieces, _ = ndimage.label(lungs | pathological)
    touched = np.unique(pieces[lungs])
    outside = np.isin(pieces, touched[touched > 0]) & ~lungs
    thick = ndimage.binary_opening(outside, THICK)
    if not thick.any():
        return thick
    pieces, count = ndimage.label(ndimage.binary_propagation(thick, mask=outside))
    small = np.bincount(pieces.ravel()) < SMALL_OUTSIDE * lungs.sum()
    contact = contact_shares(np.where(lungs, count + 1, pieces))
    grown = (pieces > 0) & (~small | (contact[:-1] >= BROAD_CONTACT))[pieces]
    most = LOBES_OUTSIDE if LOBES_TOUCH[0] <= contact[-1] <= LOBES_TOUCH[1] else MOST_OUTSIDE
    return grown if grown.sum() < most * lungs.sum() else np.zeros_like(grown)


def widened_lungs(
    lungs: np.ndarray, inside: np.ndarray, outside: np.ndarray, grid: WorkingGrid, spacing: Triple
) -> np.ndarray:
    """The lungs with what lies outside of them, which gets the number of the nearer side.

    Also what lies between in working voxels that are lung, so that no seam parts the two.

    Args:
        lungs: uint8 on the CT's grid: 1 right, 2 left.
        inside: uint8 on the working grid, the same.
        outside: bool on the working grid, see ``reach_out``.
        grid: the working grid.
        spacing: mm of the CT along (k, j, i).

    Returns:
        uint8 of the shape of ``lungs``.
    """
    if not outside.any():
        return lungs
    near = bounding_region(outside, NEAR)
    places = ndimage.distance_transform_edt(inside[near] == 0, return_distances=False, return_indices=True)
    sides = np.zeros(inside.shape, np.uint8)
    joined = outside[near] | (ndimage.binary_dilation(outside[near], np.ones((3, 3, 3), bool)) & (inside[near] > 0))
    sides[near] = np.where(joined, inside[near][tuple(places)], 0)
    own = WorkingGrid.of_volume(lungs.shape, spacing)  # type: ignore[arg-type]
    holds = [containing_voxels(own, grid, axis) for axis in range(3)]
    return np.where(lungs > 0, lungs, _take(sides, holds))


def _take(values: np.ndarray, holds: list[np.ndarray]) -> np.ndarray:
    """``values[np.ix_(*holds)]``, axis by axis: far faster on large volumes."""
    for axis, indices in enumerate(holds):
        values = values.take(indices, axis)
    return values
