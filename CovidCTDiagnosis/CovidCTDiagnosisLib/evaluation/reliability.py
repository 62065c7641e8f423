"""Whether probabilities mean what they say, and whether acting on them helps.

``probability`` is (N,), of COVID-19; ``labels`` are (N,), 1 COVID-19 and 0 not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import brier_score_loss

from .metrics import Interval, wilson

BINS = 10
REPLICATES = 1000


class Bin(NamedTuple):
    """Cases of about one predicted probability.

    Attributes:
        predicted: mean probability.
        observed: share of COVID-19 cases, with Wilson's 95 % interval.
        cases: how many.
    """

    predicted: float
    observed: Interval
    cases: int


class NetBenefit(NamedTuple):
    """Decision curve (Vickers and Elkin 2006): true positives less weighted false ones, a case.

    Attributes:
        thresholds: probabilities from which one would act.
        model: acting on the program's probability.
        everybody: acting on all cases; acting on none is worth 0.
    """

    thresholds: np.ndarray
    model: np.ndarray
    everybody: np.ndarray


def reliability_curve(probability: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Bins of equal width, empty ones left out."""
    place = np.minimum((np.asarray(probability) * bins).astype(int), bins - 1)
    found = []
    for number in np.unique(place):
        inside = place == number
        covid = np.asarray(labels)[inside]
        predicted = float(np.asarray(probability)[inside].mean())
        found.append(Bin(predicted, wilson(int(covid.sum()), len(covid)), len(covid)))
    return found


def expected_calibration_error(probability: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of predicted and observed share over the bins, each weighted by its cases."""
    curve = reliability_curve(probability, labels, bins)
    return float(sum(b.cases * abs(b.predicted - b.observed.value) for b in curve) / len(labels))


def calibration_error_by_chance(
    probability: np.ndarray, bins: int = BINS, replicates: int = REPLICATES, seed: int = 0
) -> float:
    """Mean expected calibration error of cases whose probabilities are all right: with few cases it is far from 0."""
    rng = np.random.default_rng(seed)
    drawn = (rng.random(len(probability)) < probability for _ in range(replicates))
    return float(np.mean([expected_calibration_error(probability, labels, bins) for labels in drawn]))


def brier_interval(
    probability: np.ndarray, labels: np.ndarray, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """Brier score with the percentile interval of a bootstrap."""
    rng = np.random.default_rng(seed)
    errors = (np.asarray(probability) - np.asarray(labels)) ** 2
    return Interval.of_draws(brier(probability, labels), rng.choice(errors, (replicates, len(errors))).mean(1))


def brier(probability: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared difference of probability and truth."""
    return float(brier_score_loss(labels, probability))


def decision_curve(probability: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None) -> NetBenefit:
    """Net benefit at each threshold between 0 and 1 (neither included)."""
    at = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, float)
    covid = np.asarray(labels).astype(bool)
    called = np.asarray(probability)[None] >= at[:, None]
    odds = at / (1 - at)
    model = (called & covid).mean(1) - (called & ~covid).mean(1) * odds
    return NetBenefit(at, model, covid.mean() - (1 - covid.mean()) * odds)
