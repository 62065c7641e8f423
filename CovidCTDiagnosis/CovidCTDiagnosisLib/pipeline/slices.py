"""8-bit lung-window slices through the networks that serve a CT: each slice a volume with its edge repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage

from ..ct.regrid import WorkingGrid, from_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import CLASSIFIER, LUNG_SEGMENTATION, scale
from ..networks import LESION_CLASSES
from .lesions import LesionSource, mask_probability, reach_out, share_out, two_classes, usual_source
from .models import Models
from .slice_orientation import outside_air

NOMINAL_PIXEL_MM = 0.7
"""Pixel size taken for slices that come without one."""
NOMINAL_SLICE_MM = 3.0
"""Increment taken for stacks that come without one."""

SLICES_AT_ONCE = 8
LUNGS_SHARE = 0.25
"""Of the time that a lone slice takes."""
SMALLEST_LUNG_CM2 = 2.0
SMALL_PIECE, EDGE_SHARE = 0.15, 0.8
"""A piece of the lungs' area and of its own side, from which on it is too small and too much on the edge to be lung."""
LARGEST_AIRWAY_CM2, AIRWAY_OFF_CENTRE, AIRWAY_HU = 10.0, 0.08, -840
"""Off the picture's middle as a share of its width; air in a lung has vessels around it."""
LARGEST_HOLE_CM2 = 15.0
"""Vessels and consolidation enclosed by lung are smaller, the mediastinum between two touching lungs is not."""


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
    alone = [stack_slices([hu], slice_mm, pixel_mm) for hu in slices]
    lungs = slice_lungs(alone, models, lambda fraction: report(LUNGS_SHARE * fraction))
    lungs, lesions = slice_lesions(
        alone, lungs, models, lambda fraction: report(LUNGS_SHARE + (1 - LUNGS_SHARE) * fraction)
    )
    return [mask[0] for mask in lungs], [labels[0] for labels in lesions]


def slice_lungs(volumes: Sequence[Volume], models: Models, report: Callable[[float], None]) -> list[np.ndarray]:
    """Lungs of lone slices.

    Args:
        volumes: HU, (K, J, I) each, upright.
        models: gives the network ``lungs`` and its grid.
        report: gets the fraction of the volumes done.

    Returns:
        bool (K, J, I) for each volume.
    """
    network = models.network("lungs")
    fine = models.preprocessing("lungs")["fine_mm"]
    results = []
    for done, volume in enumerate(volumes, start=1):
        grid = _slicewise_grid(volume, (fine, fine))
        ct = scale(to_grid(volume.voxels, volume.spacing[::-1], grid), LUNG_SEGMENTATION)
        logits = _back(_batched(network, models.device, ct)[:, 0, 0], grid, volume)
        pixel_cm2 = volume.spacing[0] * volume.spacing[1] / 100
        results.append(
            np.stack([clean_slice(m > 0, hu, pixel_cm2) for m, hu in zip(logits, volume.voxels, strict=True)])
        )
        report(done / len(volumes))
    return results


def slice_lesions(
    volumes: Sequence[Volume],
    lungs: Sequence[np.ndarray],
    models: Models,
    report: Callable[[float], None],
    merge: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lesion classes of lone slices, as ``segment_lesions`` finds them.

    Args:
        volumes: HU, (K, J, I) each, upright.
        lungs: bool (K, J, I) for each volume.
        models: gives the networks ``lesions`` and ``involvement`` and their grid.
        report: gets the fraction of the slices done.
        merge: give the two classes of ``two_classes``.

    Returns:
        Lungs with the lesions that reach out of them, bool (K, J, I) for each volume, and classes, uint8 (K, J, I),
        zero outside these lungs.
    """
    threshold = models.preprocessing("lesions")["threshold"]
    joined, results = [], []
    for probabilities, mask in zip(slice_probabilities(volumes, models, report), lungs, strict=True):
        found = [p.lesions(inside, threshold, merge) for p, inside in zip(probabilities, mask, strict=True)]
        joined.append(np.stack([m for m, _ in found]))
        results.append(np.stack([labels for _, labels in found]))
    return joined, results


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
    volumes: Sequence[Volume],
    models: Models,
    report: Callable[[float], None] = lambda fraction: None,
    source: LesionSource | None = None,
) -> Iterator[list[SliceProbabilities]]:
    """Run the lesion networks on every slice of upright volumes.

    Args:
        volumes: HU, (K, J, I) each.
        models: gives the networks ``lesions`` and ``involvement`` and their grid.
        report: gets the fraction of the slices done.
        source: who draws the mask, or None for ``usual_source``.
    """
    slices, done = sum(len(volume.voxels) for volume in volumes), 0
    unet, involvement = models.network("lesions"), models.network("involvement")
    source = source or usual_source(models)
    settings = models.preprocessing("lesions")
    step = tuple(settings["step_mm"][1:])
    for volume in volumes:
        found = []
        for first in range(0, len(volume.voxels), SLICES_AT_ONCE):
            some = Volume(volume.voxels[first : first + SLICES_AT_ONCE], volume.spacing)
            grid = _slicewise_grid(some, step)
            ct = scale(to_grid(some.voxels, some.spacing[::-1], grid), CLASSIFIER)
            tissues = torch.sigmoid(torch.from_numpy(_batched(involvement, models.device, ct, flat=True))).numpy()
            flat = replace(grid, count=(1, *grid.count[1:]))
            for hu, pixels, tissue in zip(some.voxels, ct, tissues, strict=True):
                if source != "involvement" or (tissue[0] > settings["threshold"]).any():
                    logits = torch.from_numpy(_batched(unet, models.device, pixels[None]))
                    classes = torch.softmax(logits, 1)[0, 1:].numpy()
                else:
                    classes = np.zeros((len(LESION_CLASSES) - 1, *flat.count), np.float32)
                alone = Volume(hu[None], volume.spacing)
                found.append(SliceProbabilities(alone, flat, classes, tissue[:, None], source))
                done += 1
                report(done / slices)
        yield found


def _slicewise_grid(volume: Volume, step: tuple[float, float]) -> WorkingGrid:
    """The volume's slices as they are, another pixel size."""
    slice_mm, *pixel = volume.spacing[::-1]
    extent = np.multiply(volume.shape[1:], pixel)
    flat = WorkingGrid.covering((0, 0, 0), (slice_mm, float(extent[0]), float(extent[1])), (slice_mm, *step))
    return WorkingGrid((0.0, *flat.start[1:]), flat.step, (volume.shape[0], *flat.count[1:]))


def _batched(network: Any, device: torch.device, ct: np.ndarray, flat: bool = False) -> np.ndarray:
    """(K, J, I) slices through a network; (K, C, 1, J, I), or (K, C, J, I) from a 2-D network."""
    results = []
    with torch.inference_mode():
        for first in range(0, len(ct), SLICES_AT_ONCE):
            x = torch.from_numpy(ct[first : first + SLICES_AT_ONCE])[:, None].to(device)
            results.append(network(x if flat else x[:, :, None]).cpu().numpy())
    return np.concatenate(results)


def _back(values: np.ndarray, grid: WorkingGrid, volume: Volume) -> np.ndarray:
    whole = (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
    return from_grid(values, grid, volume.spacing[::-1], whole)


def clean_slice(mask: np.ndarray, hu: np.ndarray, pixel_cm2: float) -> np.ndarray:
    """Lungs of a slice without small islands, airway, room air and what lies along the edge; small holes filled.

    Args:
        mask: bool (J, I), lung by the network.
        hu: (J, I).
        pixel_cm2: area of a pixel.

    Returns:
        bool (J, I).
    """
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    in_room = np.bincount(labels.ravel(), outside_air(hu).ravel(), minlength=count + 1)
    keep = (sizes * pixel_cm2 >= SMALLEST_LUNG_CM2) & (in_room < sizes / 2) & ~_on_the_edge(labels, sizes)
    keep &= ~_airway(labels, sizes * pixel_cm2, hu)
    keep[0] = False
    kept = keep[labels]
    holes, count = ndimage.label(ndimage.binary_fill_holes(kept) & ~kept)
    small = np.bincount(holes.ravel(), minlength=count + 1) * pixel_cm2 < LARGEST_HOLE_CM2
    small[0] = False
    return kept | small[holes]


def _on_the_edge(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of each piece, whether it is small and lies along the picture's edge: air beside a body that the crop cuts."""
    edge = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    touching = np.bincount(edge, minlength=len(sizes))
    small = sizes < SMALL_PIECE * sizes[1:].sum()
    return small & (touching > EDGE_SHARE * np.sqrt(sizes))


def _airway(labels: np.ndarray, areas_cm2: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """Of each piece, whether it is trachea or a main bronchus: not large, near the middle and as dark as air."""
    found = np.zeros(len(areas_cm2), bool)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if areas_cm2[number] > LARGEST_AIRWAY_CM2:
            continue
        piece = labels[box] == number
        middle = box[1].start + np.nonzero(piece)[1].mean()
        central = abs(middle / labels.shape[1] - 0.5) < AIRWAY_OFF_CENTRE
        found[number] = central and np.median(hu[box][piece]) < AIRWAY_HU
    return found
