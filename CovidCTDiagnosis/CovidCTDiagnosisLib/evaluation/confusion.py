"""Calls at a threshold against the truth: sensitivity, specificity, accuracy and F1 with Wilson's 95 % intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .metrics import Interval, wilson


class Confusion(NamedTuple):
    """Cases called COVID-19 or not, rightly (true) or wrongly (false)."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @classmethod
    def of(cls, called: np.ndarray, labels: np.ndarray) -> Confusion:
        """Count.

        Args:
            called: (N,) bool, called COVID-19.
            labels: (N,), 1 COVID-19, 0 not.
        """
        called, covid = np.asarray(called).astype(bool), np.asarray(labels).astype(bool)
        counts = (called & covid, called & ~covid, ~called & ~covid, ~called & covid)
        return cls(*(int(np.count_nonzero(c)) for c in counts))

    @property
    def sensitivity(self) -> Interval:
        """Share of COVID-19 cases that were called so."""
        return wilson(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Interval:
        """Share of other cases that were not called COVID-19."""
        return wilson(self.true_negative, self.true_negative + self.false_positive)

    @property
    def accuracy(self) -> Interval:
        """Share of right calls."""
        return wilson(self.true_positive + self.true_negative, sum(self))

    @property
    def f1(self) -> Interval:
        """Harmonic mean of precision and sensitivity.

        It rises with the share of true positives among all cases that are positive or called so, which is a
        proportion: the interval is Wilson's of that share (the indirect interval of Lam, Gopal and Qian 2023).
        """
        share = wilson(self.true_positive, self.true_positive + self.false_positive + self.false_negative)
        return Interval(*(2 * value / (1 + value) for value in share))
