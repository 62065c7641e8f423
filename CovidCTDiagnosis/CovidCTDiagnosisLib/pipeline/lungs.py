"""Lungs: found at low resolution, segmented at the fine one, cleaned, told apart (paper section 4.1).

The network works on a grid coarser than the CT's. Near its boundary the CT's own voxels decide between aerated
lung and tissue; deeper inside, and where the lung is consolidated, the network does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit
from skimage.segmentation import expand_labels, watershed

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, from_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_SEGMENTATION, scale
from ..errors import InputError
from .models import Models
from .tiles import affordable_voxels, run_network

RIGHT, LEFT = 1, 2
AIR_HU = -1024
BODY_HU = -300
MARGIN_MM = 20.0
SMALLEST_LUNGS_ML = 300.0
ISLAND_ML, DENSE_ISLAND_ML = 10.0, 15.0
SPECK_ML = 1.0
"""Islands on the working grid, those of them that hold little air, as food in a stomach, and those that the boundary
leaves on the CT's own, are dropped below these."""
DENSE_HU = -500
AIRWAY_BAND_MM, AIRWAY_HU, LARGEST_AIRWAY_ML = 35.0, -930, 120.0
"""Trachea and main bronchi lie this near the middle, are this dark at least, and hold no more than this."""
WALL_HU, WALLED_SHARE = -750, 0.4
NECK_MM = 4.5
GAS_SHARE = 0.05
GAS_HU = -920
"""Gas beside the lungs: below this share of the mask and this mean density; aerated lung is denser."""
MIXED_GAS, NECK_SHARE, STOOL_SHARE = 0.1, 0.1, 0.2
"""Bowel: more than this share of it is pure gas, and less than this share of its surface lies on other pieces; or it
lies beside pure gas, and less than the last share lies on the rest. All of it lies in the lower half of the lungs: a
small or destroyed lung that stands apart reaches higher."""
ONE_LUNG_MM = 30.0
"""A mask whose middle lies this far from the body's is one lung."""
SMALL_LUNG = 0.02
"""A piece on the other side is a lung, destroyed or cut off, from this share of both on."""
SLAB_VOXELS, BYTES_PER_VOXEL = 3_000_000, 480
"""The most that the network sees at once, and its feature maps at their peak, a working voxel."""
ROOM_AIR_HU = -500
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


@dataclass(frozen=True)
class Lungs:
    """Lungs of a CT and how sure the network is of them.

    Attributes:
        labels: uint8 (K, J, I) on the CT's grid: 1 right lung, 2 left lung.
        probability: float16 (K, J, I) on the fine working grid, of lung: the network's, before anything is cleaned.
        grid: that working grid.
    """

    labels: np.ndarray
    probability: np.ndarray
    grid: WorkingGrid

    def probabilities(self, axial: Volume) -> dict[str, Volume]:
        """``lung``, where it lies in the patient of the axial CT."""
        return {"lung": self.grid.in_patient(self.probability, axial)}


def segment_lungs(
    axial: Volume,
    models: Models,
    report: Callable[[float], None],
    warn: Callable[[str], None] = lambda text: None,
) -> Lungs:
    """Segment the lungs of an axial CT.

    Args:
        axial: HU, k inferior to superior, j anterior to posterior, i right to left.
        models: gives the network ``lungs`` and its grids.
        report: gets the fraction of the work done.
        warn: told when memory runs out and what is done about it.

    Returns:
        Labels and the probability of lung.

    Raises:
        InputError: no lungs are found.
    """
    settings = models.preprocessing("lungs")
    spacing = axial.spacing[::-1]
    extent = np.multiply(axial.shape, spacing)

    def segment(grid: WorkingGrid, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        """Logits of lung and the mean HU of the working voxels."""
        hu = sample_hu(axial, grid)
        logits = run_network(
            models.network("lungs"),  # anew: where a graphics card is too small, the one before has left it
            scale(hu, LUNG_SEGMENTATION),
            models.device,
            lambda x: x,
            lambda f: report(first + (last - first) * f),
            affordable_voxels(models.device, SLAB_VOXELS, BYTES_PER_VOXEL),
            overlap=24,
            warn=warn,
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
    lungs = clean_lungs(values, hu, fine.step, midline(axial, fine))
    if not lungs.any():
        raise InputError("No lungs were found in this image.", "Give a CT that shows the whole chest.")
    report(0.92)
    refined = refine_lungs(boundary_depth(values, lungs, hu, fine.step), lungs, fine, axial)
    drop_specks(refined, spacing)
    return Lungs(refined, expit(values).astype(np.float16), fine)


def sample_hu(axial: Volume, grid: WorkingGrid) -> np.ndarray:
    """A CT on a working grid, float32 of shape ``grid.count``, read some slices at a time to save memory."""
    spacing = axial.spacing[::-1]
    result = np.empty(grid.count, np.float32)
    # A working slice needs the CT's slices that it covers, and a neighbour to interpolate.
    thick = max(round(FILLED_SLICES * spacing[0] / grid.step[0]), 1)
    for first in range(0, grid.count[0], thick):
        count = min(thick, grid.count[0] - first)
        start = grid.start[0] + first * grid.step[0]
        low = int(np.clip(np.floor(start / spacing[0]) - 1, 0, axial.shape[0] - 1))
        high = int(np.clip(np.ceil((start + count * grid.step[0]) / spacing[0]) + 1, low + 1, axial.shape[0]))
        part = WorkingGrid(
            (start - low * spacing[0], grid.start[1], grid.start[2]), grid.step, (count, grid.count[1], grid.count[2])
        )
        # Scanners fill what lies outside the field of view with numbers below air.
        result[first : first + count] = to_grid(np.maximum(axial.voxels[low:high], AIR_HU), spacing, part)
    return result


def midline(axial: Volume, grid: WorkingGrid) -> float:
    """Column i of a working grid where the body's middle lies."""
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
    mask = _keep_large(logits > 0, step, ISLAND_ML)
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
    if abs(columns.mean() - midline) * step[2] > ONE_LUNG_MM:
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
    nearest = [_nearest(s, spacing[a], grid, a) for a, s in enumerate(region)]
    width = [1, *(1 + 2 * round(SMOOTHING_MM / s) for s in spacing[1:])]
    result = np.zeros(axial.shape, np.uint8)
    for first in range(region[0].start, region[0].stop, FILLED_SLICES):
        part = (slice(first, min(first + FILLED_SLICES, region[0].stop)), region[1], region[2])
        at = from_grid(depth, grid, spacing, part, fill=-10 * BAND_MM)
        hu = ndimage.uniform_filter(axial.voxels[part].astype(np.float32), width)
        inside = (at > BAND_MM) | ((at > -BAND_MM) & (hu < BOUNDARY_HU))
        rows = nearest[0][first - region[0].start :][:FILLED_SLICES]
        result[part] = np.where(inside, sides[np.ix_(rows, nearest[1], nearest[2])], 0)
    return result


def drop_specks(lungs: np.ndarray, spacing: Triple) -> None:
    """Drop pieces below ``SPECK_ML`` and fill what a lung encloses, in place.

    Args:
        lungs: uint8 (K, J, I): 1 right, 2 left.
        spacing: mm along (k, j, i).
    """
    sides = [side for side in (RIGHT, LEFT) if (lungs == side).any()]
    # First both, as a speck may lie in the other lung.
    for side in sides:
        part = lungs[bounding_region(lungs == side)]
        mask = part == side
        part[mask & ~_keep_large(mask, spacing, SPECK_ML)] = 0
    for side in sides:
        part = lungs[bounding_region(lungs == side)]
        part[ndimage.binary_fill_holes(part == side) & (part == 0)] = side


def _nearest(voxels: slice, spacing: float, grid: WorkingGrid, axis: int) -> np.ndarray:
    """The working voxel that holds the centre of each of the CT's voxels, along one axis."""
    position = ((np.arange(voxels.start, voxels.stop) + 0.5) * spacing - grid.start[axis]) / grid.step[axis]
    return np.clip(np.floor(position).astype(int), 0, grid.count[axis] - 1)


def _region_of(grid: WorkingGrid, shape: tuple[int, int, int], spacing: Triple) -> Region:
    first = [max(int(np.floor(grid.start[a] / spacing[a])), 0) for a in range(3)]
    last = [min(int(np.ceil(grid.stop[a] / spacing[a])), shape[a]) for a in range(3)]
    return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])
