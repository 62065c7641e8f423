"""Metrics, tested against independent implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_draws(cls, value: float, drawn: Sequence[float] | np.ndarray) -> Interval:
        """With the percentile interval of what replicates gave, those that are no number left out."""
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return cls(float(value), float(low), float(high))


def interval_text(interval: Interval) -> str:
    """As in 0.702 [0.651, 0.748]."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


class Overlap(NamedTuple):
    """Voxels of two masks: found by the program, marked by the expert, and shared by both."""

    found: int
    expert: int
    shared: int

    @classmethod
    def of(cls, found: np.ndarray, expert: np.ndarray) -> Overlap:
        """Count two masks of one shape."""
        found, expert = found.astype(bool), expert.astype(bool)
        return cls(int(found.sum()), int(expert.sum()), int((found & expert).sum()))

    @property
    def dice(self) -> float:
        """Dice overlap; 1 when both masks are empty."""
        total = self.found + self.expert
        return 2 * self.shared / total if total else 1.0

    @property
    def sensitivity(self) -> float:
        """Share of the expert's voxels that were found.

        Raises:
            ZeroDivisionError: the expert marked nothing.
        """
        return self.shared / self.expert

    @classmethod
    def pooled(cls, overlaps: Sequence[Overlap]) -> Overlap:
        """The counts of several images added up."""
        found, expert, shared = (sum(counts) for counts in zip(*overlaps, strict=True))
        return cls(found, expert, shared)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two masks of one shape; 1 when both are empty."""
    return Overlap.of(a, b).dice


def widened(share: Interval, trials: int) -> Interval:
    """The interval of a share, made as wide as Wilson's of so many trials: a bootstrap of few cases is too narrow."""
    _, low, high = wilson(share.value * trials, trials)
    return Interval(share.value, min(share.low, low), max(share.high, high))


def wilson(successes: float, trials: int) -> Interval:
    """A proportion with Wilson's 95 % interval; successes need not be whole."""
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    # Rounding may leave the ends of 0 and of 1 just inside or outside.
    low = 0.0 if successes == 0 else float(centre - half)
    return Interval(share, low, 1.0 if successes == trials else float(centre + half))


Statistic = Callable[[Sequence[Overlap]], float]


def mean_dice(overlaps: Sequence[Overlap]) -> float:
    """Every image counts alike."""
    return float(np.mean([o.dice for o in overlaps]))


def pooled_dice(overlaps: Sequence[Overlap]) -> float:
    """Every voxel counts alike."""
    return Overlap.pooled(overlaps).dice


def mean_sensitivity(overlaps: Sequence[Overlap]) -> float:
    """Every image counts alike."""
    return float(np.mean([o.sensitivity for o in overlaps]))


def pooled_sensitivity(overlaps: Sequence[Overlap]) -> float:
    """Every voxel counts alike."""
    return Overlap.pooled(overlaps).sensitivity


def bootstrap_images(
    overlaps: Sequence[Overlap], statistic: Statistic, replicates: int = 2000, seed: int = 0
) -> Interval:
    """A statistic with the percentile interval of bootstrap replicates that draw images with replacement.

    Neighbouring slices of one patient are drawn as if they were independent, so the interval is narrower than
    one over patients would be.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(overlaps), size=(replicates, len(overlaps)))
    return Interval.of_draws(statistic(overlaps), [statistic([overlaps[n] for n in draw]) for draw in draws])


class BoundaryErrors(NamedTuple):
    """Where two masks differ, by distance from the boundary of the expert's.

    Attributes:
        edges_mm: n + 1 edges of bins of signed distance, negative inside the expert's mask.
        voxels: n, voxels in each bin.
        wrong: n, those of them on which the masks differ.
    """

    edges_mm: list[float]
    voxels: list[int]
    wrong: list[int]


def boundary_errors(
    found: np.ndarray, expert: np.ndarray, spacing: tuple[float, float, float], reach_mm: float = 20.0
) -> BoundaryErrors:
    """Count errors by signed distance from the expert's boundary, in bins of 1 mm.

    Args:
        found: bool (K, J, I).
        expert: bool (K, J, I), neither empty nor full.
        spacing: mm along (k, j, i).
        reach_mm: whole mm; what lies farther away is counted in the outermost bins.
    """
    # To the nearest voxel centre on the other side, less about half a voxel: nothing lies at distance zero.
    inside = ndimage.distance_transform_edt(expert, sampling=spacing)
    outside = ndimage.distance_transform_edt(~expert, sampling=spacing)
    distance = np.where(expert, -inside, outside) + np.where(expert, 0.5, -0.5) * min(spacing)
    edges = np.arange(-reach_mm, reach_mm + 1)
    place = np.clip(np.floor(distance + reach_mm).astype(int), 0, len(edges) - 2)
    voxels = np.bincount(place.ravel(), minlength=len(edges) - 1)
    wrong = np.bincount(place[found != expert], minlength=len(edges) - 1)
    return BoundaryErrors(edges.tolist(), voxels.tolist(), wrong.tolist())
