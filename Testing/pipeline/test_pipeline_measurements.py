"""Measurements against plain sums over voxels."""

from __future__ import annotations

import numpy as np
import pytest
from CovidCTDiagnosisLib.networks import LESION_CLASSES
from CovidCTDiagnosisLib.pipeline.measurements import ANY, SIDES, measure

NUMBERS = {"right": (1,), "left": (2,), "both": (1, 2)}
VOXEL_ML = 0.0125


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 300, (9, 10, 11)).astype(np.int16)
    lungs = rng.choice(np.array([0, 1, 2], np.uint8), hu.shape, p=[0.4, 0.35, 0.25])
    lesions = np.where(lungs > 0, rng.choice(np.array([0, 1, 2, 4], np.uint8), hu.shape), 0).astype(np.uint8)
    return hu, lungs, lesions


def by_side_and_class(measured: dict) -> dict[tuple[str, str], dict]:
    return {(row["class"], row["side"]): row for row in measured["lesions"]}


def test_every_number_is_that_of_a_plain_sum(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    hu, lungs, lesions = case
    measured = measure(hu, lungs, lesions, VOXEL_ML)
    rows = by_side_and_class(measured)
    assert len(rows) == len(measured["lesions"]) == len(LESION_CLASSES) * len(SIDES)
    for side, numbers in NUMBERS.items():
        lung = np.isin(lungs, numbers)
        found = measured["lungs"][side]
        assert found["volume_ml"] == pytest.approx(lung.sum() * VOXEL_ML)
        assert found["mean_hu"] == pytest.approx(hu[lung].mean(dtype=float))
        assert found["involvement_percent"] == pytest.approx(100 * (lesions[lung] > 0).mean())
        for number, name in enumerate((ANY, *LESION_CLASSES[1:])):
            lesion = lung & ((lesions == number) if number else (lesions > 0))
            row = rows[name, side]
            assert row["volume_ml"] == pytest.approx(lesion.sum() * VOXEL_ML)
            assert row["percent_of_lung"] == pytest.approx(100 * lesion.sum() / lung.sum())
            assert row["mean_hu"] == (pytest.approx(hu[lesion].mean(dtype=float)) if lesion.any() else None)
    assert rows["crazy paving", "both"]["mean_hu"] is None  # the case has none


def test_tables_agree_with_each_other(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    measured = measure(*case, VOXEL_ML)
    rows = by_side_and_class(measured)
    for side in SIDES:
        assert rows[ANY, side]["percent_of_lung"] == measured["lungs"][side]["involvement_percent"]
        parts = sum(rows[name, side]["volume_ml"] for name in LESION_CLASSES[1:])
        assert rows[ANY, side]["volume_ml"] == pytest.approx(parts)
    for name in (ANY, *LESION_CLASSES[1:]):
        parts = rows[name, "right"]["volume_ml"] + rows[name, "left"]["volume_ml"]
        assert rows[name, "both"]["volume_ml"] == pytest.approx(parts)


def test_a_missing_lung_has_no_volume_and_no_other_number(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    hu, lungs, lesions = case
    measured = measure(hu, np.where(lungs == 2, 0, lungs), lesions, VOXEL_ML)
    assert measured["lungs"]["left"] == {"volume_ml": 0.0, "mean_hu": None, "involvement_percent": None}
    assert measured["lungs"]["both"] == measured["lungs"]["right"]
    for name in (ANY, *LESION_CLASSES[1:]):
        row = by_side_and_class(measured)[name, "left"]
        assert (row["volume_ml"], row["percent_of_lung"], row["mean_hu"]) == (0.0, None, None)


def test_what_lies_outside_the_lungs_does_not_count(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    hu, lungs, lesions = case
    elsewhere = np.where(lungs == 0, 3, lesions).astype(np.uint8)
    brighter = np.where(lungs == 0, 3000, hu).astype(np.int16)
    assert measure(brighter, lungs, elsewhere, VOXEL_ML) == measure(hu, lungs, lesions, VOXEL_ML)
