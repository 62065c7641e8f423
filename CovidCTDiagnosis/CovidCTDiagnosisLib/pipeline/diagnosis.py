"""COVID-19 score and probability from masked slices and lesion masks (paper sections 4.1 and 4.2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from ..ct.regrid import Triple, WorkingGrid, bounding_region, covered_share, region_grid, to_grid
from ..ct.volume import Volume
from ..ct.windows import LUNG_WINDOW, scale
from ..networks import Novelty
from .appearance import UNKNOWN, UNRELIABLE, Appearance, UsualAppearance, lung_appearance
from .compute import channels_last
from .models import Models

SLICES_AT_ONCE = 16
STEPS = 255
"""Of the grey levels and of a pixel's share of lesion."""
FEWEST_PIXELS = 4
"""In-plane, for the classifier's two poolings."""


@dataclass(frozen=True)
class ClassifierInput:
    """What the classifier sees.

    Attributes:
        ct: (S, 1, H, W) float32, scaled, zero outside the lungs.
        lesions: (S, 1, H, W) float32, share of each pixel that is lesion.
        inside: (S, 1, H, W) bool, pixels that hold any lung.
        grid: where the slices lie in the axial volume.
        appearance: of the CT at full resolution.
        involvement_percent: lesions' share of the lungs, of all voxels of the axial volume.
    """

    ct: torch.Tensor
    lesions: torch.Tensor
    inside: torch.Tensor
    grid: WorkingGrid
    appearance: Appearance = UNKNOWN
    involvement_percent: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """The classifier's answer.

    Attributes:
        scores: before softmax: not COVID-19, COVID-19.
        probability: calibrated, of COVID-19.
        threshold: the label is COVID-19 from this probability on.
        novelty: distance from what the classifier learned from, unusual from 1 on; None if the bundle cannot say.
        appearance_warnings: that it is a guess how the patient lies, and that the scan looks unlike those: few slices,
            noise, blur, tissue that is too dark, narrow lungs.
    """

    scores: tuple[float, float]
    probability: float
    threshold: float
    novelty: float | None = None
    appearance_warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``COVID-19`` or ``not COVID-19``."""
        return "COVID-19" if self.probability >= self.threshold else "not COVID-19"

    @property
    def warnings(self) -> list[str]:
        """What to tell the user beside the probability."""
        if self.novelty is None or self.novelty < 1:
            return list(self.appearance_warnings)
        return [
            f"This scan is unlike those that the classifier learned from ({self.novelty:.1f} times the usual "
            f"distance): {UNRELIABLE}.",
            *self.appearance_warnings,
        ]


def classifier_input(
    axial: Volume, lungs: np.ndarray, lesions: np.ndarray, *, slice_mm: float, longest_side: int
) -> ClassifierInput:
    """Masked lungs in their in-plane bounding box, 3 mm slices, one working size, aspect kept.

    Args:
        axial: HU, (K, J, I), k inferior to superior.
        lungs: uint8 (K, J, I), not 0 in the lungs.
        lesions: uint8 (K, J, I), not 0 in lesions.
        slice_mm: slice increment.
        longest_side: pixels along the longer side of the box.
    """
    spacing = axial.spacing[::-1]
    region = bounding_region(lungs > 0)
    box = region_grid(region, spacing)
    pixel = max(box.count[1] * box.step[1], box.count[2] * box.step[2]) / longest_side
    step: Triple = (slice_mm, pixel, pixel)
    grid = _fit(box, step)
    inner = _relative(grid, box)
    mask = lungs[region] > 0
    masked = scale(axial.voxels[region], LUNG_WINDOW) * mask
    ct = to_grid(masked, spacing, inner)
    inside = covered_share(mask, spacing, inner) > 1e-6
    diseased = (lesions[region] > 0) & mask
    lesion = to_grid(diseased, spacing, inner)
    ct, lesion = _in_steps(ct) * inside, _in_steps(lesion) * inside
    appearance = lung_appearance(axial.voxels, lungs > 0, spacing)
    involvement = 100 * np.count_nonzero(diseased) / np.count_nonzero(mask)
    return ClassifierInput(_slices(ct), _slices(lesion), _slices(inside), grid, appearance, involvement)


def _in_steps(values: np.ndarray) -> np.ndarray:
    """Values of 0 to 1 in ``STEPS``, float32, as the classifier has learned from them.

    Resampling leaves 1 as 1 ± 2e-7. Max pooling picks the largest, so in a lesion that fills its pixels the last bit
    would say where relevance goes, and another computer's heatmap would differ.
    """
    steps: np.ndarray = np.rint(np.clip(values, 0, 1) * STEPS).astype(np.float32) / np.float32(STEPS)
    return steps


def _slices(voxels: np.ndarray) -> torch.Tensor:
    """(S, H, W) as (S, 1, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(voxels)).unsqueeze(1)


def _fit(box: WorkingGrid, step: Triple) -> WorkingGrid:
    """A grid over the box with about this step: whole voxels, so that none reaches beyond the box.

    In-plane there are as many as the classifier's pooling needs, however narrow the lungs are.
    """
    extent = np.multiply(box.step, box.count)
    count = np.maximum(np.rint(extent / np.asarray(step)), (1, FEWEST_PIXELS, FEWEST_PIXELS)).astype(int)
    fitted = extent / count
    return WorkingGrid(
        box.start,
        (float(fitted[0]), float(fitted[1]), float(fitted[2])),
        (int(count[0]), int(count[1]), int(count[2])),
    )


def _relative(grid: WorkingGrid, box: WorkingGrid) -> WorkingGrid:
    """The grid as seen from the box's own corner."""
    start = np.subtract(grid.start, box.start)
    return WorkingGrid((float(start[0]), float(start[1]), float(start[2])), grid.step, grid.count)


class Seen(Protocol):
    """What the classifier sees of a scan and what is known of how it looks: a ``ClassifierInput``, or one kept."""

    @property
    def ct(self) -> torch.Tensor:
        """(S, 1, H, W)."""

    @property
    def lesions(self) -> torch.Tensor:
        """(S, 1, H, W)."""

    @property
    def appearance(self) -> Appearance:
        """Of the lungs and around them."""


def diagnose(inputs: Seen, models: Models, report: Callable[[float], None]) -> Diagnosis:
    """Score the volume and calibrate.

    Args:
        inputs: what the classifier sees.
        models: gives the network ``classifier`` and the bundle's calibration.
        report: gets the fraction of the work done.
    """
    network = channels_last(models.network("classifier"))
    features, sums, pixels = [], [], []
    with torch.inference_mode():
        for first in range(0, len(inputs.ct), SLICES_AT_ONCE):
            ct, lesions = (
                x[first : first + SLICES_AT_ONCE].to(models.device, memory_format=torch.channels_last)
                for x in (inputs.ct, inputs.lesions)
            )
            maps = network.encoder(ct, lesions)
            features.append(network.descriptors(maps))
            in_lungs = Novelty.lung_sums(maps, ct)
            sums.append(in_lungs[0])
            pixels.append(in_lungs[1])
            report(min((first + SLICES_AT_ONCE) / len(inputs.ct), 1.0))
        negative, positive = network.scores(torch.cat(features)).tolist()
        novelty = _novelty(torch.stack(sums).sum(0) / torch.stack(pixels).sum(0).clamp(min=1), models)
    settings = models.bundle.settings
    usual = UsualAppearance(**settings["appearance"]) if "appearance" in settings else None
    told = tuple(usual.warnings(inputs.appearance, len(inputs.ct))) if usual else ()
    return replace(calibrated((negative, positive), settings["diagnosis"]), novelty=novelty, appearance_warnings=told)


def _novelty(averages: torch.Tensor, models: Models) -> float | None:
    if "novelty" not in models.bundle.networks:
        return None
    return float(models.network("novelty")(averages))


def calibrated(scores: tuple[float, float], settings: dict[str, float]) -> Diagnosis:
    """Platt scaling of the difference of the scores: p = 1 / (1 + exp(-(slope * difference + offset)))."""
    logit = settings["slope"] * (scores[1] - scores[0]) + settings["offset"]
    probability = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
    return Diagnosis(scores, probability, settings["threshold"])
