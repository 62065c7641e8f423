"""Calibration of the classifier's scores on series it has not learned from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from .examples import Example

PULL = np.array([4.0, 0.05])
"""How strongly few series are held to a slope of one over their spread, and to even odds at their mean: so few cannot
show how sure the scores may be of a case."""
LEAST_SPREAD = 1e-6


def score_differences(classifier: nn.Module, examples: Sequence[Example]) -> np.ndarray:
    """COVID-19 score minus the other, one per example."""
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        scores = [classifier.eval()(e.ct.to(device), e.lesions.to(device)) for e in examples]
    return np.array([float(s[1] - s[0]) for s in scores])


def calibrate(classifier: nn.Module, examples: Sequence[Example]) -> dict[str, float]:
    """Platt scaling with both classes weighted alike; the threshold is then one half.

    Returns:
        ``slope``, ``offset`` and ``threshold`` as ``pipeline.diagnosis.calibrated`` takes them.
    """
    covid = np.array([e.covid for e in examples])
    slope, offset = fit_platt(score_differences(classifier, examples), covid, balanced=True)
    return {"slope": slope, "offset": offset, "threshold": 0.5}


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
