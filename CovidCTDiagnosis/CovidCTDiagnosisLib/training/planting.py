"""Lesions planted in healthy lungs: shapes from smooth noise, textures of the four classes.

Real consolidation and ground-glass volumes with labels are rare, crazy paving and the combined pattern have
no labels here at all; planted ones teach the networks what they can look like in 3-D. Nothing planted is used for
measuring but whether classes without expert labels are named at all (``evaluation/planted.py``).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED = 1, 2, 3, 4


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


def plant_lesions(
    rng: np.random.Generator,
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing: tuple[float, float, float],
    share: float | None = None,
    kind: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plant blobs of lesion in healthy lung.

    Args:
        rng: random source.
        hu: (K, J, I) float32.
        lungs: bool (K, J, I).
        spacing: mm along (k, j, i).
        share: of the lung that lesions take, about; drawn when None.
        kind: class number of all of them; drawn for each when None.

    Returns:
        The changed HU (a copy) and labels (K, J, I) uint8 with the four class numbers.
    """
    labels = np.zeros(hu.shape, np.uint8)
    hu = hu.copy()
    if not lungs.any():
        return hu, labels
    share = float(rng.choice([0.02, 0.08, 0.2, 0.5])) if share is None else share
    depth = ndimage.distance_transform_edt(lungs, sampling=spacing)
    rows = np.flatnonzero(lungs.any((0, 2)))
    posterior = ((np.arange(hu.shape[1]) - rows.mean()) / max(np.ptp(rows) / 2, 1))[:, None].astype(np.float32)
    for _ in range(int(rng.integers(1, 3))):
        field = smooth_noise(rng, hu.shape, float(rng.uniform(5, 20)), spacing)
        field += 0.3 * smooth_noise(rng, hu.shape, 2.5, spacing)
        field -= float(rng.uniform(0, 0.06)) * np.minimum(depth, 40)  # COVID-19 lesions lie at the periphery
        field += float(rng.choice([0.0, rng.uniform(0, 4)])) * posterior  # and low in a patient who lies on the back
        blob = lungs & (field > np.quantile(field[lungs], 1 - share / 2))
        drawn = int(rng.choice([GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED], p=[0.4, 0.3, 0.15, 0.15]))
        this = drawn if kind is None else kind
        edge = np.clip(ndimage.gaussian_filter(blob.astype(np.float32), [1.5 / s for s in spacing]), 0, 1)
        hu += edge * lungs * (np.maximum(_texture(rng, this, hu, spacing), hu) - hu)
        labels[blob] = this
    return hu, labels


def _texture(rng: np.random.Generator, kind: int, hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """HU of a lesion class everywhere; vessels stay brighter because the caller takes the larger value."""
    grain = smooth_noise(rng, hu.shape, float(rng.uniform(1.5, 4)), spacing)
    if kind == GROUND_GLASS:
        return rng.uniform(-680, -420) + 70 * grain
    if kind == CONSOLIDATION:
        return rng.uniform(-60, 60) + 40 * grain - _air_bronchograms(rng, hu.shape, spacing)
    lines = np.abs(smooth_noise(rng, hu.shape, float(rng.uniform(2.0, 3.5)), spacing)) < 0.25
    paving = rng.uniform(-650, -480) + 50 * grain + rng.uniform(250, 400) * lines
    if kind == CRAZY_PAVING:
        return paving
    solid = smooth_noise(rng, hu.shape, 8, spacing) > 0
    return np.where(solid, rng.uniform(-80, 40) + 40 * grain, paving)


def _air_bronchograms(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Thin dark branches, HU to take off."""
    a, b = (smooth_noise(rng, shape, 6, spacing) for _ in range(2))
    return 700 * ((np.abs(a) < 0.12) & (np.abs(b) < 0.5)) * float(rng.random() < 0.6)
