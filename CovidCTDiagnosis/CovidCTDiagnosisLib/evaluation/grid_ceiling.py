"""What a working grid allows: the Dice of perfect networks after the way to the grid and back, and its price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..ct.regrid import Triple, WorkingGrid, bounding_region, from_grid, to_grid
from ..pipeline.macs import count_macs
from ..pipeline.models import Models
from ..training.sources import Case
from .metrics import dice

SLICE_STEPS_MM = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
LUNG_STEPS_MM = (1.5, 2.0, 3.0)

_BLOCK = (16, 128, 128)
_MM2_PER_DM2, _MM3_PER_LITRE = 1e4, 1e6


class GridCeiling(NamedTuple):
    """One working grid.

    Attributes:
        step_mm: its voxel size in the plane (slices) or in all directions (lungs of a CT).
        dice: of the expert's masks with themselves after the way to the grid and back.
        gmac: 10^9 multiply-accumulates of the networks on it: 2DS and 3-D U-Net per square decimetre of a
            slice, or the lung network per litre.
    """

    step_mm: float
    dice: float
    gmac: float


def slice_ceiling(cases: Sequence[Case], models: Models) -> list[GridCeiling]:
    """Mean Dice over the cases' lesion masks for each of ``SLICE_STEPS_MM``; the slice distance stays."""
    flat = (1, 1, *_BLOCK[1:])
    per_voxel = _macs_per_voxel(models, "lesions", (1, 1, *_BLOCK)) + _macs_per_voxel(models, "involvement", flat)
    return [
        GridCeiling(
            step,
            float(
                np.mean([_dice_after(_lesions(case), case.spacing, (case.spacing[0], step, step)) for case in cases])
            ),
            per_voxel * _MM2_PER_DM2 / step**2 / 1e9,
        )
        for step in SLICE_STEPS_MM
    ]


def lung_ceiling(expert: np.ndarray, spacing: Triple, models: Models) -> list[GridCeiling]:
    """Dice of a lung mask, bool (K, J, I), for each of ``LUNG_STEPS_MM``; spacing in mm along (k, j, i)."""
    margin = [int(np.ceil(max(LUNG_STEPS_MM) / s)) for s in spacing]
    expert = expert[bounding_region(expert, (margin[0], margin[1], margin[2]))]
    per_voxel = _macs_per_voxel(models, "lungs", (1, 1, *_BLOCK))
    return [
        GridCeiling(step, _dice_after(expert, spacing, (step, step, step)), per_voxel * _MM3_PER_LITRE / step**3 / 1e9)
        for step in LUNG_STEPS_MM
    ]


def _lesions(case: Case) -> np.ndarray:
    assert case.labels is not None
    return case.labels > 0


def _dice_after(mask: np.ndarray, spacing: Triple, step: Triple) -> float:
    extent = np.multiply(mask.shape, spacing)
    grid = WorkingGrid.covering((0.0, 0.0, 0.0), (float(extent[0]), float(extent[1]), float(extent[2])), step)
    whole = (slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2]))
    back = from_grid(to_grid(mask, spacing, grid), grid, spacing, whole) > 0.5
    return dice(back, mask)


def _macs_per_voxel(models: Models, name: str, shape: tuple[int, ...]) -> float:
    return count_macs(models.network(name), shape) / float(np.prod(shape))
