"""Calibration of the classifier's scores on series it has not learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn

from .examples import Example

PULL = np.array([4.0, 0.05])
"""How strongly few series are held to a slope of one over their spread, and to even odds at their mean: so few cannot
show how sure the scores may be of a case."""
LEAST_SPREAD = 1e-6
SENSITIVITY = 0.9
"""That a threshold is chosen for unless another is stated."""


def score_differences(classifier: nn.Module, examples: Sequence[Example]) -> np.ndarray:
    """COVID-19 score minus the other, one per example."""
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        scores = [classifier.eval()(e.ct.to(device), e.lesions.to(device)) for e in examples]
    return np.array([float(s[1] - s[0]) for s in scores])


def calibrate(classifier: nn.Module, examples: Sequence[Example], sensitivity: float = SENSITIVITY) -> dict[str, Any]:
    """Platt scaling with both classes weighted alike, and the threshold that reaches a sensitivity on these scans.

    Returns:
        ``slope``, ``offset`` and ``threshold`` as ``pipeline.diagnosis.calibrated`` takes them, and what they were
        fitted to (``calibrated_on``).
    """
    covid = np.array([e.covid for e in examples])
    differences = score_differences(classifier, examples)
    slope, offset = fit_platt(differences, covid, balanced=True)
    return {
        "slope": slope,
        "offset": offset,
        "threshold": operating_point(differences, covid, sensitivity, slope, offset),
        "calibrated_on": {"scans": len(covid), "covid": int(covid.sum()), "aimed_sensitivity": sensitivity},
    }


def threshold_for(scores: np.ndarray, covid: np.ndarray, sensitivity: float) -> float:
    """The highest threshold that calls at least this share of COVID-19 cases positive (score ≥ threshold)."""
    positives = np.sort(np.asarray(scores)[np.asarray(covid).astype(bool)])
    needed = max(int(np.ceil(sensitivity * len(positives) - 1e-9)), 1)
    return float(positives[-needed])


def operating_point(
    differences: np.ndarray, covid: np.ndarray, sensitivity: float, slope: float, offset: float
) -> float:
    """Probability from which on COVID-19 is called, so that this share of its cases is.

    Halfway to the next lower score, so that rounding in a table does not lose the scan that decides. Zero where no scan
    has a lower score: then all are called.
    """
    deciding = threshold_for(differences, covid, sensitivity)
    lower = differences[differences < deciding]
    if not len(lower):
        return 0.0
    return float(expit(slope * (deciding + lower.max()) / 2 + offset))


def fit_platt(differences: np.ndarray, covid: np.ndarray, balanced: bool) -> tuple[float, float]:
    """Slope (above 0) and offset of Platt scaling.

    Args:
        differences: (N,) COVID-19 score minus the other.
        covid: (N,) truth, 1 or 0; both must be there.
        balanced: whether both classes weigh alike, or each as often as it is.
    """
    # Platt's targets keep away from 0 and 1 by what so few examples can say.
    positives, negatives = covid.sum(), (1 - covid).sum()
    target = np.where(covid, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    alike = np.where(covid, 0.5 / positives, 0.5 / negatives)
    weight = alike if balanced else np.full(len(covid), 1 / len(covid))
    # The fit must not depend on where the scores' zero lies, nor on their unit.
    centre, spread = differences.mean(), max(float(differences.std()), LEAST_SPREAD)
    standard = (differences - centre) / spread

    def loss(parameters: np.ndarray) -> float:
        logit = np.exp(parameters[0]) * standard + parameters[1]
        entropy = np.logaddexp(0, logit) - target * logit
        return float((weight * entropy).sum() + (PULL * parameters**2).sum() / len(covid))

    steepness, height = minimize(loss, np.zeros(2)).x
    slope = float(np.exp(steepness) / spread)
    return slope, float(height - slope * centre)
