"""What the classifier sees, and how its scores become a probability."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.windows import LUNG_WINDOW, scale
from CovidCTDiagnosisLib.pipeline.diagnosis import STEPS, ClassifierInput, calibrated, classifier_input, diagnose
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.relevance import explain

SPACING = (0.9, 0.8, 2.0)


@pytest.fixture(scope="module")
def chest() -> tuple[Volume, np.ndarray, np.ndarray]:
    """Lungs of 162 x 80 x 120 mm (i, j, k) amid bright tissue, with a lesion and one that lies outside."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-900, -700, (80, 150, 240)).astype(np.int16)
    lungs = np.zeros(voxels.shape, np.uint8)
    k, j, i = np.meshgrid(*(np.arange(n) for n in voxels.shape), indexing="ij")
    for number, centre in ((1, 75), (2, 165)):
        lungs[((k - 39.5) / 30) ** 2 + ((j - 69.5) / 50) ** 2 + ((i + 0.5 - centre) / 45) ** 2 < 1] = number
    voxels[lungs == 0] = 3000
    lesions = np.zeros_like(lungs)
    lesions[35:50, 60:80, 60:90] = 2
    lesions[35:50, 60:80, 0:20] = 1
    return Volume(voxels, SPACING), lungs, lesions


def seen(chest: tuple[Volume, np.ndarray, np.ndarray], **options: float) -> ClassifierInput:
    return classifier_input(*chest, **{"slice_mm": 3.0, "longest_side": 128, **options})  # type: ignore[arg-type]


def test_sizes_follow_the_lungs_box(chest: tuple[Volume, np.ndarray, np.ndarray]) -> None:
    inputs = seen(chest)
    extent = [np.ptp(n) + 1 for n in np.nonzero(chest[1])] * np.array(SPACING[::-1])
    slices, _, height, width = inputs.ct.shape
    assert max(height, width) == width == 128
    assert slices == round(extent[0] / 3)
    # Aspect kept: pixels are square to within half a pixel of the shorter side.
    assert abs(height - 128 * extent[1] / extent[2]) <= 0.5
    assert inputs.grid.step[1] == pytest.approx(inputs.grid.step[2], rel=0.5 / height)
    assert inputs.lesions.shape == inputs.inside.shape == inputs.ct.shape
    np.testing.assert_allclose(np.multiply(inputs.grid.step, inputs.grid.count), extent)


@pytest.mark.parametrize("longest_side", [48, 128, 300])
def test_the_longest_side_is_what_was_asked_for(
    chest: tuple[Volume, np.ndarray, np.ndarray], longest_side: int
) -> None:
    assert max(seen(chest, longest_side=longest_side).ct.shape[2:]) == longest_side


@pytest.mark.parametrize("axis", [1, 2])
def test_lungs_of_one_plane_can_be_diagnosed(
    chest: tuple[Volume, np.ndarray, np.ndarray], tiny_bundle: Path, axis: int
) -> None:
    """As somebody may have drawn them on a sagittal or coronal slice."""
    ct, lungs, lesions = chest
    plane = lungs.copy()
    plane[(slice(None),) * axis + (np.arange(lungs.shape[axis]) != 70,)] = 0
    inputs = seen((ct, plane, lesions))
    assert sorted(inputs.ct.shape[2:]) == [4, 128] and inputs.inside.any()
    diagnosis = diagnose(inputs, Models(open_bundle(tiny_bundle), torch.device("cpu")), lambda fraction: None)
    assert 0 <= diagnosis.probability <= 1


def test_nothing_is_seen_outside_the_lungs(chest: tuple[Volume, np.ndarray, np.ndarray]) -> None:
    inputs = seen(chest)
    outside = ~inputs.inside
    assert outside.any() and inputs.inside.any()
    assert not inputs.ct[outside].any() and not inputs.lesions[outside].any()
    # The bright tissue around the lungs does not leak in.
    lung = scale(chest[0].voxels[chest[1] > 0], LUNG_WINDOW)
    assert inputs.ct.max() <= lung.max() + 0.5 / STEPS + 1e-6  # rounded to steps
    ct, lungs, lesions = chest
    darker = ct.with_voxels(np.where(lungs == 0, -3000, ct.voxels).astype(np.int16))
    assert classifier_input(darker, lungs, lesions, slice_mm=3, longest_side=128).ct.equal(inputs.ct)


def test_lesions_are_shares_between_0_and_1_of_the_lungs_own_lesions(
    chest: tuple[Volume, np.ndarray, np.ndarray],
) -> None:
    ct, lungs, lesions = chest
    inputs = seen(chest)
    assert inputs.lesions.min() == 0 and inputs.lesions.max() == pytest.approx(1)
    voxel = math.prod(inputs.grid.step)
    inside = ((lesions > 0) & (lungs > 0)).sum() * ct.voxel_ml * 1000
    assert inputs.lesions.sum().item() * voxel == pytest.approx(inside, rel=0.02)
    share = ((lesions > 0) & (lungs > 0)).sum() / (lungs > 0).sum()
    assert 0 < share < 1 and inputs.involvement_percent == pytest.approx(100 * share)


def test_heatmaps_do_not_hang_on_the_last_bit(chest: tuple[Volume, np.ndarray, np.ndarray], tiny_bundle: Path) -> None:
    """A lesion that fills its pixels is flat, and max pooling must not choose by what resampling has left."""
    inputs = seen(chest)
    assert ((inputs.lesions == 1).sum((1, 2, 3)) > 100).any()
    network = Models(open_bundle(tiny_bundle), torch.device("cpu")).network("classifier")
    single = explain(network, inputs.ct, inputs.lesions, inputs.inside)
    double = explain(network.double(), *(x.double() for x in (inputs.ct, inputs.lesions)), inputs.inside)
    for one, other in ((single.ct, double.ct), (single.lesions, double.lesions)):
        assert torch.linalg.vector_norm(one - other) < 1e-3 * torch.linalg.vector_norm(other)


def test_a_cropped_picture_looks_like_the_full_field_of_view(chest: tuple[Volume, np.ndarray, np.ndarray]) -> None:
    ct, lungs, lesions = chest
    cut = (slice(5, 78), slice(10, 130), slice(20, 220))
    cropped = classifier_input(
        Volume(ct.voxels[cut], SPACING), lungs[cut], lesions[cut], slice_mm=3.0, longest_side=128
    )
    whole = seen(chest)
    for name in ("ct", "lesions", "inside"):
        assert getattr(cropped, name).equal(getattr(whole, name))
    np.testing.assert_allclose(
        np.subtract(whole.grid.start, cropped.grid.start), np.multiply((5, 10, 20), SPACING[::-1])
    )


@pytest.mark.parametrize("slope", [0.5, 2.0])
@pytest.mark.parametrize("scores", [(0.0, 0.0), (1.5, -0.5), (-3.0, 4.0)])
def test_probability_is_platts_formula(scores: tuple[float, float], slope: float) -> None:
    found = calibrated(scores, {"slope": slope, "offset": -0.3, "threshold": 0.4})
    odds = math.exp(slope * (scores[1] - scores[0]) - 0.3)
    assert found.probability == pytest.approx(odds / (1 + odds))
    assert found.scores == scores and found.threshold == 0.4
    assert found.label == ("COVID-19" if odds / (1 + odds) >= 0.4 else "not COVID-19")


def test_the_threshold_itself_is_covid() -> None:
    assert calibrated((1.0, 1.0), {"slope": 1.0, "offset": 0.0, "threshold": 0.5}).label == "COVID-19"


@pytest.mark.parametrize(("difference", "probability"), [(-1e6, 0.0), (1e6, 1.0)])
def test_extreme_scores_do_not_overflow(difference: float, probability: float) -> None:
    assert calibrated((0.0, difference), {"slope": 1.0, "offset": 0.0, "threshold": 0.5}).probability == probability
