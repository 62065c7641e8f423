"""The one lesion mask: 2DS says where, the 3-D U-Net says which class (paper 3, 4.1).

The U-Net runs only where 2DS has found lesions. Where 2DS has learned to tell consolidation from ground-glass opacity,
it divides what the U-Net gives these two; an older one that has not draws the mask together with the U-Net.

Consolidated lung is still lung: where lung segmentation has missed it, pathological tissue that 2DS finds right beside
the lungs is counted as lung too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, containing_voxels, from_grid, region_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_WINDOW, scale
from ..networks import LESION_CLASSES
from .lung_cleaning import contact_shares
from .lungs import sample_hu
from .models import Models
from .partial_volume import partial_volume_skins
from .tiles import Tile, affordable_voxels, plan_slices, plan_tiles, run_tiles

LesionSource = Literal["both", "lesions", "involvement"]
"""Who draws the lesion mask: where the mean of both networks' probabilities passes the threshold, or one network's."""

MARGIN_MM = 9.0
TILE_VOXELS = 1_800_000
BYTES_PER_VOXEL = 1200
"""The 3-D U-Net's feature maps at their peak, a working voxel."""
SMALLER_TILES = 5
"""Sizes that are tried for what is to be classed, each half of the one before."""
HALO, BLEND = (8, 16, 16), (4, 8, 8)
"""Working voxels along (k, j, i) that tiles see around their core, and across whose border they are blended."""
MULTIPLE = (8, 8, 8)
SLICE_MARGIN = 16
"""Pixels that 2DS sees around the lungs of a slice."""
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
FILLED_SLICES = 16
"""Slices of the CT labelled at a time, so that probabilities never lie on its whole grid."""


@dataclass(frozen=True)
class Lesions:
    """Lesions of a CT and how sure the networks are of them.

    Attributes:
        labels: uint8 (K, J, I) on the CT's grid: 0 none, else the number in ``networks.LESION_CLASSES``.
        lungs: uint8 (K, J, I), the lungs given, and lesions that reach out of them.
        classes: float16 (4, K, J, I) on the working grid, the probability of each lesion class: together that of
            lesion, see ``share_out``. Kept for whom it may interest, 8 bytes a working voxel (0.15 GB for a CT of 600
            slices); labels are made from it some slices at a time.
        mask: float32 (K, J, I) on the working grid, the probability whose threshold draws the mask; 0 in
            skins over domes and under apices (see ``partial_volume``).
        grid: the working grid.
    """

    labels: np.ndarray
    lungs: np.ndarray
    classes: np.ndarray
    mask: np.ndarray
    grid: WorkingGrid

    def probabilities(self, axial: Volume) -> dict[str, Volume]:
        """``lesion`` (``mask``) and each lesion class, where they lie in the patient of the axial CT."""
        named = {"lesion": self.mask, **dict(zip(LESION_CLASSES[1:], self.classes, strict=True))}
        return {name: self.grid.in_patient(values, axial) for name, values in named.items()}


def segment_lesions(
    axial: Volume,
    lungs: np.ndarray,
    models: Models,
    report: Callable[[float], None],
    source: LesionSource | None = None,
    merge: bool = False,
    widen: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> Lesions:
    """Segment lesions, and keep the probabilities.

    Args:
        axial: HU, k inferior to superior, j anterior to posterior, i right to left.
        lungs: uint8 (K, J, I): 1 right, 2 left; not empty.
        models: gives the networks ``lesions`` (classes) and ``involvement`` (2DS) and their grid.
        report: gets the fraction of the work done.
        source: who draws the mask, or None for ``usual_source``; the class is the same whoever it is.
        merge: give the two classes of ``two_classes``.
        widen: count lesions that reach out of the lungs as lung; not wanted for lungs that the user drew.
        warn: told when memory runs out and what is done about it.

    Returns:
        Labels, lungs and probabilities.

    Raises:
        MemoryError, RuntimeError: the CPU has not enough memory either; see ``is_out_of_memory``.
    """
    spacing = axial.spacing[::-1]
    settings = models.preprocessing("lesions")
    region = bounding_region(lungs > 0)
    grid = _grid_around(region, spacing, tuple(settings["step_mm"]), axial.shape)
    source = source or usual_source(models)
    ct = scale(sample_hu(axial, grid), LUNG_WINDOW)
    voxels = affordable_voxels(models.device, TILE_VOXELS, BYTES_PER_VOXEL)
    inside = _labels_at(lungs, spacing, grid)

    support = _support(lungs, spacing, grid)
    tissue = _run_2ds(models, ct, support, voxels, lambda f: report(0.3 * f), warn)
    found = tissue[0] > settings["threshold"]
    outside = reach_out(inside > 0, found & widen)
    wanted = support | outside
    if source == "involvement":
        # What is interpolated between working voxels needs the neighbours of these too.
        wanted &= ndimage.binary_dilation(found, np.ones((3, 3, 3), bool))
    classes = _run_unet(models, ct, wanted, voxels, lambda f: report(0.3 + 0.6 * f), warn)
    mask = mask_probability(classes, tissue[0], source)
    share_out(mask, classes, tissue)
    lung = (inside > 0) | outside
    mask[partial_volume_skins((mask > settings["threshold"]) & lung, lung, grid.step[0])] = 0
    reached = _widened(lungs, inside, outside, grid, spacing)
    region = bounding_region(reached > 0)
    labels = _label(classes, mask, settings["threshold"], grid, reached, spacing, region, merge)
    # What was added to the lungs stays where it is lesion.
    return Lesions(labels, np.where((lungs > 0) | (labels > 0), reached, 0), classes, mask, grid)


def usual_source(models: Models) -> LesionSource:
    """Who draws the mask with this bundle: 2DS, or both networks where 2DS is an older one of one output."""
    architecture = models.bundle.network("involvement")["architecture"]
    return "involvement" if architecture.get("outputs", 1) > 1 else "both"


def share_out(lesion: np.ndarray, classes: np.ndarray, tissue: np.ndarray) -> None:
    """Share the probability of lesion out among its classes, as the U-Net says, in place.

    Where 2DS tells consolidation from ground-glass opacity, it divides what these two get, which is all where the U-Net
    has not run. With an older 2DS all four are 0 there.

    Args:
        lesion: (...), the probability of lesion.
        classes: (4, ...), the U-Net's probabilities; become those of the classes.
        tissue: (1 or 2, ...), 2DS's: of pathological tissue and, of that, of consolidation.
    """
    total = classes.sum(0, dtype=np.float32)
    factor = np.divide(lesion, total, out=np.zeros_like(total), where=total > 0)
    for values in classes:
        values *= factor
    if len(tissue) < 2:
        return
    both = np.maximum(lesion - classes[2] - classes[3], 0)  # half precision may sum to a little more
    classes[1] = both * tissue[1]
    classes[0] = both - classes[1]


def mask_probability(classes: np.ndarray, pathological: np.ndarray, source: LesionSource) -> np.ndarray:
    """The probability that draws the mask: of the U-Net's classes (4, K, J, I), 2DS's tissue (K, J, I), or both."""
    if source == "involvement":
        return pathological
    lesion = np.minimum(classes.sum(0, dtype=np.float32), 1)  # half precision may sum to a little more
    return lesion if source == "lesions" else (lesion + pathological) / 2


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


def _labels_at(labels: np.ndarray, spacing: Triple, grid: WorkingGrid) -> np.ndarray:
    """The CT's label at each working voxel's centre."""
    own = WorkingGrid.of_volume(labels.shape, spacing)  # type: ignore[arg-type]
    return labels[np.ix_(*(containing_voxels(grid, own, axis) for axis in range(3)))]


def two_classes(labels: np.ndarray, denser: np.ndarray) -> np.ndarray:
    """The classes of expert sets that know only ground-glass opacity (1) and consolidation (2): the likelier one.

    So lesions that the U-Net calls crazy paving or combined go where 2DS, which learned from such sets, puts them.

    Args:
        labels: numbers of ``networks.LESION_CLASSES``.
        denser: bool, same shape, where consolidation is likelier than ground-glass opacity.

    Returns:
        uint8, same shape.
    """
    return np.where(labels > 0, np.where(denser, 2, 1), 0).astype(np.uint8)


def _grid_around(region: Region, spacing: Triple, step: Triple, shape: tuple[int, int, int]) -> WorkingGrid:
    box = region_grid(region, spacing)
    extent = np.multiply(shape, spacing)
    start = np.maximum(np.asarray(box.start) - MARGIN_MM, 0)
    stop = np.minimum(np.asarray(box.stop) + MARGIN_MM, extent)
    return WorkingGrid.covering(tuple(start), tuple(stop), step)


def _support(lungs: np.ndarray, spacing: Triple, grid: WorkingGrid) -> np.ndarray:
    """Working voxels that touch lung or from which a lung voxel is interpolated, bool of shape ``grid.count``."""
    own = WorkingGrid.of_volume(lungs.shape, spacing)  # type: ignore[arg-type]
    holds = [containing_voxels(own, grid, axis) for axis in range(3)]
    support = _labels_at(lungs, spacing, grid) > 0
    for k, plane in enumerate(lungs):
        j, i = np.nonzero(plane)
        support[holds[0][k], holds[1][j], holds[2][i]] = True
    return ndimage.binary_dilation(support, np.ones((3, 3, 3), bool))


class _Slicewise(nn.Module):
    """A 2-D network on tiles of one slice, (B, 1, 1, J, I) to (B, C, 1, J, I)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(x[:, :, 0].contiguous(memory_format=torch.channels_last))
        return output.unsqueeze(2)


def _run_2ds(
    models: Models,
    ct: np.ndarray,
    support: np.ndarray,
    voxels: int,
    report: Callable[[float], None],
    warn: Callable[[str], None],
) -> np.ndarray:
    """What 2DS says, as probabilities (1 or 2, K, J, I), in each slice's own box around the lungs."""
    network = models.network("involvement")
    plan = partial(plan_slices, support, halo=SLICE_MARGIN, multiple=network.multiple)
    return run_tiles(_Slicewise(network), ct, models.device, torch.sigmoid, report, plan, voxels, warn=warn)


def _run_unet(
    models: Models,
    ct: np.ndarray,
    wanted: np.ndarray,
    voxels: int,
    report: Callable[[float], None],
    warn: Callable[[str], None],
) -> np.ndarray:
    """The U-Net's probabilities of the lesion classes, float16 (4, K, J, I), 0 away from where they are wanted."""
    if not wanted.any():
        return np.zeros((len(LESION_CLASSES) - 1, *ct.shape), np.float16)
    return run_tiles(
        models.network("lesions"),
        ct,
        models.device,
        lambda x: torch.softmax(x, 1)[:, 1:],
        report,
        partial(_plan_sparse, wanted),
        voxels,
        blend=BLEND,
        warn=warn,
        dtype=np.float16,
    )


def _plan_sparse(wanted: np.ndarray, most: int) -> list[Tile]:
    """The tiles that see least in all: small ones where little is wanted here and there."""
    plans = [plan_tiles(wanted, most >> halvings, HALO, MULTIPLE) for halvings in range(SMALLER_TILES)]
    return min(plans, key=lambda tiles: sum(math.prod(tile.size) for tile in tiles))


def _widened(
    lungs: np.ndarray, inside: np.ndarray, outside: np.ndarray, grid: WorkingGrid, spacing: Triple
) -> np.ndarray:
    """The lungs with what lies outside of them, which gets the number of the nearer side.

    Also what lies between in working voxels that are lung, so that no seam parts the two.
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


def _label(
    classes: np.ndarray,
    probability: np.ndarray,
    threshold: float,
    grid: WorkingGrid,
    lungs: np.ndarray,
    spacing: Triple,
    region: Region,
    merge: bool,
) -> np.ndarray:
    """Class labels on the CT's grid, uint8, some slices at a time and only where there is a lesion."""
    result = np.zeros(lungs.shape, np.uint8)
    for first in range(region[0].start, region[0].stop, FILLED_SLICES):
        part = (slice(first, min(first + FILLED_SLICES, region[0].stop)), region[1], region[2])
        kept, near = _slices_near(grid, part[0], spacing[0])
        mask = (from_grid(probability[kept], near, spacing, part) > threshold) & (lungs[part] > 0)
        if not mask.any():
            continue
        box = bounding_region(mask)
        inner = tuple(slice(p.start + b.start, p.start + b.stop) for p, b in zip(part, box, strict=True))
        where = (inner[0], inner[1], inner[2])
        labels = _likeliest(classes[:, kept], near, spacing, where)
        if merge:
            denser = classes[1, kept].astype(np.float32) - classes[0, kept]
            labels = two_classes(labels, from_grid(denser, near, spacing, where) > 0)
        result[where] = np.where(mask[box], labels, 0)
    return result


def _slices_near(grid: WorkingGrid, part: slice, spacing: float) -> tuple[slice, WorkingGrid]:
    """The working slices that slices of the CT are interpolated from, and the grid that they make."""
    first = int((part.start * spacing - grid.start[0]) / grid.step[0]) - 2
    last = int((part.stop * spacing - grid.start[0]) / grid.step[0]) + 3
    kept = slice(max(first, 0), min(last, grid.count[0]))
    start = (grid.start[0] + kept.start * grid.step[0], grid.start[1], grid.start[2])
    return kept, WorkingGrid(start, grid.step, (kept.stop - kept.start, grid.count[1], grid.count[2]))


def _likeliest(classes: np.ndarray, grid: WorkingGrid, spacing: Triple, part: Region) -> np.ndarray:
    """The most probable class's number, class by class to save memory."""
    best = from_grid(classes[0], grid, spacing, part)
    labels = np.ones(best.shape, np.uint8)
    for number, values in enumerate(classes[1:], start=2):
        here = from_grid(values, grid, spacing, part)
        better = here > best
        labels[better] = number
        best[better] = here[better]
    return labels
