"""From the networks' probabilities to the lesion mask and its classes, on the working grid and on the CT's."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, from_grid

LesionSource = Literal["both", "lesions", "involvement"]
"""Who draws the lesion mask: where the mean of both networks' probabilities passes the threshold, or one network's."""

FILLED_SLICES = 16
"""Slices of the CT labelled at a time, so that probabilities never lie on its whole grid."""


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


def label_lesions(
    classes: np.ndarray,
    probability: np.ndarray,
    threshold: float,
    grid: WorkingGrid,
    lungs: np.ndarray,
    spacing: Triple,
    region: Region,
    merge: bool,
) -> np.ndarray:
    """Class labels on the CT's grid, some slices at a time and only where there is a lesion.

    Args:
        classes: (4, K, J, I) on the working grid, each lesion class's probability.
        probability: (K, J, I) on the working grid, of lesion.
        threshold: a lesion lies where the probability, interpolated, is above it.
        grid: the working grid.
        lungs: uint8 on the CT's grid, not 0 where lesions may be.
        spacing: mm of the CT along (k, j, i).
        region: of the CT's grid that holds the lungs.
        merge: give the two classes of ``two_classes``.

    Returns:
        uint8 of the lungs' shape: 0 none, else the number in ``networks.LESION_CLASSES``.
    """
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
