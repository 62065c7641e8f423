"""8-bit lung-window slices through the networks that serve a CT: each slice a volume with its edge repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch

from ..ct.regrid import Triple, WorkingGrid, from_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_SEGMENTATION, LUNG_WINDOW, scale
from ..networks import LESION_CLASSES
from .lesion_mask import LesionSource, mask_probability, share_out, two_classes
from .lesion_reach import reach_out
from .lesions import usual_source
from .models import Models
from .slice_cleaning import clean_slice
from .tiles import BATCH_VOXELS

NOMINAL_PIXEL_MM = 0.7
"""Pixel size taken for slices that come without one."""
NOMINAL_SLICE_MM = 3.0
"""Increment taken for stacks that come without one."""

SLICES_AT_ONCE = 8
"""At most; of large slices fewer."""
LUNGS_SHARE = 0.25
"""Of the time that a lone slice takes."""


def stack_slices(slices: Sequence[np.ndarray], slice_mm: float, pixel_mm: float = NOMINAL_PIXEL_MM) -> Volume:
    """Slices of various sizes as one volume, each centred, its edge repeated up to the largest size.

    Args:
        slices: (J, I) HU each, inferior to superior.
        slice_mm: increment.
        pixel_mm: pixel size.
    """
    return Volume(_stacked(slices, mode="edge"), (pixel_mm, pixel_mm, slice_mm))


def stack_masks(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Masks of slices, (J, I) each, on the grid of ``stack_slices``: zero where a slice was made larger."""
    return _stacked(masks, mode="constant")


def _stacked(images: Sequence[np.ndarray], mode: Literal["edge", "constant"]) -> np.ndarray:
    size = np.max([image.shape for image in images], axis=0)

    def padded(image: np.ndarray) -> np.ndarray:
        before = (size - image.shape) // 2
        after = size - image.shape - before
        return np.pad(image, list(zip(before, after, strict=True)), mode=mode)

    return np.stack([padded(image) for image in images])


def segment_slices(
    slices: Sequence[np.ndarray],
    models: Models,
    slice_mm: float,
    pixel_mm: float = NOMINAL_PIXEL_MM,
    report: Callable[[float], None] = lambda fraction: None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lungs and lesions of lone slices, each in its own size: a repeated edge can look like lung.

    Args:
        slices: HU, (J, I) each, upright; neighbouring slices are not assumed to continue each other.
        models: the bundle's networks.
        slice_mm: thickness.
        pixel_mm: pixel size.
        report: gets the fraction of the work done.

    Returns:
        For each slice its lungs, bool (J, I), and its lesion classes, uint8 (J, I), zero outside the lungs.
    """
    spacing = (pixel_mm, pixel_mm, slice_mm)
    lungs = slice_lungs(slices, spacing, models, lambda fraction: report(LUNGS_SHARE * fraction))
    return slice_lesions(
        slices, lungs, spacing, models, lambda fraction: report(LUNGS_SHARE + (1 - LUNGS_SHARE) * fraction)
    )


def slice_lungs(
    slices: Sequence[np.ndarray], spacing: Triple, models: Models, report: Callable[[float], None]
) -> list[np.ndarray]:
    """Lungs of lone slices.

    Args:
        slices: HU, (J, I) each, upright.
        spacing: mm along (i, j, k).
        models: gives the network ``lungs`` and its grid.
        report: gets the fraction of the slices done.

    Returns:
        bool (J, I) for each slice.
    """
    network = models.network("lungs")
    fine = models.preprocessing("lungs")["fine_mm"]
    pixel_cm2 = spacing[0] * spacing[1] / 100
    results: list[np.ndarray] = []
    for some in _equal_slices(slices, spacing, (fine, fine)):
        grid = _slicewise_grid(some, (fine, fine))
        ct = scale(to_grid(some.voxels, some.spacing[::-1], grid), LUNG_SEGMENTATION)
        logits = _back(_run(network, models.device, ct[:, None])[:, 0, 0], grid, some)
        results += [clean_slice(m > 0, hu, pixel_cm2) for m, hu in zip(logits, some.voxels, strict=True)]
        report(len(results) / len(slices))
    return results


def slice_lesions(
    slices: Sequence[np.ndarray],
    lungs: Sequence[np.ndarray],
    spacing: Triple,
    models: Models,
    report: Callable[[float], None],
    merge: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lesion classes of lone slices, as ``segment_lesions`` finds them.

    Args:
        slices: HU, (J, I) each, upright.
        lungs: bool (J, I) for each slice.
        spacing: mm along (i, j, k).
        models: gives the networks ``lesions`` and ``involvement`` and their grid.
        report: gets the fraction of the slices done.
        merge: give the two classes of ``two_classes``.

    Returns:
        For each slice its lungs with the lesions that reach out of them, bool (J, I), and classes, uint8 (J, I), zero
        outside these lungs.
    """
    threshold = models.preprocessing("lesions")["threshold"]
    found = slice_probabilities(slices, spacing, models, report)
    pairs = [p.lesions(inside, threshold, merge) for p, inside in zip(found, lungs, strict=True)]
    return [joined for joined, _ in pairs], [labels for _, labels in pairs]


@dataclass(frozen=True)
class SliceProbabilities:
    """What the lesion networks say of a lone slice.

    Attributes:
        slice: HU, (1, J, I).
        grid: the working grid, one slice.
        unet: (4, 1, J, I) on it, the U-Net's probability of each lesion class; 0 where it was not asked.
        tissue: (1 or 2, 1, J, I) on it, 2DS's: of pathological tissue and, of that, of consolidation.
        source: who draws the mask.
    """

    slice: Volume
    grid: WorkingGrid
    unet: np.ndarray
    tissue: np.ndarray
    source: LesionSource

    def lesions(self, lungs: np.ndarray, threshold: float, merge: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Lungs, bool (J, I), with the lesions that reach out of them, and lesion classes, uint8 (J, I).

        Args:
            lungs: bool (J, I).
            threshold: of the probability.
            merge: give the two classes of ``two_classes``.
        """
        inside = to_grid(lungs[None].astype(np.float32), self.slice.spacing[::-1], self.grid) > 0.5
        outside = reach_out(inside, self.tissue[0] > threshold)
        # Of both together, as what lies outside alone fades before it meets the lungs, which would leave a seam.
        both = self._back((inside | outside).astype(np.float32)) > 0.5
        reached = lungs | (both & (self._back(outside.astype(np.float32)) > 0))
        probability, classes = mask_probability(self.unet, self.tissue[0], self.source), self.unet.copy()
        share_out(probability, classes, self.tissue)
        lesion = (self._back(probability) > threshold) & reached
        fine = np.stack([self._back(values) for values in classes])
        labels = np.where(lesion, fine.argmax(0) + 1, 0).astype(np.uint8)
        if merge:
            labels = two_classes(labels, fine[1] > fine[0])
        return lungs | lesion, labels

    def _back(self, values: np.ndarray) -> np.ndarray:
        return _back(values, self.grid, self.slice)[0]


def slice_probabilities(
    slices: Sequence[np.ndarray],
    spacing: Triple,
    models: Models,
    report: Callable[[float], None] = lambda fraction: None,
    source: LesionSource | None = None,
) -> Iterator[SliceProbabilities]:
    """Run the lesion networks on lone slices: 2DS on some at once, the U-Net where it is asked.

    Args:
        slices: HU, (J, I) each, upright.
        spacing: mm along (i, j, k).
        models: gives the networks ``lesions`` and ``involvement`` and their grid.
        report: gets the fraction of the slices done.
        source: who draws the mask, or None for ``usual_source``.
    """
    done = 0
    unet, involvement = models.network("lesions"), models.network("involvement")
    source = source or usual_source(models)
    settings = models.preprocessing("lesions")
    step = tuple(settings["step_mm"][1:])
    for some in _equal_slices(slices, spacing, step):
        grid = _slicewise_grid(some, step)
        flat = replace(grid, count=(1, *grid.count[1:]))
        ct = scale(to_grid(some.voxels, some.spacing[::-1], grid), LUNG_WINDOW)
        tissues = torch.sigmoid(torch.from_numpy(_run(involvement, models.device, ct))).numpy()
        for hu, pixels, tissue in zip(some.voxels, ct, tissues, strict=True):
            if source != "involvement" or (tissue[0] > settings["threshold"]).any():
                logits = torch.from_numpy(_run(unet, models.device, pixels[None, None]))
                classes = torch.softmax(logits, 1)[0, 1:].numpy()
            else:
                classes = np.zeros((len(LESION_CLASSES) - 1, *flat.count), np.float32)
            yield SliceProbabilities(Volume(hu[None], spacing), flat, classes, tissue[:, None], source)
            done += 1
            report(done / len(slices))


def _equal_slices(slices: Sequence[np.ndarray], spacing: Triple, step: tuple[float, float]) -> Iterator[Volume]:
    """Successive slices of one size as volumes, each of what goes through a network together on this working grid."""
    for shape, run in groupby(slices, key=np.shape):
        equal = list(run)
        working = math.prod(n * mm / s for n, mm, s in zip(shape, spacing[1::-1], step, strict=True))
        together = max(min(SLICES_AT_ONCE, int(BATCH_VOXELS / working)), 1)
        for first in range(0, len(equal), together):
            yield Volume(np.stack(equal[first : first + together]), spacing)


def _slicewise_grid(volume: Volume, step: tuple[float, float]) -> WorkingGrid:
    """The volume's slices as they are, another pixel size."""
    slice_mm, *pixel = volume.spacing[::-1]
    extent = np.multiply(volume.shape[1:], pixel)
    flat = WorkingGrid.covering((0, 0, 0), (slice_mm, float(extent[0]), float(extent[1])), (slice_mm, *step))
    return WorkingGrid((0.0, *flat.start[1:]), flat.step, (volume.shape[0], *flat.count[1:]))


def _run(network: Any, device: torch.device, ct: np.ndarray) -> np.ndarray:
    """(B, ...) slices through a network that takes (B, 1, ...)."""
    with torch.inference_mode():
        output: torch.Tensor = network(torch.from_numpy(ct)[:, None].to(device))
    return output.cpu().numpy()


def _back(values: np.ndarray, grid: WorkingGrid, volume: Volume) -> np.ndarray:
    whole = (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
    return from_grid(values, grid, volume.spacing[::-1], whole)
