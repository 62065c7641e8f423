"""What the lung network takes for lung and is none: islands, airway, bowel gas, room air."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from ..ct.regrid import Triple
from .lung_sides import tell_sides

SMALLEST_LUNGS_ML = 300.0
"""Less than this in all is no lungs; a piece of less than a quarter of it may be no lung."""
ISLAND_ML, DENSE_ISLAND_ML = 10.0, 15.0
"""Islands are dropped below the first, and those that hold little air, as food in a stomach, below the second."""
DENSE_HU = -500
"""An island with this median holds little air."""
AIRWAY_BAND_MM, AIRWAY_HU, LARGEST_AIRWAY_ML = 35.0, -930, 120.0
"""Trachea and main bronchi lie this near the middle, are this dark at least, and hold no more than this."""
WALL_HU, WALLED_SHARE = -750, 0.4
"""An airway has a wall denser than this on more than that share of its surface; emphysema has none."""
NECK_MM = 4.5
"""What hangs on the lungs by a neck thinner than twice this is looked at by itself."""
GAS_SHARE = 0.05
GAS_HU = -920
"""Gas beside the lungs: below this share of the mask and this mean density; aerated lung is denser."""
MIXED_GAS, NECK_SHARE, STOOL_SHARE = 0.1, 0.1, 0.2
"""Bowel: more than this share of it is pure gas, and less than this share of its surface lies on other pieces; or it
lies beside pure gas, and less than the last share lies on the rest. All of it lies in the lower half of the lungs: a
small or destroyed lung that stands apart reaches higher."""
ROOM_AIR_HU = -500
"""Air outside the body is darker."""


def keep_large(mask: np.ndarray, step: Triple, smallest_ml: float) -> np.ndarray:
    """The pieces of a mask (K, J, I) that hold so many ml or more; ``step`` in mm along (k, j, i)."""
    labels, count = ndimage.label(mask)
    voxels = np.zeros(count + 1, np.int64)
    for plane in labels:  # numpy counts in a copy of twice the size
        voxels += np.bincount(plane.ravel(), minlength=count + 1)
    large: np.ndarray = voxels * np.prod(step) / 1000 >= smallest_ml
    large[0] = False
    kept: np.ndarray = large[labels]
    return kept


def clean_lungs(logits: np.ndarray, hu: np.ndarray, step: Triple, midline: float) -> np.ndarray:
    """Sided lungs from logits: islands, airway, bowel gas and room air dropped, holes filled, sides told apart.

    Args:
        logits: (K, J, I), lung where positive.
        hu: (K, J, I), mean HU of the working voxels.
        step: mm along (k, j, i).
        midline: column i of the body's middle, for a lung that stands alone.

    Returns:
        uint8 (K, J, I): 1 right, 2 left.
    """
    mask = keep_large(logits > 0, step, ISLAND_ML)
    mask &= ~_islands_of_others(mask, hu, step)
    mask = ndimage.binary_fill_holes(mask & ~_airway(mask, hu, step, midline))
    mask &= ~_hanging_gas(mask, hu, step)
    return tell_sides(mask, step, midline)


def _islands_of_others(mask: np.ndarray, hu: np.ndarray, step: Triple) -> np.ndarray:
    """Small pieces apart from the lungs that are room air, hold nothing but gas, or are smaller and hold little air."""
    pieces, count = ndimage.label(mask)
    numbers = np.arange(count + 1)
    sizes_ml = np.bincount(pieces.ravel()) * np.prod(step) / 1000
    small = sizes_ml < SMALLEST_LUNGS_ML / 4
    density = ndimage.mean(hu, pieces, numbers)
    outside = ndimage.mean(_room_air(hu, mask & ~small[pieces]), pieces, numbers) > 0.5
    food = (density > DENSE_HU) & (sizes_ml < DENSE_ISLAND_ML)
    drop = small & ((density < GAS_HU) | outside | food)
    drop[0] = False
    return drop[pieces]


def _room_air(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Air that reaches the side of the working grid within its axial slice, apart from these lungs."""
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    air, count = ndimage.label(hu < ROOM_AIR_HU, in_plane)
    outside = np.zeros(count + 1, bool)
    for side in (air[:, 0], air[:, -1], air[:, :, 0], air[:, :, -1]):
        outside[side.ravel()] = True
    # A CT may be cropped so that the lungs themselves are cut.
    outside[air[lungs]] = False
    outside[0] = False
    return outside[air]


def _airway(mask: np.ndarray, hu: np.ndarray, step: Triple, midline: float) -> np.ndarray:
    """Trachea and main bronchi: pure air near the body's middle that reaches up to the lungs' tops."""
    if not mask.any():
        return mask
    central = np.abs(np.arange(mask.shape[2]) - midline) * step[2] < AIRWAY_BAND_MM
    components, count = ndimage.label((hu < AIRWAY_HU) & central)
    used = np.flatnonzero(mask.any(axis=(1, 2)))
    upper = used[0] + round(0.75 * (used[-1] - used[0]))
    reaches_up = np.unique(components[upper:][mask[upper:] & (components[upper:] > 0)])
    sizes_ml = np.bincount(components.ravel(), minlength=count + 1) * np.prod(step) / 1000
    # Emphysema may be as dark, but has no wall around it.
    rims = np.where(components > 0, 0, ndimage.maximum_filter(components, 3))
    walled = ndimage.mean(hu > WALL_HU, rims, np.arange(count + 1)) > WALLED_SHARE
    lumen = np.isin(components, [n for n in reaches_up if sizes_ml[n] < LARGEST_AIRWAY_ML and walled[n]])
    # The wall goes with the lumen, aerated lung beside it stays.
    return lumen | (ndimage.binary_dilation(lumen) & (hu > WALL_HU))


def _hanging_gas(mask: np.ndarray, hu: np.ndarray, step: Triple) -> np.ndarray:
    """Small pieces that hang on the lungs by a thin neck, or stand apart, and hold gas: trachea, stomach, bowel.

    The mask is eroded until necks break; each core's basin goes where the core belongs. Bowel holds more than gas:
    what hangs on its gas alone goes with it.
    """
    depth = ndimage.distance_transform_edt(mask, sampling=step)
    cores, count = ndimage.label(depth > NECK_MM)
    if count == 0:
        return np.zeros(mask.shape, bool)
    basins = watershed(-depth, cores, mask=mask)
    # Islands too thin for a core of their own.
    islands, more = ndimage.label(mask & (basins == 0))
    basins = np.where(islands > 0, islands + count, basins)
    numbers = np.arange(count + more + 1)
    small = np.bincount(basins.ravel()) < GAS_SHARE * mask.sum()
    pure = np.concatenate([ndimage.mean(hu, cores, numbers[: count + 1]), np.full(more, np.inf)]) < GAS_HU
    mixed = ndimage.mean(hu < AIRWAY_HU, basins, numbers) > MIXED_GAS
    pure &= small
    pure[0] = False
    gas = pure[basins]
    loops = mixed & (contact_shares(basins) < NECK_SHARE)
    # Stool beside gas may lie broadly on that, but not on the rest.
    stool = np.isin(numbers, basins[ndimage.binary_dilation(gas)]) & (_contact_with(basins, ~pure) < STOOL_SHARE)
    bowel = small & (loops | stool) & _is_low(basins)
    bowel[0] = False
    return gas | _with_what_hangs_on_it(bowel[basins], mask)


def _contact_with(pieces: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of each piece's surface that lies on these others (bool, by number)."""
    kept = np.where(others[pieces], pieces, 0)
    contact = contact_shares(kept)
    return np.pad(contact, (0, len(others) - len(contact)))


def _is_low(pieces: np.ndarray) -> np.ndarray:
    """Of each piece, numbered from 1, whether all of it lies in the lower half of the slices that hold any."""
    used = np.flatnonzero(pieces.any(axis=(1, 2)))
    higher = pieces[(used[0] + used[-1] + 1) // 2 :]
    return np.bincount(higher.ravel(), minlength=pieces.max() + 1) == 0


def contact_shares(pieces: np.ndarray) -> np.ndarray:
    """Share of each piece's surface that lies on other pieces.

    Args:
        pieces: (K, J, I), numbered from 1; 0 between them.

    Returns:
        by number, in voxel faces; the volume's own border is no surface.
    """
    surface = np.zeros((2, pieces.max() + 1))
    for axis in range(3):
        first, second = (np.take(pieces, range(a, pieces.shape[axis] - 1 + a), axis) for a in (0, 1))
        faces = first != second
        shared = (first > 0) & (second > 0)
        for side in (first, second):
            for row, these in enumerate((faces & shared, faces)):
                surface[row] += np.bincount(side[these], minlength=surface.shape[1])
    return surface[0] / np.maximum(surface[1], 1)


def _with_what_hangs_on_it(gas: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Bowel gas, and small islands of the rest of the mask that touch it."""
    islands, count = ndimage.label(mask & ~gas)
    touching = np.zeros(count + 1, bool)
    touching[islands[ndimage.binary_dilation(gas)]] = True
    drop = touching & (np.bincount(islands.ravel()) < GAS_SHARE * mask.sum())
    drop[0] = False
    return gas | drop[islands]
