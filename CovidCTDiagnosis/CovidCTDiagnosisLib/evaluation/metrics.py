"""Metrics, tested against independent implementations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two masks of one shape; 1 when both are empty."""
    a, b = a.astype(bool), b.astype(bool)
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney)."""
    labels = labels.astype(bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bootstrap_auc(scores: np.ndarray, labels: np.ndarray, replicates: int = 2000, seed: int = 0) -> Interval:
    """AUC with the percentile interval of stratified bootstrap replicates."""
    rng = np.random.default_rng(seed)
    positives, negatives = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    values = []
    for _ in range(replicates):
        drawn = np.concatenate([rng.choice(positives, len(positives)), rng.choice(negatives, len(negatives))])
        values.append(area_under_curve(scores[drawn], labels[drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(area_under_curve(scores, labels), float(low), float(high))


def wilson(successes: int, trials: int) -> Interval:
    """A proportion with Wilson's 95 % interval."""
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return Interval(share, float(centre - half), float(centre + half))
