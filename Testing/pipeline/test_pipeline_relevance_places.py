"""Shares of positive relevance in lesions, lungs and thirds."""

from __future__ import annotations

import numpy as np
import pytest
from CovidCTDiagnosisLib.pipeline.relevance_places import relevance_places
from hypothesis import given
from hypothesis import strategies as st


def lungs() -> np.ndarray:
    """Nine slices of ten; the right lung is the wider one, the left lung lacks the lowest slice."""
    mask = np.zeros((12, 6, 10), np.uint8)
    mask[2:11, 1:5, 0:5] = 1
    mask[3:11, 1:5, 6:9] = 2
    return mask


def test_each_share_is_of_what_lies_there() -> None:
    relevance, lesions = np.zeros(lungs().shape, np.float32), np.zeros(lungs().shape, np.uint8)
    relevance[2, 2, 2] = 1.0  # lowest third, right
    relevance[5, 2, 7] = 2.0  # middle third, left
    relevance[10, 2, 7] = 5.0  # upper third, left
    relevance[6, 2, 2] = -9.0  # against COVID-19: not counted
    lesions[10, 2, 7] = 3
    assert relevance_places(relevance, lungs(), lesions) == {
        "in_lesions": 5 / 8,
        "right": 1 / 8,
        "left": 7 / 8,
        "lower": 1 / 8,
        "middle": 2 / 8,
        "upper": 5 / 8,
        "right_left_balance": -6 / 8,
    }


@given(st.integers(0, 2**31))
def test_lungs_and_thirds_share_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance = rng.normal(0, 1, lungs().shape).astype(np.float32) * (lungs() > 0)
    found = relevance_places(relevance, lungs(), rng.integers(0, 2, lungs().shape))
    right, left = found["right"], found["left"]
    assert right is not None and left is not None
    assert right + left == pytest.approx(1)
    assert sum(found[third] or 0 for third in ("lower", "middle", "upper")) == pytest.approx(1)
    assert found["right_left_balance"] == pytest.approx(right - left)


def test_no_positive_relevance_has_no_place() -> None:
    found = relevance_places(-np.ones(lungs().shape), lungs(), lungs())
    assert set(found.values()) == {None}
