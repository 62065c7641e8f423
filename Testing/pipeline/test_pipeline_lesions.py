"""Lesions inside the lungs and those that reach out of them: consolidated lung is still lung."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import Bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.pipeline.lesions import MOST_OUTSIDE, Lesions, reach_out, segment_lesions, two_classes
from CovidCTDiagnosisLib.pipeline.models import Models
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (6, 30, 40)


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> Models:
    return Models(bundle, torch.device("cpu"))


def box(*ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


LUNG = box((0, 6), (5, 25), (5, 20))


# reach_out


def test_a_thick_piece_that_touches_the_lungs_is_kept_whole() -> None:
    piece = box((1, 5), (10, 18), (18, 28))
    assert np.array_equal(reach_out(LUNG, piece), piece & ~LUNG)


def test_a_piece_apart_and_a_thin_rim_are_not() -> None:
    apart, rim = box((1, 5), (10, 18), (23, 33)), box((0, 6), (5, 25), (20, 22))
    assert not reach_out(LUNG, apart).any()
    assert not reach_out(LUNG, rim).any()


def test_tissue_as_large_as_the_lungs_is_a_network_gone_wrong() -> None:
    fits = box((0, 6), (5, 25), (20, 20 + int(MOST_OUTSIDE * 15)))
    assert reach_out(LUNG, fits).any()
    assert not reach_out(LUNG, box((0, 6), (0, 30), (20, 40))).any()


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.6))
@settings(max_examples=30, deadline=None)
def test_what_reaches_out_is_pathological_outside_and_hangs_on(seed: int, share: float) -> None:
    pathological = np.random.default_rng(seed).random(SHAPE) < share
    found = reach_out(LUNG, pathological)
    assert not (found & LUNG).any() and not (found & ~pathological).any()
    again = reach_out(LUNG, LUNG | found)
    assert np.array_equal(again, found)


# segment_lesions


def half_missed(ct: Volume) -> np.ndarray:
    """The phantom's lungs without the consolidation and all that lies to its side: what a lung network may miss."""
    lungs = np.zeros(ct.shape, np.uint8)
    middle = ct.shape[2] // 2
    aerated = (ct.voxels > -930) & (ct.voxels < -770)
    lungs[:, :, :middle] = aerated[:, :, :middle] * 1
    lungs[:, :, middle:] = aerated[:, :, middle:] * 2
    return lungs


@pytest.fixture(scope="module")
def missed(sick) -> np.ndarray:
    return half_missed(sick.ct)


def test_lesions_lie_in_the_lungs_that_come_back(sick, missed: np.ndarray, models: Models) -> None:
    before = missed.copy()
    found = segment_lesions(sick.ct, missed, models, lambda fraction: None)
    assert isinstance(found, Lesions)
    np.testing.assert_array_equal(missed, before)
    assert not found.labels[found.lungs == 0].any()
    assert (found.lungs[missed > 0] == missed[missed > 0]).all()
    added = (found.lungs > 0) & (missed == 0)
    assert (found.labels[added] > 0).all()
    assert found.classes.shape == (4, *found.grid.count) and found.mask.shape == found.grid.count
    assert found.mask.min() >= 0 and found.mask.max() <= 1


def test_lungs_that_the_user_drew_stay_as_they_are(sick, missed: np.ndarray, models: Models) -> None:
    found = segment_lesions(sick.ct, missed, models, lambda fraction: None, widen=False)
    np.testing.assert_array_equal(found.lungs, missed)
    assert not found.labels[missed == 0].any()


def test_progress_never_goes_back_and_ends(sick, missed: np.ndarray, models: Models) -> None:
    seen: list[float] = []
    segment_lesions(sick.ct, missed, models, seen.append)
    assert seen == sorted(seen) and 0.85 < seen[-1] <= 1


def test_the_two_classes_of_experts() -> None:
    labels = np.array([0, 1, 2, 3, 4, 4], np.uint8)
    denser = np.array([True, True, False, True, True, False])
    np.testing.assert_array_equal(two_classes(labels, denser), [0, 1, 2, 1, 2, 1])
