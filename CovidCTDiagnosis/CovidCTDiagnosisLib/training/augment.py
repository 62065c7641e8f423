"""Random crops on working grids and random scanners: noise, kernel, calibration."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..ct.regrid import Triple, WorkingGrid, to_grid
from .sources import Case


def random_grid(
    rng: np.random.Generator,
    case: Case,
    step: Triple,
    count: tuple[int, int, int],
    focus: np.ndarray | None = None,
) -> WorkingGrid:
    """A grid of this size somewhere over the case.

    Args:
        rng: random source.
        case: the image.
        step: mm along (k, j, i).
        count: voxels along (k, j, i).
        focus: bool (K, J, I): centre the grid near one of these voxels; anywhere over the image if None.
    """
    extent = np.multiply(case.hu.shape, case.spacing)
    size = np.multiply(step, count)
    if focus is not None and focus.any():
        chosen = np.unravel_index(rng.choice(np.flatnonzero(focus)), focus.shape)
        start = (np.array(chosen) + 0.5) * case.spacing - rng.uniform(0.25, 0.75, 3) * size
    else:
        start = rng.uniform(np.minimum(0, extent - size), np.maximum(0, extent - size))
    # Small images lie inside the grid, large ones cover it.
    start = np.clip(start, np.minimum(0, extent - size), np.maximum(0, extent - size))
    k, j, i = (float(v) for v in start)
    return WorkingGrid((k, j, i), step, count)


def sample(case: Case, grid: WorkingGrid, masks: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """HU (float32) and masks (fractions of each voxel covered, float32) on the grid."""
    return (
        to_grid(case.hu, case.spacing, grid),
        [to_grid(mask, case.spacing, grid) for mask in masks],
    )


def random_flip(rng: np.random.Generator, *arrays: np.ndarray, axes: tuple[int, ...] = (2,)) -> list[np.ndarray]:
    """Flip all arrays alike, each axis with probability one half."""
    flips = tuple(axis for axis in axes if rng.random() < 0.5)
    return [np.ascontiguousarray(np.flip(a, flips)) if flips else a for a in arrays]


def random_scanner(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """Calibration shift and gain, kernel (blur or sharpening in-plane) and noise; HU float32, same shape."""
    hu = hu * np.float32(rng.uniform(0.94, 1.06)) + np.float32(rng.normal(0, 25))
    if rng.random() < 0.4:
        blurred = ndimage.gaussian_filter(hu, (0, *(float(rng.uniform(0.4, 1.2)),) * 2))
        hu = hu + np.float32(rng.choice([-1.0, 0.7])) * (hu - blurred)
    if rng.random() < 0.6:
        grain = rng.standard_normal(hu.shape, np.float32)
        if rng.random() < 0.5:
            grain = ndimage.gaussian_filter(grain, (0, 0.7, 0.7)) * 2
        hu = hu + grain * np.float32(rng.uniform(5, 70))
    return hu.astype(np.float32, copy=False)
