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
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, containing_voxels, region_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_WINDOW, scale
from ..networks import LESION_CLASSES
from .lesion_mask import LesionSource, label_lesions, mask_probability, share_out
from .lesion_reach import reach_out, widened_lungs
from .lungs import sample_hu
from .models import Models
from .partial_volume import partial_volume_skins
from .tiles import Tile, affordable_voxels, plan_slices, plan_tiles, run_tiles

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
    reached = widened_lungs(lungs, inside, outside, grid, spacing)
    region = bounding_region(reached > 0)
    labels = label_lesions(classes, mask, settings["threshold"], grid, reached, spacing, region, merge)
    # What was added to the lungs stays where it is lesion.
    return Lesions(labels, np.where((lungs > 0) | (labels > 0), reached, 0), classes, mask, grid)


def usual_source(models: Models) -> LesionSource:
    """Who draws the mask with this bundle: 2DS, or both networks where 2DS is an older one of one output."""
    architecture = models.bundle.network("involvement")["architecture"]
    return "involvement" if architecture.get("outputs", 1) > 1 else "both"


def _labels_at(labels: np.ndarray, spacing: Triple, grid: WorkingGrid) -> np.ndarray:
    """The CT's label at each working voxel's centre."""
    own = WorkingGrid.of_volume(labels.shape, spacing)  # type: ignore[arg-type]
    return labels[np.ix_(*(containing_voxels(grid, own, axis) for axis in range(3)))]


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
