"""Lesions planted in healthy lungs: outlines of real lesions or shapes of smooth noise, textures of the four classes.

Real consolidation and ground-glass volumes with labels are rare, crazy paving and the combined pattern have
no labels here at all; planted ones teach the networks what they can look like in 3-D. Nothing planted is used for
measuring but whether classes without expert labels are named at all (``evaluation/planted.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED = 1, 2, 3, 4
CLASS_SHARES = (0.25, 0.2, 0.3, 0.25)
"""How often each class is planted: most often those that are known from nothing else."""
SEPTUM_MM = 1.2
"""Thickness of the thickened septa of crazy paving."""


@dataclass(frozen=True)
class Outline:
    """The lesions of one real slice.

    Attributes:
        mask: bool (J, I), not empty.
        spacing: mm along (j, i).
    """

    mask: np.ndarray
    spacing: tuple[float, float]


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
    outlines: Sequence[Outline] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Plant lesions in healthy lung.

    Args:
        rng: random source.
        hu: (K, J, I) float32.
        lungs: bool (K, J, I).
        spacing: mm along (k, j, i).
        share: of the lung that lesions take, about; drawn when None.
        kind: class number of all of them; drawn for each when None.
        outlines: of real lesions, which half of those planted then get; they are as large as they are.

    Returns:
        The changed HU (a copy) and labels (K, J, I) uint8 with the four class numbers.
    """
    labels = np.zeros(hu.shape, np.uint8)
    hu = hu.copy()
    if not lungs.any():
        return hu, labels
    share = float(rng.choice([0.02, 0.08, 0.2, 0.5])) if share is None else share
    for _ in range(int(rng.integers(1, 3))):
        if outlines and rng.random() < 0.5:
            blob = lungs & _raised(rng, outlines[int(rng.integers(len(outlines)))], lungs, spacing)
        else:
            blob = _smooth_shape(rng, lungs, spacing, share / 2)
        drawn = int(rng.choice([GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING, COMBINED], p=CLASS_SHARES))
        this = drawn if kind is None else kind
        edge = np.clip(ndimage.gaussian_filter(blob.astype(np.float32), [1.5 / s for s in spacing]), 0, 1)
        hu += edge * lungs * (np.maximum(_texture(rng, this, hu, spacing), hu) - hu)
        labels[blob] = this
    return hu, labels


def _smooth_shape(
    rng: np.random.Generator, lungs: np.ndarray, spacing: tuple[float, float, float], share: float
) -> np.ndarray:
    """Blobs of smooth noise that fill this share of the lungs, mostly at the periphery and posterior."""
    depth = ndimage.distance_transform_edt(lungs, sampling=spacing)
    rows = np.flatnonzero(lungs.any((0, 2)))
    posterior = ((np.arange(lungs.shape[1]) - rows.mean()) / max(np.ptp(rows) / 2, 1))[:, None].astype(np.float32)
    field = smooth_noise(rng, lungs.shape, float(rng.uniform(5, 20)), spacing)
    field += 0.3 * smooth_noise(rng, lungs.shape, 2.5, spacing)
    field -= float(rng.uniform(0, 0.06)) * np.minimum(depth, 40)  # COVID-19 lesions lie at the periphery
    field += float(rng.choice([0.0, rng.uniform(0, 4)])) * posterior  # and low in a patient who lies on the back
    return lungs & (field > np.quantile(field[lungs], 1 - share))


def _raised(
    rng: np.random.Generator, outline: Outline, lungs: np.ndarray, spacing: tuple[float, float, float]
) -> np.ndarray:
    """A real outline, turned and scaled, with one of its voxels on one of the lungs'; above and below it shrinks."""
    inner = ndimage.distance_transform_edt(outline.mask, sampling=outline.spacing)
    there, here = (places[int(rng.integers(len(places)))] for places in (np.argwhere(outline.mask), np.argwhere(lungs)))
    angle, size = rng.uniform(-np.pi, np.pi), rng.uniform(0.7, 1.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / size
    turn[:, 1] *= rng.choice([-1, 1])
    matrix = turn * np.array(spacing[1:]) / np.array(outline.spacing)[:, None]
    depth = ndimage.affine_transform(inner, matrix, there - matrix @ here[1:], lungs.shape[1:], order=1)
    away = np.abs(np.arange(lungs.shape[0]) - here[0]) * spacing[0]
    return depth > float(rng.uniform(0.15, 0.6)) * away[:, None, None]


def _texture(rng: np.random.Generator, kind: int, hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """HU of a lesion class everywhere; vessels stay brighter because the caller takes the larger value."""
    grain = smooth_noise(rng, hu.shape, float(rng.uniform(1.5, 4)), spacing)
    if kind == GROUND_GLASS:
        return rng.uniform(-680, -420) + 70 * grain
    if kind == CONSOLIDATION:
        return rng.uniform(-60, 60) + 40 * grain - _air_bronchograms(rng, hu.shape, spacing)
    paving = rng.uniform(-650, -480) + 50 * grain + rng.uniform(250, 400) * _septa(rng, hu.shape, spacing)
    if kind == CRAZY_PAVING:
        return paving
    solid = smooth_noise(rng, hu.shape, 8, spacing) > 0
    return np.where(solid, rng.uniform(-80, 40) + 40 * grain, paving)


def _septa(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, float, float]) -> np.ndarray:
    """Share of each voxel that thin sheets fill; a grid coarser than they are thick sees them paler and wider."""
    sigma = float(rng.uniform(2.0, 3.5))
    # Noise of unit deviation and this length has gradients of about 1 / sigma.
    distance = sigma * np.abs(smooth_noise(rng, shape, sigma, spacing))
    voxel = max(spacing[1:])
    return np.clip((SEPTUM_MM / 2 - distance) / voxel + 0.5, 0, min(SEPTUM_MM / voxel, 1))


def _air_bronchograms(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Thin dark branches, HU to take off."""
    a, b = (smooth_noise(rng, shape, 6, spacing) for _ in range(2))
    return 700 * ((np.abs(a) < 0.12) & (np.abs(b) < 0.5)) * float(rng.random() < 0.6)
