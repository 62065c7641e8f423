"""Lesions planted in healthy lungs: shapes from real masks or smooth noise, textures of the four classes.

Real consolidation and ground-glass volumes with labels are rare, crazy paving and the combined pattern have
no labels here at all; planted ones teach the networks what they can look like in 3-D. Nothing planted is used for
measuring but whether classes without expert labels are named at all (``evaluation/planted.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch.nn import functional as F

from ..networks import COMBINED, CONSOLIDATION, CRAZY_PAVING, GROUND_GLASS

MASK_SIZE = (64, 96)
"""Rows and columns that real masks are kept at."""
MASK_SLICES_MM = (1.5, 4.0)
"""The increment of real masks is not known; any of these is taken."""
KINDS = (0.4, 0.3, 0.15, 0.15)
"""How often each class is planted, if not said otherwise."""
REAL_SHARE = 0.5
"""Of the planted lesions, where real masks are there."""
STONE_MM, SEPTUM_MM, SEPTUM_HU = (4.0, 10.0), (1.2, 2.5), (-100.0, 50.0)
"""Crazy paving: size of its stones, from lines within lobules to septa between them; how thick and dense these are."""


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma_mm: float, spacing: tuple[float, ...]
) -> np.ndarray:
    """Noise with a correlation length, zero mean and unit deviation, float32.

    Drawn on a grid as coarse as the length allows and interpolated: a Gaussian filter would take most of the
    training's time.
    """
    coarse = [max(int(np.ceil(n * s / (1.5 * sigma_mm))) + 1, 2) for n, s in zip(shape, spacing, strict=True)]
    nodes = torch.from_numpy(rng.standard_normal(coarse, np.float32))[None, None]
    noise = F.interpolate(nodes, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def thickened_septa(rng: np.random.Generator, where: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The share of each voxel that thickened septa fill: the lines of crazy paving (Hansell et al. 2008).

    Septa are the walls between the regions nearest to each of many random points (Voronoi cells), the stones. A voxel
    holds as much of the nearest wall as lies in it along the wall's normal: on coarse grids lines pale, as in a CT.

    Args:
        rng: random source.
        where: bool (K, J, I), where it is wanted.
        spacing: mm along (k, j, i).

    Returns:
        float32 (K, J, I), 0 elsewhere.
    """
    share = np.zeros(where.shape, np.float32)
    if not where.any():
        return share
    stone, thickness = rng.uniform(*STONE_MM), rng.uniform(*SEPTUM_MM)
    voxels = np.argwhere(where) * np.asarray(spacing)
    low, high = voxels.min(0) - stone, voxels.max(0) + stone
    points = rng.uniform(low, high, (max(round(np.prod((high - low) / stone)), 2), 3))
    distances, nearest = cKDTree(points).query(voxels, k=2)
    normal = points[nearest[:, 1]] - points[nearest[:, 0]]
    apart = np.linalg.norm(normal, axis=1)
    to_wall = (distances[:, 1] ** 2 - distances[:, 0] ** 2) / (2 * apart)
    extent = np.abs(normal) @ np.asarray(spacing) / apart
    share[where] = np.clip((thickness + extent) / 2 - to_wall, 0, np.minimum(thickness, extent)) / extent
    return share


def lesion_shape(mask_slices: Sequence[np.ndarray]) -> np.ndarray:
    """Lesion masks of a volume's slices, each cropped around the lungs, as a shape to plant.

    Args:
        mask_slices: bool (J, I) each, in scan order, of any size.

    Returns:
        float32 (slices, *MASK_SIZE), the share of lesion in each voxel of the lungs' box.
    """
    masks = [torch.from_numpy(m.astype(np.float32))[None, None] for m in mask_slices]
    return torch.cat([F.adaptive_avg_pool2d(m, MASK_SIZE)[0] for m in masks]).numpy()


def plant_lesions(
    rng: np.random.Generator,
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing: tuple[float, float, float],
    share: float | None = None,
    kind: int | None = None,
    shapes: Sequence[np.ndarray] = (),
    kinds: Sequence[float] = KINDS,
) -> tuple[np.ndarray, np.ndarray]:
    """Plant lesions in healthy lung.

    Args:
        rng: random source.
        hu: (K, J, I) float32.
        lungs: bool (K, J, I).
        spacing: mm along (k, j, i).
        share: of the lung that lesions of smooth noise take, about; drawn when None.
        kind: class number of all of them; drawn for each when None.
        shapes: real ones, see ``lesion_shape``, for half of the lesions.
        kinds: how often each class is drawn.

    Returns:
        The changed HU (a copy) and labels (K, J, I) uint8 with the four class numbers.
    """
    labels = np.zeros(hu.shape, np.uint8)
    hu = hu.copy()
    if not lungs.any():
        return hu, labels
    share = float(rng.choice([0.02, 0.08, 0.2, 0.5])) if share is None else share
    depth = ndimage.distance_transform_edt(lungs, sampling=spacing)
    for _ in range(int(rng.integers(1, 3))):
        if shapes and rng.random() < REAL_SHARE:
            blob = _real_blob(rng, shapes[int(rng.integers(len(shapes)))], lungs, spacing[0])
        else:
            blob = _smooth_blob(rng, lungs, depth, share, spacing)
        drawn = int(rng.choice([GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED], p=kinds))
        this = drawn if kind is None else kind
        edge = np.clip(ndimage.gaussian_filter(blob.astype(np.float32), [1.5 / s for s in spacing]), 0, 1)
        edge *= lungs
        hu += edge * (np.maximum(_texture(rng, this, edge > 0, spacing), hu) - hu)
        labels[blob] = this
    return hu, labels


def _smooth_blob(
    rng: np.random.Generator, lungs: np.ndarray, depth: np.ndarray, share: float, spacing: tuple[float, float, float]
) -> np.ndarray:
    """Half a share of these lungs where smooth noise is largest, mostly at their periphery; bool, inside them."""
    field = smooth_noise(rng, lungs.shape, float(rng.uniform(5, 20)), spacing)
    field += 0.3 * smooth_noise(rng, lungs.shape, 2.5, spacing)
    field -= float(rng.uniform(0, 0.06)) * np.minimum(depth, 40)  # COVID-19 lesions lie at the periphery
    rows = np.flatnonzero(lungs.any((0, 2)))
    posterior = ((np.arange(lungs.shape[1]) - rows.mean()) / max(np.ptp(rows) / 2, 1))[:, None].astype(np.float32)
    field += float(rng.choice([0.0, rng.uniform(0, 4)])) * posterior  # and low in a patient on the back
    return lungs & (field > np.quantile(field[lungs], 1 - share / 2))


def _real_blob(rng: np.random.Generator, shape: np.ndarray, lungs: np.ndarray, slice_mm: float) -> np.ndarray:
    """A run of a real mask's slices in the box of these lungs, either way round; bool, inside them."""
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    size = [b.stop - b.start for b in box]
    slices = int(np.clip(round(size[0] * slice_mm / rng.uniform(*MASK_SLICES_MM)), 1, len(shape)))
    first = int(rng.integers(len(shape) - slices + 1))
    flips = tuple(axis for axis in (0, 2) if rng.random() < 0.5)
    run = torch.from_numpy(np.flip(shape[first : first + slices], flips).copy())[None, None]
    blob = np.zeros(lungs.shape, bool)
    blob[box] = F.interpolate(run, size=size, mode="trilinear", align_corners=False)[0, 0].numpy() > 0.5
    return blob & lungs


def _texture(rng: np.random.Generator, kind: int, where: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """HU of a lesion class, of use where wanted; vessels stay brighter because the caller takes the larger value."""
    grain = smooth_noise(rng, where.shape, float(rng.uniform(1.5, 4)), spacing)
    if kind == GROUND_GLASS:
        return rng.uniform(-680, -420) + 70 * grain
    if kind == CONSOLIDATION:
        return rng.uniform(-60, 60) + 40 * grain - _air_bronchograms(rng, where.shape, spacing)
    glass = rng.uniform(-680, -480) + 50 * grain
    paving = glass + thickened_septa(rng, where, spacing) * (rng.uniform(*SEPTUM_HU) - glass)
    if kind == CRAZY_PAVING:
        return paving
    solid = smooth_noise(rng, where.shape, 8, spacing) > 0
    return np.where(solid, rng.uniform(-80, 40) + 40 * grain, paving)


def _air_bronchograms(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Thin dark branches, HU to take off."""
    a, b = (smooth_noise(rng, shape, 6, spacing) for _ in range(2))
    return 700 * ((np.abs(a) < 0.12) & (np.abs(b) < 0.5)) * float(rng.random() < 0.6)
