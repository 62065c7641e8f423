"""The one lesion mask: 2DS and the 3-D U-Net agree on where, the U-Net says which class (paper 3, 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from ..ct.regrid import Region, Triple, WorkingGrid, bounding_region, from_grid, region_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import CLASSIFIER, scale
from .compute import count_macs, watch_macs
from .models import Models
from .tiles import run_network

LesionSource = Literal["both", "lesions", "involvement"]

MARGIN_MM = 9.0
SLAB_VOXELS = 1_200_000
SLICES_AT_ONCE = 16


def segment_lesions(
    axial: Volume,
    lungs: np.ndarray,
    models: Models,
    report: Callable[[float], None],
    source: LesionSource = "both",
) -> np.ndarray:
    """Segment lesions inside the lungs.

    Args:
        axial: HU, k inferior to superior, j anterior to posterior, i right to left.
        lungs: uint8 (K, J, I), not 0 in the lungs.
        models: gives the networks ``lesions`` (classes) and ``involvement`` (2DS) and their grid.
        report: gets the fraction of the work done.
        source: the mask is where the mean of both networks' probabilities passes the threshold, or one
            network's; the class is always the U-Net's.

    Returns:
        uint8 (K, J, I): 0 none, else the number of the class in ``networks.LESION_CLASSES``.
    """
    spacing = axial.spacing[::-1]
    settings = models.preprocessing("lesions")
    region = bounding_region(lungs > 0)
    grid = _grid_around(region, spacing, tuple(settings["step_mm"]), axial.shape)
    ct = scale(to_grid(axial.voxels, spacing, grid), CLASSIFIER)

    # The class is the U-Net's whichever network draws the mask, so it always runs.
    classes = run_network(
        models.network("lesions"),
        ct,
        models.device,
        lambda x: torch.softmax(x, 1)[:, 1:],
        lambda f: report(0.75 * f),
        SLAB_VOXELS,
        overlap=8,
    )
    probability = classes.sum(0)
    if source != "lesions":
        pathological = _run_2ds(models, ct, lambda f: report(0.75 + 0.15 * f))
        probability = pathological if source == "involvement" else (probability + pathological) / 2
    labels = _to_region(classes, probability, settings["threshold"], grid, spacing, region)
    result = np.zeros(axial.shape, np.uint8)
    result[region] = np.where(lungs[region] > 0, labels, 0)
    return result


def _grid_around(region: Region, spacing: Triple, step: Triple, shape: tuple[int, int, int]) -> WorkingGrid:
    box = region_grid(region, spacing)
    extent = np.multiply(shape, spacing)
    start = np.maximum(np.asarray(box.start) - MARGIN_MM, 0)
    stop = np.minimum(np.asarray(box.stop) + MARGIN_MM, extent)
    return WorkingGrid.covering(tuple(start), tuple(stop), step)


def _run_2ds(models: Models, ct: np.ndarray, report: Callable[[float], None]) -> np.ndarray:
    """Probability of pathological tissue, (K, J, I), slice by slice."""
    network = models.network("involvement").to(memory_format=torch.channels_last)
    planned = count_macs(network, (ct.shape[0], 1, *ct.shape[1:]))
    done = 0

    def advance(macs: int) -> None:
        nonlocal done
        done += macs
        report(done / planned)

    results = []
    with watch_macs(network, advance), torch.inference_mode():
        for first in range(0, ct.shape[0], SLICES_AT_ONCE):
            x = torch.from_numpy(ct[first : first + SLICES_AT_ONCE])[:, None].to(models.device)
            x = x.to(memory_format=torch.channels_last)
            results.append(torch.sigmoid(network(x))[:, 0].cpu().numpy())
    return np.concatenate(results)


def _to_region(
    classes: np.ndarray,
    probability: np.ndarray,
    threshold: float,
    grid: WorkingGrid,
    spacing: Triple,
    region: Region,
) -> np.ndarray:
    """Class labels on a region of the CT's grid; the arg-max runs class by class to save memory."""
    mask = from_grid(probability, grid, spacing, region) > threshold
    labels = np.zeros(mask.shape, np.uint8)
    best = np.full(mask.shape, -1, np.float32)
    for number, values in enumerate(classes, start=1):
        here = from_grid(values, grid, spacing, region)
        better = here > best
        labels[better] = number
        best[better] = here[better]
    labels[~mask] = 0
    return labels
