"""A ready lung mask: labels, grids, sides, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from CovidCTDiagnosisLib.bundle import Bundle
from CovidCTDiagnosisLib.ct import Volume, digest
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.pipeline import Analysis, analyze
from CovidCTDiagnosisLib.pipeline.given_lungs import resample_labels, take_lungs
from CovidCTDiagnosisLib.pipeline.lung_sides import LEFT, RIGHT


@pytest.fixture(scope="module")
def chest(chest_phantom: Callable[..., Volume]) -> Volume:
    return chest_phantom(spacing=(5.0, 5.0, 5.0))


@pytest.fixture(scope="module")
def sided(chest: Volume) -> np.ndarray:
    """The phantom's aerated lung: right (1) and left (2)."""
    lung = (chest.voxels > -930) & (chest.voxels < -770)
    return np.where(lung, np.where(np.arange(chest.shape[2]) < chest.shape[2] // 2, RIGHT, LEFT), 0).astype(np.uint8)


def test_right_and_left_are_kept_as_they_are(chest: Volume, sided: np.ndarray) -> None:
    swapped = np.where(sided > 0, 3 - sided, 0).astype(np.uint8)
    for labels in (sided, swapped):
        np.testing.assert_array_equal(take_lungs(chest.with_voxels(labels), chest), labels)


@pytest.mark.parametrize("numbers", [(1, 1), (7, 7), (10, 14), (300, 301), (65535, 65535)], ids=str)
def test_other_labels_are_lung_and_get_their_sides(numbers: tuple[int, int], chest: Volume, sided: np.ndarray) -> None:
    labels = np.array([0, *numbers], np.float32)[sided]
    found = take_lungs(chest.with_voxels(labels), chest)
    np.testing.assert_array_equal(found > 0, sided > 0)
    assert (found == sided)[sided > 0].mean() > 0.99


def test_a_flipped_mask_on_a_larger_grid_lands_where_it_lies_in_the_patient(chest: Volume, sided: np.ndarray) -> None:
    padded = np.pad(sided, 3)[:, ::-1]
    origin = chest.affine @ [-3, chest.shape[1] + 2, -3, 1]
    direction = tuple((row[0], -row[1], row[2]) for row in chest.direction)
    mask = Volume(np.ascontiguousarray(padded), chest.spacing, tuple(origin[:3]), direction)
    np.testing.assert_array_equal(take_lungs(mask, chest), sided)


def test_resampling_invents_no_label(chest: Volume, sided: np.ndarray) -> None:
    """10 and 14 side by side have no 12 between them."""
    fine = Volume(np.array([0, 10, 14], np.int16)[sided][::2], (5.0, 5.0, 10.0), chest.origin, chest.direction)
    assert set(np.unique(resample_labels(fine, chest).voxels)) == {0, 10, 14}


def test_what_is_no_lung_mask_of_this_ct_is_refused(chest: Volume, sided: np.ndarray) -> None:
    far = Volume(sided, chest.spacing, (5000.0, 0.0, 0.0), chest.direction)
    for mask, text in (
        (chest.with_voxels(np.zeros_like(sided)), "empty"),
        (chest, "below 0"),
        (far, "overlap"),
        (
            chest.with_voxels(np.arange(sided.size).reshape(sided.shape) == np.flatnonzero(sided)[0]),
            "ml of this CT only",
        ),
    ):
        with pytest.raises(InputError, match=text) as caught:
            take_lungs(mask, chest)
        assert caught.value.code == 3 and caught.value.remedy


def test_fractions_are_lung_on_whatever_grid(chest: Volume, sided: np.ndarray) -> None:
    soft = chest.with_voxels(np.where(sided, np.float32(0.4), 0))
    moved = Volume(soft.voxels[:, ::-1], soft.spacing, *_flipped(chest))
    for mask in (soft, moved):
        np.testing.assert_array_equal(take_lungs(mask, chest) > 0, take_lungs(chest.with_voxels(sided), chest) > 0)


def _flipped(ct: Volume) -> Any:
    """Origin and direction of the same grid with its rows from the other end."""
    affine = ct.affine.copy()
    last = affine @ [0, ct.shape[1] - 1, 0, 1]
    return tuple(last[:3]), np.asarray(ct.direction) @ np.diag([1, -1, 1])


def test_a_mask_that_is_hardly_of_lungs_gets_a_warning(chest: Volume, sided: np.ndarray) -> None:
    told: list[str] = []
    take_lungs(chest.with_voxels(sided), chest, told.append)
    assert not told
    take_lungs(chest.with_voxels((chest.voxels > -100).astype(np.uint8)), chest, told.append)
    take_lungs(chest.with_voxels(np.array([0, LEFT, RIGHT], np.uint8)[sided]), chest, told.append)
    assert ["check that it is one of lungs" in t for t in told] == [True, False]
    assert ["check its sides" in t for t in told] == [False, True]


def test_lesions_beside_lungs_are_no_left_lung(chest: Volume, sided: np.ndarray) -> None:
    told: list[str] = []
    labels = (sided > 0).astype(np.uint8)
    labels[tuple(np.argwhere(sided == LEFT)[::9].T)] = 2
    found = take_lungs(chest.with_voxels(labels), chest, told.append)
    assert (found == sided)[sided > 0].mean() > 0.99
    assert ["lie in each other" in text for text in told] == [True]


def test_a_lung_that_reaches_far_over_to_the_other_side_stays_one(chest: Volume, sided: np.ndarray) -> None:
    told: list[str] = []
    herniated = sided.copy()
    right = np.argwhere(sided == RIGHT)
    herniated[tuple(right[right[:, 2] > np.quantile(right[:, 2], 0.3)].T)] = LEFT
    np.testing.assert_array_equal(take_lungs(chest.with_voxels(herniated), chest, told.append), herniated)
    assert not told


def test_a_mask_that_does_not_say_where_it_lies_lies_as_the_ct_or_is_refused(chest: Volume, sided: np.ndarray) -> None:
    placed = Volume(chest.voxels, chest.spacing, (40.0, 30.0, 150.0), chest.direction)
    told: list[str] = []
    lost = Volume(sided, chest.spacing, (0.0, 0.0, 0.0), chest.direction, orientation_known=False)
    np.testing.assert_array_equal(take_lungs(lost, placed, told.append), sided)
    assert ["does not say where it lies" in text for text in told] == [True]
    with pytest.raises(InputError, match="does not say where it lies in the patient"):
        take_lungs(replace(lost, voxels=sided[1:]), placed)


def test_a_mask_that_reaches_out_of_the_ct_is_told(chest: Volume, sided: np.ndarray) -> None:
    told: list[str] = []
    shifted = Volume(sided, chest.spacing, (60.0, *chest.origin[1:]), chest.direction)
    take_lungs(shifted, chest, told.append)
    assert any("lie outside the CT" in text for text in told)


def test_an_analysis_uses_the_given_lungs_and_says_so(sick, sick_analysis: Analysis, bundle: Bundle) -> None:
    drawn = sick_analysis.images["lungs"]
    right = drawn.with_voxels((drawn.voxels == RIGHT).astype(np.uint8))
    analysis = analyze(sick.ct, bundle, name="sick", device="cpu", lungs=right)
    np.testing.assert_array_equal(analysis.images["lungs"].voxels, right.voxels)
    assert not analysis.images["lesions"].voxels[right.voxels == 0].any()
    assert analysis.document["settings"]["lungs"] == {"source": "mask", "sha256": digest(right)}
    assert sick_analysis.document["settings"]["lungs"] == {"source": "network"}
