"""Discrimination: ROC curve with a bootstrap band, and areas under it with intervals and a paired test.

``scores`` are (N,) floats, higher for COVID-19; ``labels`` are (N,), 1 COVID-19 and 0 not. All intervals are of 95 %.
``strata`` are (N,) of any kind, or None: scores are compared only within a stratum, as those of a cross-validation's
networks have no common scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_curve

from .metrics import Interval, widened, wilson

REPLICATES = 2000
Z = float(norm.ppf(0.975))
GRID = np.linspace(0, 1, 101)
"""False positive rates at which the band is known."""


@dataclass(frozen=True)
class Roc:
    """A ROC curve and its pointwise band.

    Attributes:
        false_positive_rate, true_positive_rate: corners of the empirical curve.
        low, high: true positive rates of the band at ``GRID``.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Difference(NamedTuple):
    """Area of one score less that of another on the same cases.

    Attributes:
        areas: of both.
        interval: of the difference.
        p: two-sided, of no difference; NaN where the areas differ and the variance says nothing (no cases overlap).
    """

    areas: tuple[float, float]
    interval: Interval
    p: float


_Groups = tuple[np.ndarray, np.ndarray]


def _groups(scores: np.ndarray, labels: np.ndarray) -> _Groups:
    """Scores of COVID-19 and of the others.

    Raises:
        ValueError: one of them is missing.
    """
    positive = np.asarray(labels).astype(bool)
    scores = np.asarray(scores, float)
    if positive.all() or not positive.any():
        raise ValueError("Both COVID-19 and other cases are needed.")
    return scores[positive], scores[~positive]


def _placements(scores: np.ndarray, labels: np.ndarray) -> _Groups:
    """For each case the share of the other group that it is ranked right of, ties half (DeLong 1988)."""
    positives, negatives = _groups(scores, labels)
    ranks = rankdata(np.concatenate([positives, negatives]))
    of_positives = (ranks[: len(positives)] - rankdata(positives)) / len(negatives)
    of_negatives = 1 - (ranks[len(positives) :] - rankdata(negatives)) / len(positives)
    return of_positives, of_negatives


def _covariance(placements: list[_Groups]) -> np.ndarray:
    """Of the areas of several scores on the same cases."""
    total = np.zeros((len(placements), len(placements)))
    for group in zip(*placements, strict=True):
        total += np.atleast_2d(np.cov(np.stack(group))) / len(group[0])
    return total


def _areas(
    scores: Sequence[np.ndarray], labels: np.ndarray, strata: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Areas of several scores on the same cases and their covariance; strata weigh by their pairs of cases.

    Raises:
        ValueError: fewer than two cases of either kind in a stratum.
    """
    labels = np.asarray(labels)
    groups = np.zeros(len(labels), int) if strata is None else np.unique(strata, return_inverse=True)[1]
    areas, covariance, pairs = np.zeros(len(scores)), np.zeros((len(scores), len(scores))), 0
    for group in range(groups.max() + 1):
        inside = groups == group
        placements = [_placements(np.asarray(s)[inside], labels[inside]) for s in scores]
        counts = [len(p) for p in placements[0]]
        if min(counts) < 2:
            raise ValueError("DeLong's interval needs two cases of either kind.")
        weight = counts[0] * counts[1]
        areas += weight * np.array([p[0].mean() for p in placements])
        covariance += weight**2 * _covariance(placements)
        pairs += weight
    return areas / pairs, covariance / pairs**2


def delong(scores: np.ndarray, labels: np.ndarray, strata: np.ndarray | None = None) -> Interval:
    """Area with DeLong's variance, normal on the logit scale, so that the interval stays within 0 and 1.

    Where no cases overlap (in any stratum) the variance says nothing, and Wilson's interval of the smaller group stands
    for it.

    Raises:
        ValueError: fewer than two cases of either kind (in a stratum).
    """
    areas, covariance = _areas([scores], labels, strata)
    area, spread = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    if spread < 1e-12:
        # As unsure as a share of all cases of the smaller group.
        smaller = min(len(group) for group in _groups(scores, labels))
        low, high = wilson(area * smaller, smaller)[1:]
        return Interval(area, low, high)
    middle, half = logit(area), Z * spread / (area * (1 - area))
    return Interval(area, float(expit(middle - half)), float(expit(middle + half)))


def compare_areas(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, strata: np.ndarray | None = None
) -> Difference:
    """DeLong's test of two scores of the same cases.

    Raises:
        ValueError: fewer than two cases of either kind (in a stratum).
    """
    found, covariance = _areas([first, second], labels, strata)
    areas = (float(found[0]), float(found[1]))
    spread = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0)))
    difference = areas[0] - areas[1]
    # Two scores that order all cases alike do not differ, whatever their spread.
    p = 1.0 if abs(difference) < 1e-12 else math.nan
    if spread > 1e-12:
        p = float(2 * norm.sf(abs(difference) / spread))
    return Difference(areas, Interval(difference, difference - Z * spread, difference + Z * spread), p)


def demidenko(scores: np.ndarray, labels: np.ndarray) -> Interval:
    """Area of the binormal model with its asymptotic interval (Demidenko 2012), as the paper reports it.

    Both groups are taken to be normal: the area is that of means and variances, not of ranks.

    Raises:
        ValueError: fewer than two cases of a kind, no score differs from others of its kind, or no cases overlap: the
            model then says that none ever will.
    """
    positives, negatives = _groups(scores, labels)
    groups = (positives, negatives)
    if positives.min() > negatives.max() or positives.max() < negatives.min():
        raise ValueError("The binormal model needs cases that overlap.")
    if min(map(len, groups)) < 2:
        raise ValueError("The binormal model needs two cases of either kind.")
    variances = [float(g.var(ddof=1)) for g in groups]
    total = sum(variances)
    if not total > 0:
        raise ValueError("The binormal model needs scores that differ.")
    apart = (positives.mean() - negatives.mean()) / np.sqrt(total)
    # Delta method: means and variances of normal samples are independent.
    of_means = sum(v / len(g) for v, g in zip(variances, groups, strict=True)) / total
    of_variances = sum(2 * v**2 / (len(g) - 1) for v, g in zip(variances, groups, strict=True))
    half = Z * np.sqrt(of_means + apart**2 / (4 * total**2) * of_variances)
    area, low, high = norm.cdf([apart, apart - half, apart + half])
    return Interval(float(area), float(low), float(high))


def _replicates(scores: np.ndarray, labels: np.ndarray, replicates: int, seed: int) -> Iterator[_Groups]:
    """Sorted scores of both groups, each drawn anew with replacement (stratified bootstrap)."""
    rng = np.random.default_rng(seed)
    groups = _groups(scores, labels)
    for _ in range(replicates):
        yield _sorted(*(rng.choice(g, len(g)) for g in groups))


def _sorted(positives: np.ndarray, negatives: np.ndarray) -> _Groups:
    return np.sort(positives), np.sort(negatives)


def _sensitivity_at(positives: np.ndarray, negatives: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """True positive rate at each of these false positive rates: straight between the corners, as the curve is drawn.

    Where the curve is upright, its upper end. Sorted groups.
    """
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    # Not 1 minus a share, whose rounding would lie beyond the rate that it is.
    true, false = ((len(g) - np.searchsorted(g, thresholds)) / len(g) for g in (positives, negatives))
    at: np.ndarray = np.interp(rates, np.concatenate([[0], false]), np.concatenate([[0], true]))
    return at


def roc(scores: np.ndarray, labels: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> Roc:
    """The curve, and the band that holds 95 % of stratified bootstrap replicates at each false positive rate."""
    curves = np.stack([_sensitivity_at(*groups, GRID) for groups in _replicates(scores, labels, replicates, seed)])
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return Roc(fpr, tpr, low, high)


def _false_positive_rate(positives: np.ndarray, negatives: np.ndarray, sensitivity: float) -> float:
    needed = max(int(np.ceil(sensitivity * len(positives) - 1e-9)), 1)
    return 1 - float(np.searchsorted(negatives, positives[-needed], side="left")) / len(negatives)


def false_positive_rate_at(
    scores: np.ndarray,
    labels: np.ndarray,
    sensitivity: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """False positive rate where this sensitivity is just reached, with the bootstrap's percentile interval.

    It is no narrower than Wilson's of that rate: where no cases overlap, replicates are all alike.
    """
    value = _false_positive_rate(*_sorted(*_groups(scores, labels)), sensitivity)
    drawn = [_false_positive_rate(*g, sensitivity) for g in _replicates(scores, labels, replicates, seed)]
    count = int((np.asarray(labels) == 0).sum())
    return widened(Interval.of_draws(value, drawn), count)
