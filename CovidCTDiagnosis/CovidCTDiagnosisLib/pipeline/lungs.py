"""Lungs: found at low resolution, segmented at the fine one, cleaned, told apart (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels, watershed

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, from_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_SEGMENTATION, scale
from ..errors import InputError
from .models import Models
from .tiles import run_network

RIGHT, LEFT = 1, 2
AIR_HU = -1024
BODY_HU = -300
MARGIN_MM = 30.0
SMALLEST_LUNGS_ML = 300.0
ISLAND_ML = 10.0
AIRWAY_BAND_MM, AIRWAY_HU, LARGEST_AIRWAY_ML = 35.0, -930, 120.0
"""Trachea and main bronchi lie this near the middle, are this dark at least, and hold no more than this."""
WALL_HU = -750
NECK_MM = 4.5
GAS_SHARE = 0.05
GAS_HU = -920
"""Gas beside the lungs: below this share of the mask and this mean density; aerated lung is denser."""
ONE_LUNG_MM = 30.0
"""A mask whose middle lies this far from the body's is one lung."""
SLAB_VOXELS = 3_000_000


def segment_lungs(axial: Volume, models: Models, report: Callable[[float], None]) -> np.ndarray:
    """Segment the lungs of an axial CT.

    Args:
        axial: HU, k inferior to superior, j anterior to posterior, i right to left.
        models: gives the network ``lungs`` and its grids.
        report: gets the fraction of the work done.

    Returns:
        uint8 (K, J, I): 1 right lung, 2 left lung.

    Raises:
        InputError: no lungs are found.
    """
    network = models.network("lungs")
    settings = models.preprocessing("lungs")
    spacing = axial.spacing[::-1]
    extent = np.multiply(axial.shape, spacing)

    def segment(grid: WorkingGrid, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        """Logits of lung and the mean HU of the working voxels."""
        # Scanners fill what lies outside the field of view with numbers below air.
        hu = to_grid(np.maximum(axial.voxels, AIR_HU), spacing, grid)
        logits = run_network(
            network,
            scale(hu, LUNG_SEGMENTATION),
            models.device,
            lambda x: x,
            lambda f: report(first + (last - first) * f),
            SLAB_VOXELS,
            overlap=24,
        )[0]
        return logits, hu

    whole = WorkingGrid.covering((0, 0, 0), tuple(extent), _step(settings["coarse_mm"], spacing))
    found = _keep_large(segment(whole, 0.0, 0.2)[0] > 0, whole.step, SMALLEST_LUNGS_ML / 4)
    if found.sum() * np.prod(whole.step) / 1000 < SMALLEST_LUNGS_ML:
        raise InputError(
            "No lungs were found in this image.",
            "Give a CT of the chest in Hounsfield units that shows both lungs.",
        )
    box = _box_mm(bounding_region(found), whole, extent)
    fine = WorkingGrid.covering(*box, _step(settings["fine_mm"], spacing))
    values, hu = segment(fine, 0.2, 0.9)
    lungs = clean_lungs(values, hu, fine.step, _midline(axial, fine))
    if not lungs.any():
        raise InputError("No lungs were found in this image.", "Give a CT that shows the whole chest.")
    report(0.92)
    return _to_volume(values, lungs, fine, axial.shape, spacing)


def _midline(axial: Volume, grid: WorkingGrid) -> float:
    """Column i of the working grid where the body's middle lies."""
    body = axial.voxels[::8, ::8, ::8] > BODY_HU
    columns = np.nonzero(body)[2] * 8 + 0.5
    middle_mm = columns.mean() * axial.spacing[0] if columns.size else axial.shape[2] * axial.spacing[0] / 2
    return float((middle_mm - grid.start[2]) / grid.step[2] - 0.5)


def _step(mm: float, spacing: Triple) -> Triple:
    """Isotropic working grid; slices thicker than it are not cut finer than half of them."""
    return (max(mm, spacing[0] / 2), mm, mm)


def _box_mm(region: Region, grid: WorkingGrid, extent: np.ndarray) -> tuple[Triple, Triple]:
    """The region with its margin, mm, within the volume."""
    start = [max(grid.start[a] + region[a].start * grid.step[a] - MARGIN_MM, 0.0) for a in range(3)]
    stop = [min(grid.start[a] + region[a].stop * grid.step[a] + MARGIN_MM, extent[a]) for a in range(3)]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _keep_large(mask: np.ndarray, step: Triple, smallest_ml: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) * np.prod(step) / 1000 >= smallest_ml
    large[0] = False
    return large[labels]


def clean_lungs(logits: np.ndarray, hu: np.ndarray, step: Triple, midline: float) -> np.ndarray:
    """Sided lungs from logits: islands, airway and bowel gas dropped, holes filled, right and left told apart.

    Args:
        logits: (K, J, I), lung where positive.
        hu: (K, J, I), mean HU of the working voxels.
        step: mm along (k, j, i).
        midline: column i of the body's middle, for a lung that stands alone.

    Returns:
        uint8 (K, J, I): 1 right, 2 left.
    """
    mask = _keep_large(logits > 0, step, ISLAND_ML)
    mask = ndimage.binary_fill_holes(mask & ~_airway(mask, hu, step, midline))
    mask &= ~_hanging_gas(mask, hu, step)
    return tell_sides(mask, step, midline)


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
    lumen = np.isin(components, [n for n in reaches_up if sizes_ml[n] < LARGEST_AIRWAY_ML])
    # The wall goes with the lumen, aerated lung beside it stays.
    return lumen | (ndimage.binary_dilation(lumen) & (hu > WALL_HU))


def _hanging_gas(mask: np.ndarray, hu: np.ndarray, step: Triple) -> np.ndarray:
    """Small pieces that hang on the lungs by a thin neck and hold nothing but air: trachea, bowel gas.

    The mask is eroded until necks break; each core's basin goes where the core belongs.
    """
    depth = ndimage.distance_transform_edt(mask, sampling=step)
    cores, count = ndimage.label(depth > NECK_MM)
    if count < 2:
        return np.zeros(mask.shape, bool)
    numbers = np.arange(count + 1)
    sizes = np.bincount(cores.ravel())
    mean_hu = ndimage.mean(hu, cores, numbers)
    gas = (sizes < GAS_SHARE * mask.sum()) & (mean_hu < GAS_HU)
    gas[0] = False
    return gas[watershed(-depth, cores, mask=mask)] if gas.any() else np.zeros(mask.shape, bool)


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
            return _grow(markers, mask, depth)
    columns = np.nonzero(mask)[2]
    if columns.size == 0:
        return np.zeros(mask.shape, np.uint8)
    if abs(columns.mean() - midline) * step[2] > ONE_LUNG_MM:
        return np.where(mask, RIGHT if columns.mean() < midline else LEFT, 0).astype(np.uint8)
    # Two that cannot be parted otherwise.
    return np.where(mask, np.where(np.arange(mask.shape[2]) < midline, RIGHT, LEFT), 0).astype(np.uint8)


def _grow(markers: np.ndarray, mask: np.ndarray, depth: np.ndarray) -> np.ndarray:
    grown = watershed(-depth, markers.astype(np.int32), mask=mask)
    # Islands that touch neither core belong to the nearer one.
    nearest = ndimage.distance_transform_edt(grown == 0, return_distances=False, return_indices=True)
    return np.where(mask, grown[tuple(nearest)], 0).astype(np.uint8)


def _to_volume(
    logits: np.ndarray, lungs: np.ndarray, grid: WorkingGrid, shape: tuple[int, int, int], spacing: Triple
) -> np.ndarray:
    """The boundary by linear interpolation of the logits, the side by the nearest working voxel."""
    certain = 4.0
    values = np.clip(logits, -certain, certain)
    values[(lungs == 0) & (values > 0)] = -certain
    values[(lungs > 0) & (values <= 0)] = certain
    region = _region_of(grid, shape, spacing)
    inside = from_grid(values, grid, spacing, region, fill=-certain) > 0
    sides = expand_labels(lungs, distance=4)
    nearest = [
        np.clip(
            np.floor(((np.arange(s.start, s.stop) + 0.5) * spacing[a] - grid.start[a]) / grid.step[a]).astype(int),
            0,
            grid.count[a] - 1,
        )
        for a, s in enumerate(region)
    ]
    result = np.zeros(shape, np.uint8)
    result[region] = np.where(inside, sides[np.ix_(*nearest)], 0)
    return result


def _region_of(grid: WorkingGrid, shape: tuple[int, int, int], spacing: Triple) -> Region:
    first = [max(int(np.floor(grid.start[a] / spacing[a])), 0) for a in range(3)]
    last = [min(int(np.ceil(grid.stop[a] / spacing[a])), shape[a]) for a in range(3)]
    return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])
