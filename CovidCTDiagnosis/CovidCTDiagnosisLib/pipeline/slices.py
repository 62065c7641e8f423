"""8-bit lung-window slices through the networks that serve a CT: each slice a volume with its edge repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from ..ct.regrid import WorkingGrid, from_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import CLASSIFIER, LUNG_SEGMENTATION, scale
from .models import Models

NOMINAL_PIXEL_MM = 0.7
"""Pixel size taken for slices that come without one."""

SLICES_AT_ONCE = 8
SMALLEST_LUNG_CM2 = 2.0


def stack_slices(slices: Sequence[np.ndarray], slice_mm: float, pixel_mm: float = NOMINAL_PIXEL_MM) -> Volume:
    """Slices of various sizes as one volume, each centred, its edge repeated up to the largest size.

    Args:
        slices: (J, I) HU each, inferior to superior.
        slice_mm: increment.
        pixel_mm: pixel size.
    """
    size = np.max([s.shape for s in slices], axis=0)

    def padded(image: np.ndarray) -> np.ndarray:
        before = (size - image.shape) // 2
        after = size - image.shape - before
        return np.pad(image, list(zip(before, after, strict=True)), mode="edge")

    return Volume(np.stack([padded(s) for s in slices]), (pixel_mm, pixel_mm, slice_mm))


def segment_slices(volume: Volume, models: Models) -> tuple[np.ndarray, np.ndarray]:
    """Lungs and lesions of lone slices.

    Args:
        volume: HU, (K, J, I); neighbouring slices are not assumed to continue each other.
        models: the bundle's networks.

    Returns:
        lungs, bool (K, J, I), and lesion classes, uint8 (K, J, I), zero outside the lungs.
    """
    lungs = np.stack([_clean(m > 0, volume) for m in _lung_logits(volume, models)])
    return lungs, np.where(lungs, _lesion_labels(volume, models), 0).astype(np.uint8)


def _lung_logits(volume: Volume, models: Models) -> np.ndarray:
    fine = models.preprocessing("lungs")["fine_mm"]
    grid = _slicewise_grid(volume, (fine, fine))
    ct = scale(to_grid(volume.voxels, volume.spacing[::-1], grid), LUNG_SEGMENTATION)
    return _back(_batched(models, "lungs", ct)[:, 0, 0], grid, volume)


def _lesion_labels(volume: Volume, models: Models) -> np.ndarray:
    settings = models.preprocessing("lesions")
    grid = _slicewise_grid(volume, tuple(settings["step_mm"][1:]))
    ct = scale(to_grid(volume.voxels, volume.spacing[::-1], grid), CLASSIFIER)
    classes = torch.softmax(torch.from_numpy(_batched(models, "lesions", ct)), 1)[:, 1:, 0].numpy()
    pathological = torch.sigmoid(torch.from_numpy(_batched(models, "involvement", ct, flat=True)))[:, 0].numpy()
    mask = _back((classes.sum(1) + pathological) / 2, grid, volume) > settings["threshold"]
    strongest = np.argmax([_back(classes[:, n], grid, volume) for n in range(classes.shape[1])], axis=0)
    return np.where(mask, strongest + 1, 0)


def _slicewise_grid(volume: Volume, step: tuple[float, float]) -> WorkingGrid:
    """The volume's slices as they are, another pixel size."""
    slice_mm, *pixel = volume.spacing[::-1]
    extent = np.multiply(volume.shape[1:], pixel)
    flat = WorkingGrid.covering((0, 0, 0), (slice_mm, float(extent[0]), float(extent[1])), (slice_mm, *step))
    return WorkingGrid((0.0, *flat.start[1:]), flat.step, (volume.shape[0], *flat.count[1:]))


def _batched(models: Models, name: str, ct: np.ndarray, flat: bool = False) -> np.ndarray:
    """(K, J, I) slices through a network; (K, C, 1, J, I), or (K, C, J, I) from a 2-D network."""
    network = models.network(name)
    results = []
    with torch.inference_mode():
        for first in range(0, len(ct), SLICES_AT_ONCE):
            x = torch.from_numpy(ct[first : first + SLICES_AT_ONCE])[:, None].to(models.device)
            results.append(network(x if flat else x[:, :, None]).cpu().numpy())
    return np.concatenate(results)


def _back(values: np.ndarray, grid: WorkingGrid, volume: Volume) -> np.ndarray:
    whole = (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
    return from_grid(values, grid, volume.spacing[::-1], whole)


def _clean(mask: np.ndarray, volume: Volume) -> np.ndarray:
    """Small islands dropped and holes filled, (J, I)."""
    pixel_cm2 = volume.spacing[0] * volume.spacing[1] / 100
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) * pixel_cm2 >= SMALLEST_LUNG_CM2
    large[0] = False
    return ndimage.binary_fill_holes(large[labels])
