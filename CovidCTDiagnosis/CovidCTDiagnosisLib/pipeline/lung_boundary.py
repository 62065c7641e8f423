"""The boundary of the lungs on the CT's own grid.

The network works on a grid coarser than the CT's. Near its boundary the CT's own voxels decide between aerated
lung and tissue; deeper inside, and where the lung is consolidated, the network does.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, containing_voxels, from_grid, region_grid
from ..ct.volume import Volume
from .lung_cleaning import AIRWAY_HU, keep_large
from .lung_sides import LEFT, RIGHT

SPECK_ML = 1.0
"""Pieces that the boundary leaves on the CT's own grid are dropped below this."""
PADDING_HU = -1500
"""Below lies nothing but the padding around a scanner's circle."""
BOUNDARY_HU = -470
"""Between aerated lung and tissue; agrees best with the expert labels of the training CT ``ct-64``."""
BAND_MM = 3.0
"""This near to the network's boundary the CT's own voxels decide: about one working voxel."""
DENSE_MM = 6.0
"""Where no aerated lung is this near the lung is consolidated, and HU cannot tell it from the chest wall."""
SMOOTHING_MM = 0.8
"""Half the width of the mean that takes the noise out of the CT before it decides."""
FILLED_SLICES = 16
"""Slices of the CT handled at a time, so that no copy of the whole is made."""


def boundary_depth(logits: np.ndarray, lungs: np.ndarray, hu: np.ndarray, step: Triple) -> np.ndarray:
    """How far inside the lungs a working voxel lies, for ``refine_lungs``.

    Args:
        logits: (K, J, I), lung where positive.
        lungs: (K, J, I), the cleaned lungs.
        hu: (K, J, I), mean HU of the working voxels.
        step: mm along (k, j, i).

    Returns:
        float32 (K, J, I): mm from the lungs' boundary, positive inside. Where no aerated lung is near, and in gas
        that was cleaned away, it is so steep that the network's boundary stays as it is.
    """
    mask = lungs > 0
    half = min(step) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=step) - half
    outside = ndimage.distance_transform_edt(~mask, sampling=step) - half
    depth = np.where(mask, inside, -outside).astype(np.float32)
    dense = ndimage.distance_transform_edt(~(mask & (hu < BOUNDARY_HU)), sampling=step) > DENSE_MM
    # What cleaning took away, and pure air beside the lungs, must not grow back; nor must its walls.
    dropped = ndimage.binary_dilation(((logits > 0) | (hu < AIRWAY_HU)) & ~mask) & ~mask
    certain = 4.0
    steep = np.clip(logits, -certain, certain)
    steep[~mask & ((steep > 0) | dropped)] = -certain
    steep[mask & (steep <= 0)] = certain
    decided = dense | dropped
    depth[decided] = 10 * BAND_MM * steep[decided]
    return depth


def refine_lungs(depth: np.ndarray, lungs: np.ndarray, grid: WorkingGrid, axial: Volume) -> np.ndarray:
    """Lungs on the CT's own grid: HU decide within ``BAND_MM`` of the boundary, else ``depth`` does.

    Args:
        depth: (K, J, I) of the working grid, mm inside the lungs; see ``boundary_depth``.
        lungs: (K, J, I) of the working grid, 1 right, 2 left.
        grid: the working grid.
        axial: HU.

    Returns:
        uint8, of the CT's shape: 1 right, 2 left; the side is that of the nearest working voxel.
    """
    spacing = axial.spacing[::-1]
    region = _region_of(grid, axial.shape, spacing)
    sides = expand_labels(lungs, distance=4)
    nearest = [containing_voxels(region_grid(region, spacing), grid, axis) for axis in range(3)]
    width = [1, *(1 + 2 * round(SMOOTHING_MM / s) for s in spacing[1:])]
    result = np.zeros(axial.shape, np.uint8)
    for first in range(region[0].start, region[0].stop, FILLED_SLICES):
        part = (slice(first, min(first + FILLED_SLICES, region[0].stop)), region[1], region[2])
        at = from_grid(depth, grid, spacing, part, fill=-10 * BAND_MM)
        hu = ndimage.uniform_filter(axial.voxels[part].astype(np.float32), width)
        inside = (at > BAND_MM) | ((at > -BAND_MM) & (hu < BOUNDARY_HU))
        inside &= axial.voxels[part] > PADDING_HU
        rows = nearest[0][first - region[0].start :][:FILLED_SLICES]
        result[part] = np.where(inside, sides[np.ix_(rows, nearest[1], nearest[2])], 0)
    return result


def drop_specks(lungs: np.ndarray, spacing: Triple) -> None:
    """Drop pieces below ``SPECK_ML`` and fill what a lung encloses, in place.

    Args:
        lungs: uint8 (K, J, I): 1 right, 2 left.
        spacing: mm along (k, j, i).
    """
    # First both, as a speck may lie in the other lung.
    for side in _sides_in(lungs):
        part = lungs[bounding_region(lungs == side)]
        mask = part == side
        part[mask & ~keep_large(mask, spacing, SPECK_ML)] = 0
    for side in _sides_in(lungs):
        part = lungs[bounding_region(lungs == side)]
        part[ndimage.binary_fill_holes(part == side) & (part == 0)] = side


def _sides_in(lungs: np.ndarray) -> list[int]:
    return [side for side in (RIGHT, LEFT) if (lungs == side).any()]


def _region_of(grid: WorkingGrid, shape: tuple[int, int, int], spacing: Triple) -> Region:
    first = [max(int(np.floor(grid.start[a] / spacing[a])), 0) for a in range(3)]
    last = [min(int(np.ceil(grid.stop[a] / spacing[a])), shape[a]) for a in range(3)]
    return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])
