"""Metrics against independent implementations and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from CovidCTDiagnosisLib.evaluation.metrics import area_under_curve, bootstrap_auc, dice, wilson
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest, mannwhitneyu, norm


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.lists(st.integers(-5, 5), min_size=1, max_size=20))
def test_area_under_curve_is_the_mann_whitney_statistic_with_ties(positive: list[int], negative: list[int]) -> None:
    scores = np.array([*positive, *negative], float)
    labels = np.array([1] * len(positive) + [0] * len(negative))
    expected = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert area_under_curve(scores, labels) == pytest.approx(expected)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert area_under_curve(scores, labels) == pytest.approx(np.mean(pairs))


def test_bootstrap_interval_is_about_that_of_theory_and_repeats() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 200)
    scores = rng.normal(size=400) + 1.0 * labels
    found = bootstrap_auc(scores, labels)
    assert found == bootstrap_auc(scores, labels)
    assert found.value == area_under_curve(scores, labels)
    assert found.low < found.value < found.high
    # Hanley and McNeil 1982.
    a, n = found.value, 200
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / n**2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_bootstrap_of_separated_scores_is_certain() -> None:
    assert bootstrap_auc(np.arange(10.0), np.arange(10) >= 4, replicates=50) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 3), (40, 50), (500, 1000)])
def test_wilson_interval(successes: int, trials: int) -> None:
    found = wilson(successes, trials)
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert found.value == successes / trials
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    # The definition: at either end the score statistic is the normal quantile.
    for end in (found.low, found.high):
        if 1e-9 < end < 1 - 1e-9:
            z = abs(found.value - end) / math.sqrt(end * (1 - end) / trials)
            assert z == pytest.approx(norm.ppf(0.975))


@given(hnp.arrays(bool, (3, 4)), hnp.arrays(bool, (3, 4)))
def test_dice_counts_what_is_shared(a: np.ndarray, b: np.ndarray) -> None:
    first, second = ({*np.flatnonzero(m)} for m in (a, b))
    both = len(first) + len(second)
    assert dice(a, b) == dice(b, a) == pytest.approx(2 * len(first & second) / both if both else 1.0)
    assert dice(a.astype(np.uint8) * 255, b) == dice(a, b)
