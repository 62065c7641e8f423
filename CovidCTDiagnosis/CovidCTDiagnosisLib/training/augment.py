"""Random crops on working grids, random poses, and random scanners: window, kernel, noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from ..ct.regrid import Triple, WorkingGrid, to_grid
from ..ct.windows import LUNG_WINDOW, Window, scale, unscale
from .sources import Case

LARGEST_TURN_DEG = 15.0


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
        focus: voxels (N, 3) along (k, j, i): centre the grid near one of them; anywhere over the image if None.
    """
    extent = np.multiply(case.hu.shape, case.spacing)
    size = np.multiply(step, count)
    if focus is not None and len(focus):
        chosen = focus[int(rng.integers(len(focus)))]
        start = (chosen + 0.5) * case.spacing - rng.uniform(0.25, 0.75, 3) * size
    else:
        start = rng.uniform(np.minimum(0, extent - size), np.maximum(0, extent - size))
    # Small images lie inside the grid, large ones cover it.
    start = np.clip(start, np.minimum(0, extent - size), np.maximum(0, extent - size))
    k, j, i = (float(v) for v in start)
    return WorkingGrid((k, j, i), step, count)


def sample(case: Case, grid: WorkingGrid) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """HU (float32) on the grid, and of each class the fraction of every voxel that it fills (float32)."""
    case, grid = _around(case, grid)
    assert case.labels is not None
    fractions = {n: to_grid(case.labels == n, case.spacing, grid) for n in case.classes}
    return to_grid(case.hu, case.spacing, grid), fractions


def _around(case: Case, grid: WorkingGrid) -> tuple[Case, WorkingGrid]:
    """The part of the case that the grid sees, and the grid on it: a large CT is not worked on as a whole."""
    first = np.clip(np.floor(np.divide(grid.start, case.spacing)).astype(int) - 1, 0, np.array(case.hu.shape) - 1)
    last = np.clip(np.ceil(np.divide(grid.stop, case.spacing)).astype(int) + 1, first + 1, case.hu.shape)
    box = tuple(slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    k, j, i = (grid.start - first * case.spacing).tolist()
    labels = None if case.labels is None else case.labels[box]
    return replace(case, hu=case.hu[box], labels=labels), replace(grid, start=(k, j, i))


def random_flip(rng: np.random.Generator, *arrays: np.ndarray) -> list[np.ndarray]:
    """Exchange right and left in all (K, J, I) arrays alike, with probability one half."""
    if rng.random() < 0.5:
        return [np.ascontiguousarray(np.flip(a, 2)) for a in arrays]
    return list(arrays)


def random_turn(rng: np.random.Generator, *arrays: np.ndarray) -> list[np.ndarray]:
    """Turn all (K, J, I) float arrays alike about k by up to 15 degrees and shear them a little; edges repeated."""
    angle = np.deg2rad(rng.uniform(-LARGEST_TURN_DEG, LARGEST_TURN_DEG))
    cos, sin, shear = np.cos(angle), np.sin(angle), rng.uniform(-0.1, 0.1)
    j, i = arrays[0].shape[1:]
    # Normalised coordinates run over both sides alike, millimetres do not.
    matrix = torch.tensor([[cos, (shear - sin) * j / i, 0.0], [sin * i / j, cos, 0.0]], dtype=torch.float32)
    places = F.affine_grid(matrix[None], [1, 1, j, i], align_corners=False)
    stacked = torch.from_numpy(np.concatenate(arrays)).float()[None]
    turned = F.grid_sample(stacked, places, padding_mode="border", align_corners=False)[0].numpy()
    return np.split(turned, len(arrays))


def random_window(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """HU as they come back from an 8-bit picture whose window was not the one assumed; same shape.

    Pictures are read as [-1000, 400]; many were made with other lung windows, such as [-1400, 200].
    """
    return _as_shown(hu, (float(rng.uniform(-1500, -950)), float(rng.uniform(100, 450))))


def random_contrast(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """HU of an 8-bit picture whose contrast was changed, either way; same shape."""
    return _as_shown(hu, (float(rng.uniform(-1250, -850)), float(rng.uniform(200, 650))))


def _as_shown(hu: np.ndarray, window: Window) -> np.ndarray:
    return unscale(np.round(scale(hu, window) * 255) / 255, LUNG_WINDOW)


def random_scanner(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """Calibration shift and gain, kernel (blur or sharpening in-plane) and noise; HU float32, same shape."""
    hu = (hu + 1000) * np.float32(rng.uniform(0.9, 1.1)) - 1000 + np.float32(rng.normal(0, 30))
    if rng.random() < 0.4:
        blurred = ndimage.gaussian_filter(hu, (0, *(float(rng.uniform(0.4, 1.2)),) * 2))
        hu = hu + np.float32(rng.choice([-1.0, 0.7])) * (hu - blurred)
    if rng.random() < 0.6:
        grain = rng.standard_normal(hu.shape, np.float32)
        if rng.random() < 0.5:
            grain = ndimage.gaussian_filter(grain, (0, 0.7, 0.7)) * 2
        hu = hu + grain * np.float32(rng.uniform(5, 70))
    return hu.astype(np.float32, copy=False)
