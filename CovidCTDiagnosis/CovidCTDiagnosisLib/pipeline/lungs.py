"""Lungs: found at low resolution, segmented at the fine one, cleaned, told apart (paper section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, to_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_SEGMENTATION, scale
from ..errors import InputError
from .lung_boundary import FILLED_SLICES, boundary_depth, drop_specks, refine_lungs
from .lung_cleaning import SMALLEST_LUNGS_ML, clean_lungs, keep_large
from .lung_sides import midline
from .models import Models
from .tiles import affordable_voxels, run_network

AIR_HU = -1024
"""What is darker lies outside the field of view, and counts as air."""
MARGIN_MM = 20.0
"""Of the fine grid around the lungs found at low resolution."""
SLAB_VOXELS, BYTES_PER_VOXEL = 3_000_000, 480
"""The most that the network sees at once, and its feature maps at their peak, a working voxel."""


IN_PARTS = (
    "There is little free memory, so the lungs are segmented in parts: where these meet, they may differ a little from "
    "what more memory gives."
)


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
        warn: told when memory is short or runs out, and what is done about it.

    Returns:
        Labels and the probability of lung.

    Raises:
        InputError: no lungs are found.
    """
    settings = models.preprocessing("lungs")
    spacing = axial.spacing[::-1]
    extent = np.multiply(axial.shape, spacing)

    voxels = affordable_voxels(models.device, SLAB_VOXELS, BYTES_PER_VOXEL)

    def segment(grid: WorkingGrid, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
        """Logits of lung and the mean HU of the working voxels."""
        hu = sample_hu(axial, grid)
        logits = run_network(
            models.network("lungs"),  # anew: where a graphics card is too small, the one before has left it
            scale(hu, LUNG_SEGMENTATION),
            models.device,
            lambda x: x,
            lambda f: report(first + (last - first) * f),
            voxels,
            overlap=24,
            warn=warn,
        )[0]
        return logits, hu

    whole = WorkingGrid.covering((0, 0, 0), tuple(extent), _step(settings["coarse_mm"], spacing))
    found = keep_large(segment(whole, 0.0, 0.2)[0] > 0, whole.step, SMALLEST_LUNGS_ML / 4)
    if found.sum() * np.prod(whole.step) / 1000 < SMALLEST_LUNGS_ML:
        raise InputError(
            "No lungs were found in this image.",
            "Give a CT of the chest in Hounsfield units that shows both lungs.",
        )
    box = _box_mm(bounding_region(found), whole, extent)
    fine = WorkingGrid.covering(*box, _step(settings["fine_mm"], spacing))
    if voxels < min(SLAB_VOXELS, math.prod(fine.count)):
        warn(IN_PARTS)
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


def _step(mm: float, spacing: Triple) -> Triple:
    """Isotropic working grid; slices thicker than it are not cut finer than half of them."""
    return (max(mm, spacing[0] / 2), mm, mm)


def _box_mm(region: Region, grid: WorkingGrid, extent: np.ndarray) -> tuple[Triple, Triple]:
    """The region with its margin, mm, within the volume."""
    start = [max(grid.start[a] + region[a].start * grid.step[a] - MARGIN_MM, 0.0) for a in range(3)]
    stop = [min(grid.start[a] + region[a].stop * grid.step[a] + MARGIN_MM, extent[a]) for a in range(3)]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])
