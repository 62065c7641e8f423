"""Metrics against independent implementations and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.evaluation.metrics import (
    Overlap,
    bootstrap_images,
    boundary_errors,
    dice,
    mean_dice,
    mean_sensitivity,
    pooled_dice,
    pooled_sensitivity,
    wilson,
)
from hypothesis import given
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, bootstrap, norm


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


@pytest.fixture
def masks() -> list[tuple[np.ndarray, np.ndarray]]:
    """Found and expert masks of images of various sizes; every expert marked something."""
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(30):
        expert = rng.random(rng.integers(8, 30, 2)) < rng.uniform(0.05, 0.6)
        expert[0, 0] = True
        pairs.append((expert ^ (rng.random(expert.shape) < rng.uniform(0.0, 0.3)), expert))
    return pairs


def test_mean_dice_is_monais_and_pooled_dice_that_of_one_long_image(
    masks: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    overlaps = [Overlap.of(found, expert) for found, expert in masks]
    theirs = [compute_dice(torch.from_numpy(f)[None, None], torch.from_numpy(e)[None, None]).item() for f, e in masks]
    assert [o.dice for o in overlaps] == pytest.approx(theirs)
    assert mean_dice(overlaps) == pytest.approx(np.mean(theirs))
    found, expert = (np.concatenate([pair[n].ravel() for pair in masks]) for n in (0, 1))
    whole = compute_dice(torch.from_numpy(found)[None, None], torch.from_numpy(expert)[None, None]).item()
    assert pooled_dice(overlaps) == pytest.approx(whole)
    assert pooled_sensitivity(overlaps) == pytest.approx(found[expert].mean())
    assert mean_sensitivity(overlaps) == pytest.approx(np.mean([f[e].mean() for f, e in masks]))
    assert pooled_dice(overlaps) != pytest.approx(mean_dice(overlaps))


def test_bootstrap_over_images_is_scipys(masks: list[tuple[np.ndarray, np.ndarray]]) -> None:
    overlaps = [Overlap.of(found, expert) for found, expert in masks]
    found = bootstrap_images(overlaps, mean_dice)
    assert found == bootstrap_images(overlaps, mean_dice) and found.value == mean_dice(overlaps)
    values = np.array([o.dice for o in overlaps])
    theirs = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))
    numbers = (np.arange(len(overlaps)),)
    pooled = bootstrap(
        numbers,
        lambda drawn: pooled_dice([overlaps[n] for n in drawn]),
        n_resamples=3000,
        method="percentile",
        vectorized=False,
        rng=1,
    ).confidence_interval
    ours = bootstrap_images(overlaps, pooled_dice)
    assert (ours.low, ours.high) == pytest.approx((pooled.low, pooled.high), abs=0.1 * (pooled.high - pooled.low))


def test_boundary_errors_of_a_plane_moved_by_three_millimetres() -> None:
    """Voxels of 1 mm: centres lie half a millimetre off the boundary, one bin a layer."""
    expert = np.zeros((4, 5, 60), bool)
    expert[..., :30] = True
    found = np.zeros_like(expert)
    found[..., :33] = True
    errors = boundary_errors(found, expert, (1.0, 1.0, 1.0), reach_mm=10)
    layer = 4 * 5
    assert errors.edges_mm == list(range(-10, 11))
    assert errors.voxels == [21 * layer] + [layer] * 18 + [21 * layer]
    assert errors.wrong == [0] * 10 + [layer] * 3 + [0] * 7


def test_boundary_errors_measure_millimetres_to_the_nearest_voxel_of_the_other_side() -> None:
    rng = np.random.default_rng(0)
    spacing = (2.5, 0.7, 0.7)
    expert = np.zeros((5, 12, 12), bool)
    expert[1:4, 3:9, 2:8] = True
    found = expert ^ (rng.random(expert.shape) < 0.2)
    errors = boundary_errors(found, expert, spacing, reach_mm=5)
    places = np.argwhere(np.ones_like(expert)) * spacing
    apart = cdist(places, places)
    side = expert.ravel()
    nearest = np.where(side[:, None] != side[None, :], apart, np.inf).min(1) - 0.35
    bins = [-np.inf, *range(-4, 5), np.inf]
    signed = np.where(side, -nearest, nearest)
    wrong = (found != expert).ravel()
    assert sum(errors.voxels) == expert.size and sum(errors.wrong) == wrong.sum()
    assert errors.voxels == np.histogram(signed, bins)[0].tolist()
    assert errors.wrong == np.histogram(signed[wrong], bins)[0].tolist()
