"""Statistics of diagnosis against independent implementations: pairs counted one by one, SciPy, scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from CovidCTDiagnosisLib.evaluation.confusion import Confusion
from CovidCTDiagnosisLib.evaluation.metrics import Interval, wilson
from CovidCTDiagnosisLib.evaluation.reliability import (
    brier,
    brier_interval,
    calibration_error_by_chance,
    decision_curve,
    expected_calibration_error,
    reliability_curve,
)
from CovidCTDiagnosisLib.evaluation.roc import (
    GRID,
    _sensitivity_at,
    compare_areas,
    delong,
    demidenko,
    false_positive_rate_at,
    roc,
)
from CovidCTDiagnosisLib.training.calibration import threshold_for
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import auc, f1_score, roc_auc_score

Sample = tuple[np.ndarray, np.ndarray]


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """By scikit-learn."""
    return float(roc_auc_score(labels, scores))


def sample(seed: int, positives: int = 40, negatives: int = 60, apart: float = 1.0) -> Sample:
    """Scores and labels, some of them tied."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(apart, 1, positives), rng.normal(0, 1, negatives)])
    labels = np.repeat([1, 0], [positives, negatives])
    order = rng.permutation(len(labels))
    return np.round(scores[order], 1), labels[order]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    pairs = draw(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=6, max_size=40))
    scores = np.array([s for s, _ in pairs] + [0, 1, 0, 1], float)
    return scores, np.array([int(c) for _, c in pairs] + [0, 0, 1, 1])


# Areas


def test_where_no_cases_overlap_variance_says_nothing() -> None:
    """Four perfect folds and one that is inverted: no certainty, neither of the area nor of a difference."""
    labels = np.tile([0, 0, 1, 1], 5)
    strata = np.repeat(np.arange(5), 4)
    perfect, spoilt = labels.astype(float), np.where(strata == 4, 1 - labels, labels).astype(float)
    found = delong(spoilt, labels, strata)
    assert found.value == pytest.approx(0.8) and found.low < 0.6 and found.high > 0.9
    assert np.isnan(compare_areas(perfect, spoilt, labels, strata).p)
    assert compare_areas(perfect, 2 * perfect, labels, strata).p == 1
    with pytest.raises(ValueError, match="two cases"):
        delong(perfect[:-1], labels[:-1], strata[:-1])


@given(st.lists(samples(), min_size=1, max_size=4), st.integers(-50, 50))
@settings(deadline=None)
def test_areas_within_strata_are_means_weighted_by_pairs(parts: list[Sample], shift: int) -> None:
    """Whatever is added to all scores of a stratum."""
    scores = np.concatenate([s + n * shift for n, (s, _) in enumerate(parts)])
    labels = np.concatenate([c for _, c in parts])
    strata = np.repeat(np.arange(len(parts)), [len(c) for _, c in parts])
    weights = np.array([c.sum() * (1 - c).sum() for _, c in parts])
    by_hand = [delong_by_hand(s, c) for s, c in parts]
    area = float(np.average([a for a, _ in by_hand], weights=weights))
    assert delong(scores, labels, strata).value == pytest.approx(area)
    other = np.concatenate([-s for s, _ in parts])
    found = compare_areas(scores, other, labels, strata)
    assert found.interval.value == pytest.approx(2 * area - 1)
    # The other score's area is one less this one's: their difference spreads twice as far.
    variance = sum(w**2 * v for w, (_, v) in zip(weights, by_hand, strict=True)) / weights.sum() ** 2
    half = (found.interval.high - found.interval.low) / 2
    assert half == pytest.approx(2 * norm.ppf(0.975) * np.sqrt(variance), abs=1e-6)


def delong_by_hand(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Area and variance from all pairs of cases (DeLong, DeLong, Clarke-Pearson 1988, equations 3 to 6)."""
    p, n = scores[labels == 1], scores[labels == 0]
    better = (p[:, None] > n[None]) + 0.5 * (p[:, None] == n[None])
    return float(better.mean()), float(better.mean(1).var(ddof=1) / len(p) + better.mean(0).var(ddof=1) / len(n))


@given(samples())
@settings(deadline=None)
def test_delong_is_that_of_all_pairs(given: Sample) -> None:
    area, variance = delong_by_hand(*given)
    found = delong(*given)
    assert found.value == pytest.approx(area) == pytest.approx(roc_auc_score(given[1], given[0]))
    assert 0 <= found.low <= found.value <= found.high <= 1
    if variance > 0:
        half = (np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))) / 2
        assert half == pytest.approx(1.959964 * np.sqrt(variance) / (area * (1 - area)), rel=1e-4)


def test_delong_is_about_as_sure_as_hanley_and_mcneil() -> None:
    """Their formula of 1982 knows only the area and the counts."""
    scores, labels = sample(1, 200, 200)
    found = delong(scores, labels)
    a, n = found.value, 200
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / n**2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_a_score_does_not_differ_from_itself_in_another_unit(seed: int) -> None:
    scores, labels = sample(seed)
    same = compare_areas(scores, 3 * scores - 7, labels)
    assert same.p == 1 and same.interval == (0, 0, 0) and same.areas[0] == same.areas[1]
    assert compare_areas(scores, -scores, labels).p < 1e-4


def test_the_paired_test_agrees_with_a_permutation_test() -> None:
    scores, labels = sample(3, apart=1.5)
    rng = np.random.default_rng(0)
    other = scores + rng.normal(0, 1.3, len(scores))
    found = compare_areas(scores, other, labels)
    # Both as ranks, so that swapping the two of a case is fair.
    ranks = np.stack([np.argsort(np.argsort(s)) for s in (scores, other)]).astype(float)
    differences = []
    for _ in range(2000):
        swap = rng.random(len(labels)) < 0.5
        one, two = np.where(swap, ranks[::-1], ranks)
        differences.append(area_under_curve(one, labels) - area_under_curve(two, labels))
    expected = np.mean(np.abs(differences) >= abs(found.areas[0] - found.areas[1]))
    assert 0.001 < expected < 0.3 and found.p == pytest.approx(expected, abs=0.03)
    assert found.interval.low < found.interval.value < found.interval.high


def test_intervals_hold_the_true_area_about_as_often_as_they_say() -> None:
    truth = norm.cdf(1 / np.sqrt(2))
    for interval in (delong, demidenko):
        found = [interval(*_exact(seed)) for seed in range(300)]
        held = np.mean([f.low <= truth <= f.high for f in found])
        assert 0.91 < held < 0.98
        assert np.mean([f.value for f in found]) == pytest.approx(truth, abs=0.01)


def _exact(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(1, 1, 40), rng.normal(0, 1, 60)]), np.repeat([1, 0], [40, 60])


def test_one_kind_of_case_has_no_area() -> None:
    for function in (delong, demidenko, roc, false_positive_rate_at):
        with pytest.raises(ValueError, match="COVID-19"):
            function(np.arange(5.0), np.ones(5))
    with pytest.raises(ValueError, match="two cases"):
        delong(np.arange(3.0), np.array([0, 0, 1]))


@pytest.mark.parametrize(("scores", "area"), [([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.0)])
def test_few_cases_that_do_not_overlap_are_not_certain(scores: list[float], area: float) -> None:
    found = delong(np.array(scores, float), np.array([1, 1, 0, 0]))
    assert found.value == area and found.high - found.low > 0.5
    many = delong(np.array([1.0] * 60 + [0.0] * 60), np.repeat([1, 0], 60))
    assert many.high == 1 and 0.9 < many.low < 1


def test_the_binormal_area_is_as_sure_as_its_own_samples_show() -> None:
    """The width of its interval against the spread of areas of samples drawn from two normal distributions."""
    rng = np.random.default_rng(3)
    labels = np.repeat([1, 0], (60, 40))
    drawn = [demidenko(np.concatenate([rng.normal(2.0, 1.5, 60), rng.normal(0, 0.5, 40)]), labels) for _ in range(2000)]
    areas, lows, highs = np.array(drawn).T
    truth = norm.cdf(2.0 / np.hypot(1.5, 0.5))
    assert areas.mean() == pytest.approx(truth, abs=0.005)
    assert np.mean((lows <= truth) & (truth <= highs)) == pytest.approx(0.95, abs=0.02)
    expected = np.percentile(areas, [2.5, 97.5])
    assert np.mean(highs - lows) == pytest.approx(expected[1] - expected[0], rel=0.1)


def test_the_band_and_the_false_positive_rate_hold_95_percent_of_replicates() -> None:
    """Against a bootstrap written otherwise: thresholds by sorting all scores, one replicate at a time."""
    rng = np.random.default_rng(4)
    positives, negatives = rng.normal(1, 1, 60), rng.normal(0, 1, 80)
    scores, labels = np.concatenate([positives, negatives]), np.repeat([1, 0], (60, 80))
    rates, sensitivities = [], []
    for _ in range(3000):
        ones, zeros = rng.choice(positives, 60), rng.choice(negatives, 80)
        enough = next(t for t in np.sort(ones)[::-1] if np.mean(ones >= t) >= 0.95)
        rates.append(np.mean(zeros >= enough))
        passing = next(t for t in np.sort(zeros) if np.mean(zeros > t) <= 0.2)
        sensitivities.append(np.mean(ones > passing))
    found = false_positive_rate_at(scores, labels)
    assert found[1:] == pytest.approx(np.percentile(rates, [2.5, 97.5]), abs=0.03)
    curve = roc(scores, labels)
    at = int(np.argmin(np.abs(GRID - 0.2)))
    assert (curve.low[at], curve.high[at]) == pytest.approx(np.percentile(sensitivities, [2.5, 97.5]), abs=0.03)


@pytest.mark.parametrize("scores", [(0.5,) * 6, (1, 1, 1, 0, 0, 0), (0.9, 0.8, 0.7, 0.3, 0.2, 0.1)])
def test_scores_that_do_not_differ_or_overlap_have_no_binormal_area(scores: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"differ|overlap"):
        demidenko(np.array(scores, float), np.repeat([1, 0], 3))


# Curve


@pytest.mark.parametrize("negatives", [20, 50, 100])
def test_the_curve_at_a_rate_that_it_turns_upwards_at_is_its_upper_end(negatives: int) -> None:
    few, rest = negatives // 20, negatives - negatives // 20
    scores = np.array([*[0.9] * few, *[0.8] * 6, *[0.2] * 4, *[0.1] * rest])
    labels = np.array([*[0] * few, *[1] * 10, *[0] * rest])
    groups = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    assert _sensitivity_at(*groups, np.array([0.0, 0.05])).tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("grades", [3, 5, 11])
def test_the_curve_of_few_grades_lies_in_its_band(grades: int) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([1, 0], [60, 90])
    scores = np.clip(np.rint((rng.normal(labels, 1.2) + 2) / 5 * (grades - 1)), 0, grades - 1)
    curve = roc(scores, labels, replicates=400)
    drawn = np.interp(GRID, curve.false_positive_rate, curve.true_positive_rate)
    assert ((drawn >= curve.low - 0.01) & (drawn <= curve.high + 0.01)).all()
    middle = (curve.low + curve.high) / 2
    assert abs(np.trapezoid(middle, GRID) - roc_auc_score(labels, scores)) < 0.03


def test_the_curve_has_the_area_and_lies_in_its_band() -> None:
    scores, labels = sample(1)
    curve = roc(scores, labels)
    assert auc(curve.false_positive_rate, curve.true_positive_rate) == pytest.approx(area_under_curve(scores, labels))
    assert (np.diff(curve.low) >= 0).all() and (np.diff(curve.high) >= 0).all()
    # The highest point of the curve at each rate.
    here = np.array([curve.true_positive_rate[curve.false_positive_rate <= rate + 1e-9].max() for rate in GRID])
    assert (curve.low <= here + 1e-9).mean() > 0.97 and (here <= curve.high + 1e-9).mean() > 0.97
    assert 0.05 < (curve.high - curve.low).mean() < 0.4
    again = roc(scores, labels)
    np.testing.assert_array_equal(curve.low, again.low)


@given(samples(), st.floats(0.05, 1))
@settings(deadline=None)
def test_a_threshold_reaches_the_sensitivity_and_is_the_highest(given: Sample, sensitivity: float) -> None:
    scores, labels = given
    threshold = threshold_for(scores, labels, sensitivity)
    positives = scores[labels == 1]
    assert (positives >= threshold).mean() >= sensitivity - 1e-9
    assert (positives > threshold).mean() < sensitivity
    rate = false_positive_rate_at(scores, labels, sensitivity, replicates=20)
    assert rate.value == pytest.approx((scores[labels == 0] >= threshold).mean())


def test_the_false_positive_rate_has_an_interval_around_it() -> None:
    rate = false_positive_rate_at(*sample(2, apart=2))
    assert 0 <= rate.low < rate.value < rate.high <= 1


# Calls


@given(trials=st.integers(1, 300), share=st.floats(0, 1))
def test_a_proportion_s_interval_lies_between_0_and_1(trials: int, share: float) -> None:
    hits = round(share * trials)
    found = wilson(hits, trials)
    assert 0 <= found.low <= found.value <= found.high <= 1
    theirs = binomtest(hits, trials).proportion_ci(method="wilson")
    assert found[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_counts_and_shares_of_calls() -> None:
    labels, called = np.repeat([1, 0], [10, 30]), np.repeat([1, 0, 1, 0], [8, 2, 6, 24])
    found = Confusion.of(called, labels)
    assert found == (8, 6, 24, 2)
    assert found.f1.value == pytest.approx(f1_score(labels, called))
    for interval, (hits, trials) in (
        (found.sensitivity, (8, 10)),
        (found.specificity, (24, 30)),
        (found.accuracy, (32, 40)),
    ):
        theirs = binomtest(hits, trials).proportion_ci(method="wilson")
        assert interval == pytest.approx((hits / trials, theirs.low, theirs.high))


def test_the_interval_of_f1_is_about_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [60, 140])
    called = rng.random(200) < np.where(labels == 1, 0.8, 0.2)
    found = Confusion.of(called, labels).f1
    drawn = [f1_score(labels[d], called[d]) for d in rng.integers(200, size=(500, 200))]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.025) and found.high == pytest.approx(high, abs=0.025)


# Probabilities


def test_calibrated_probabilities_have_a_straight_curve_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 20_000)
    labels = (rng.random(20_000) < probability).astype(int)
    curve = reliability_curve(probability, labels)
    assert len(curve) == 10 and sum(b.cases for b in curve) == 20_000
    assert all(b.observed.low - 0.02 < b.predicted < b.observed.high + 0.02 for b in curve)
    assert expected_calibration_error(probability, labels) < 0.015
    assert brier(probability, labels) == pytest.approx(1 / 6, abs=0.005)
    sure = probability.round()
    assert expected_calibration_error(sure, labels) == pytest.approx(0.25, abs=0.01)
    assert brier(sure, labels) > brier(probability, labels)


def test_the_calibration_error_by_hand() -> None:
    probability, labels = np.array([0.1, 0.1, 0.9, 0.9, 1.0]), np.array([0, 1, 1, 1, 0])
    # Bins at 0.1 (observed 0.5) and at 0.9..1 (predicted 0.9333, observed 2/3).
    assert expected_calibration_error(probability, labels) == pytest.approx((2 * 0.4 + 3 * (2.8 / 3 - 2 / 3)) / 5)


def test_few_cases_have_a_calibration_error_though_all_probabilities_are_right() -> None:
    probability = np.random.default_rng(0).random(30)
    few = calibration_error_by_chance(probability)
    assert few == pytest.approx(0.177, abs=0.02)  # simulated with other draws
    assert calibration_error_by_chance(np.tile(probability, 40)) < few / 4


def test_the_brier_score_s_interval_is_that_of_its_mean() -> None:
    probability, labels = np.random.default_rng(0).random(400), np.arange(400) % 2
    errors = (probability - labels) ** 2
    found = brier_interval(probability, labels)
    half = 1.96 * errors.std() / 20
    assert found.value == pytest.approx(errors.mean()) and found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_a_rate_that_no_replicate_changes_is_not_certain() -> None:
    scores, labels = np.r_[np.linspace(0.6, 1, 40), np.linspace(0, 0.4, 12)], np.r_[np.ones(40), np.zeros(12)]
    assert false_positive_rate_at(scores, labels) == Interval(0, 0, wilson(0, 12).high)


def test_all_hundredths_are_thresholds_of_the_decision_curve() -> None:
    at = decision_curve(np.array([0.7, 0.7, 0.1]), np.array([1, 1, 0])).thresholds
    assert all(f"{t!r}" == f"{n / 100!r}" for n, t in enumerate(at.tolist(), start=1))


def test_the_decision_curve_by_hand_and_its_limits() -> None:
    probability, labels = np.array([0.9, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 0])
    found = decision_curve(probability, labels, np.array([0.5]))
    assert found.model[0] == pytest.approx(1 / 4 - 1 / 4) and found.everybody[0] == pytest.approx(0)
    curve = decision_curve(probability, labels)
    low = curve.thresholds < 0.2
    np.testing.assert_allclose(curve.model[low], curve.everybody[low])  # everybody is called
    assert (curve.model[curve.thresholds > 0.9] == 0).all()  # nobody is
    perfect = decision_curve(labels.astype(float), labels)
    np.testing.assert_allclose(perfect.model, 0.5)
