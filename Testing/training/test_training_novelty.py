"""Scans unlike the training data: the distance that is fitted, and the warning that it gives."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.bundle import NetworkRecord, open_bundle, revise_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.regrid import WorkingGrid
from CovidCTDiagnosisLib.ct.slice_images import hu_to_grey
from CovidCTDiagnosisLib.networks import Novelty, VolumeClassifier
from CovidCTDiagnosisLib.networks.novelty import FACTS
from CovidCTDiagnosisLib.pipeline.appearance import Appearance, UsualAppearance, lung_appearance
from CovidCTDiagnosisLib.pipeline.diagnosis import ClassifierInput, classifier_input, diagnose
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.diagnosis import in_window
from CovidCTDiagnosisLib.training.examples import Example
from CovidCTDiagnosisLib.training.novelty import (
    FALSE_ALARMS,
    FAT_AROUND,
    LEAST_SPREAD,
    NARROWER,
    average_maps,
    fit_appearance,
    fit_novelty,
    left_to_distance,
)
from PIL import Image
from scipy.ndimage import distance_transform_cdt, gaussian_filter
from sklearn.covariance import LedoitWolf

CPU = torch.device("cpu")


def averages(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Averages of maps that go together in pairs; some are always dark."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1, (count, 32))
    logs = np.concatenate([hidden, hidden + rng.normal(0, 0.3, hidden.shape)], axis=1) + shift
    logs[:, :8] = -20
    return torch.from_numpy(np.exp(logs).astype(np.float32))


def test_about_five_percent_of_the_like_and_nearly_all_of_the_unlike_lie_beyond_one() -> None:
    network = fit_novelty(averages(100, 0))
    like = np.array([float(network(a)) for a in averages(400, 1)])
    assert 0.01 < (like > 1).mean() < 0.12
    moved = averages(100, 2)
    moved[:, 36:46] *= 12  # some maps against their pairs
    assert np.mean([float(network(a)) > 1 for a in moved]) > 0.9


def test_all_rows_of_a_scan_are_left_out_together() -> None:
    """A scan whose windows were all but one kept would seem less far off than one that was never seen."""
    scans = averages(41, 0)
    windows = torch.stack([scans, scans * 1.01, scans * 1.02], dim=1).flatten(0, 1)
    together, apart = fit_novelty(windows, rows_a_scan=3), fit_novelty(windows)
    assert float(together(scans[0])) < float(apart(scans[0]))


def test_scans_of_one_patient_are_left_out_together_wherever_they_stand() -> None:
    first = averages(40, 0)
    twins = first * torch.from_numpy(np.random.default_rng(1).normal(1, 0.02, first.shape).astype(np.float32))
    side_by_side, apart = torch.stack([first, twins], 1).flatten(0, 1), torch.cat([first, twins])
    names = [str(n) for n in range(40)]
    wanted = float(fit_novelty(side_by_side)(averages(1, 2)[0]))
    told = float(fit_novelty(apart, patients=names * 2)(averages(1, 2)[0]))
    assert told == pytest.approx(wanted, rel=1e-4)
    assert float(fit_novelty(apart)(averages(1, 2)[0])) > 1.2 * wanted


def test_as_much_of_each_kind_is_left_out_in_whatever_order_they_stand() -> None:
    """A kind that is left out as a whole seems far off, and the limit is too loose."""
    kinds = [number // 20 for number in range(100)]
    scans = averages(100, 0)
    for number, kind in enumerate(kinds):
        scans[number, 36 + kind] *= 400
    mixed = np.random.default_rng(0).permutation(100)
    told = float(fit_novelty(scans, kinds=kinds)(averages(1, 2)[0]))
    assert told > 1.2 * float(fit_novelty(scans)(averages(1, 2)[0]))
    again = float(fit_novelty(scans[mixed], kinds=[kinds[n] for n in mixed])(averages(1, 2)[0]))
    assert again == pytest.approx(told, rel=0.1)


def test_the_distance_is_that_of_mahalanobis() -> None:
    given = averages(80, 0)
    network = fit_novelty(given)
    features = Novelty.features(given).double().numpy()
    spread = np.maximum(features.std(0), LEAST_SPREAD)
    fitted = LedoitWolf().fit(features / spread)
    theirs = np.sqrt(fitted.mahalanobis(features / spread))
    mine = np.array([float(network(a)) for a in given])
    np.testing.assert_allclose(mine / theirs, np.full(80, mine[0] / theirs[0]), rtol=1e-3)


# In use


def volume(seed: int, gain: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ct = (0.2 + 0.05 * torch.rand(20, 1, 24, 32, generator=generator)) * gain
    return ct.clamp(0, 1), (torch.rand(20, 1, 24, 32, generator=generator) > 0.9).float()


@pytest.fixture(scope="module")
def knowing(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The tiny bundle, with the distance fitted to dark volumes."""
    classifier: VolumeClassifier = Models(open_bundle(tiny_bundle), CPU).network("classifier")
    examples = [Example(f"{n}", *volume(n), 0) for n in range(40)]
    usual = fit_novelty(average_maps(classifier, examples))
    folder = tmp_path_factory.mktemp("knowing") / "bundle"
    record = NetworkRecord({}, {}, usual.state_dict())
    return Models(revise_bundle(tiny_bundle, folder, networks={"novelty": record}), CPU)


def given(ct: torch.Tensor, lesions: torch.Tensor) -> ClassifierInput:
    grid = WorkingGrid((0.0, 0.0, 0.0), (3.0, 2.0, 2.0), (len(ct), *ct.shape[2:]))
    return ClassifierInput(ct, lesions, ct > 0, grid)


def test_a_bright_volume_gets_a_warning_and_its_probability_all_the_same(knowing: Models) -> None:
    usual = diagnose(given(*volume(99)), knowing, lambda f: None)
    odd = diagnose(given(*volume(99, gain=3)), knowing, lambda f: None)
    assert usual.novelty is not None and usual.novelty < 1.5
    assert odd.novelty is not None and odd.novelty > 2
    assert 0 <= odd.probability <= 1
    (warning,) = odd.warnings
    assert "unlike those" in warning and f"{odd.novelty:.1f} times" in warning


def test_a_bundle_that_cannot_say_gives_no_warning(tiny_bundle: Path) -> None:
    found = diagnose(given(*volume(99, gain=3)), Models(open_bundle(tiny_bundle), CPU), lambda f: None)
    assert found.novelty is None and found.warnings == []


def test_the_answer_is_the_same_with_and_without_the_distance(knowing: Models, tiny_bundle: Path) -> None:
    pair = volume(5)
    alone = diagnose(given(*pair), Models(open_bundle(tiny_bundle), CPU), lambda f: None)
    assert diagnose(given(*pair), knowing, lambda f: None).scores == pytest.approx(alone.scores)
    with torch.inference_mode():
        whole = knowing.network("classifier")(*pair).tolist()
    assert alone.scores == pytest.approx(tuple(whole), abs=1e-5)


def test_a_table_of_series_carries_the_warning(
    chest_phantom: Callable[..., Volume], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    far = Novelty()
    far.whiten.mul_(100)
    bundle = tmp_path / "bundle"
    revise_bundle(tiny_bundle, bundle, networks={"novelty": NetworkRecord({}, {}, far.state_dict())})
    voxels = chest_phantom(spacing=(4.0, 4.0, 5.0)).voxels
    (tmp_path / "scans" / "one").mkdir(parents=True)
    for k in (32, 36):
        Image.fromarray(hu_to_grey(voxels[k])).save(tmp_path / "scans" / "one" / f"{k}.png")
    table = tmp_path / "scores.csv"
    arguments = ["diagnose-series", tmp_path / "scans", "--output", table, "--bundle", bundle, "--pixel-mm", 4]
    assert main([str(a) for a in arguments]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["label"] and "unlike those" in row["warnings"]


# Facts of the CT


def facts(ct: torch.Tensor) -> torch.Tensor:
    """Averages of grey, its square, and differences of neighbours."""
    sums, pixels = Novelty.lung_sums(torch.zeros(len(ct), 5, ct.shape[2] // 4, ct.shape[3] // 4), ct)
    return (sums / pixels.clamp(min=1))[-FACTS:]


def lungs(grey: float) -> torch.Tensor:
    ct = torch.zeros(2, 1, 24, 32)
    ct[:, :, 4:20, 3:29] = grey
    return ct


def test_even_lungs_have_their_grey_and_no_differences() -> None:
    torch.testing.assert_close(facts(lungs(0.3)), torch.tensor([0.3, 0.09, 0.0]), atol=1e-6, rtol=1e-5)


def test_facts_do_not_depend_on_the_box_around_the_lungs() -> None:
    ct = lungs(0.3) * (0.5 + torch.rand(2, 1, 24, 32))
    around = torch.nn.functional.pad(ct, (8, 8, 4, 4))
    torch.testing.assert_close(facts(around), facts(ct))


def test_noise_raises_differences_and_blur_lowers_them() -> None:
    ct = lungs(0.3) + 0.02 * torch.randn(2, 1, 24, 32) * (lungs(1) > 0)
    noisy = ct + 0.1 * torch.randn(ct.shape).abs() * (ct > 0)
    blurred = torch.nn.functional.avg_pool2d(ct, 3, 1, 1) * (ct > 0)
    assert facts(blurred)[2] < 0.8 * facts(ct)[2] < 0.4 * facts(noisy)[2]


# Appearance

FINE = (3.0, 0.7, 0.7)


def textured(noise: float, shape: tuple[int, int, int] = (6, 40, 50)) -> tuple[np.ndarray, np.ndarray]:
    """Lungs of -850 HU with noise of so many HU, and their mask; bright beside them."""
    lungs = np.zeros(shape, bool)
    lungs[:, 5:35, 5:45] = True
    voxels = np.where(lungs, -850, 60) + np.random.default_rng(0).normal(0, noise, shape)
    return voxels, lungs


def lung_texture(voxels: np.ndarray, lungs: np.ndarray) -> float:
    return lung_appearance(voxels, lungs, FINE).texture


def test_texture_is_the_noise_and_not_the_edge_of_the_lungs() -> None:
    assert lung_texture(*textured(0)) == pytest.approx(0, abs=1e-6)
    # The mean of 3 x 3 leaves 8/9 of a normal variable's variance, whose mean size is sqrt(2 / pi) deviations.
    expected = 30 / 1400 * np.sqrt(8 / 9) * np.sqrt(2 / np.pi)
    assert lung_texture(*textured(30)) == pytest.approx(expected, rel=0.03)
    voxels, lungs = textured(30)
    away_from_edges = np.zeros_like(lungs)
    away_from_edges[:, 15:25, 15:35] = True
    assert lung_texture(gaussian_filter(voxels, (0, 2, 2)), away_from_edges) < 0.2 * expected


@pytest.mark.parametrize(("pixel", "near", "far"), [(0.7, 2, 6), (1.4, 1, 3), (5.0, 0, 1)])
def test_the_surround_is_a_ring_some_millimetres_from_the_lungs(pixel: float, near: int, far: int) -> None:
    """Every distance from the lungs has a grey of its own."""
    lungs = np.zeros((2, 40, 50), bool)
    lungs[:, 12:28, 14:36] = True
    away = np.stack([distance_transform_cdt(~mask, "chessboard") for mask in lungs])
    found = lung_appearance(-900.0 + 100 * away, lungs, (3.0, pixel, pixel)).surround
    ring = (away > near) & (away <= far)
    assert found == pytest.approx(float(((100 + 100 * away[ring]) / 1400).clip(0, 1).mean()), rel=1e-6)


def test_without_lungs_nothing_is_known() -> None:
    voxels, lungs = textured(30)
    assert all(np.isnan(lung_appearance(voxels, np.zeros_like(lungs), FINE)))
    assert np.isnan(lung_appearance(voxels, np.ones_like(lungs), FINE).surround)


def test_long_scans_are_looked_at_in_some_slices() -> None:
    voxels, lungs = textured(30, (300, 40, 50))
    assert lung_appearance(voxels, lungs, FINE) == pytest.approx(lung_appearance(voxels[::5], lungs[::5], FINE))


def test_the_classifiers_input_knows_what_lies_around_the_lungs() -> None:
    """Also where the box around the lungs ends."""
    voxels, lungs = textured(10)
    seen = classifier_input(
        Volume(voxels, (0.7, 0.7, 3.0)),
        lungs.astype(np.uint8),
        np.zeros(lungs.shape, np.uint8),
        slice_mm=3.0,
        longest_side=32,
    )
    assert seen.appearance == pytest.approx(lung_appearance(voxels, lungs, FINE))
    assert seen.appearance.surround == pytest.approx((60 + 1000) / 1400, abs=0.01)


def test_width_is_that_of_the_body_where_most_lung_shows_whatever_lies_beside_it() -> None:
    voxels, lungs = np.full((3, 60, 60), -1000), np.zeros((3, 60, 60), bool)
    voxels[:, 10:50, 10:50] = 40
    lungs[0, 16:24, 12:48] = lungs[1, 14:46, 20:30] = True
    voxels[lungs] = -850
    assert lung_appearance(voxels, lungs, FINE).width == pytest.approx(10 / 40)
    couch = voxels.copy()
    couch[:, 55] = 100
    assert lung_appearance(couch, lungs, FINE).width == pytest.approx(10 / 40)
    assert lung_appearance(voxels[:, 10:50, 10:50], lungs[:, 10:50, 10:50], FINE).width == pytest.approx(10 / 40)


def test_the_usual_lies_within_what_is_known_and_leaves_the_distance_its_share() -> None:
    known = [
        Appearance(0.02, 0.8, 0.5),
        Appearance(0.01, 0.7, 0.4),
        Appearance(surround=0.75),
        Appearance(texture=0.03),
    ]
    limits = (0.01, 0.03, pytest.approx(0.7 - FAT_AROUND), pytest.approx(0.4 * NARROWER), 5)
    assert fit_appearance(known, 5) == limits
    assert fit_appearance([Appearance(texture=0.02)], 5) is None
    assert left_to_distance(83) == pytest.approx(FALSE_ALARMS - 3 / 84)
    assert left_to_distance(10) == pytest.approx(0.01)


def test_another_window_changes_appearance_as_it_changes_the_picture() -> None:
    voxels, lungs = textured(30)
    voxels = np.where(lungs, voxels + 400, -100)  # so that nothing is cut off
    scaled = torch.from_numpy((voxels + 1000) / 1400).float()[:, None]
    example = Example("", scaled, torch.zeros_like(scaled), 0, lung_appearance(voxels, lungs, FINE))
    shown = in_window(example, 1.0)
    hu = shown.ct[:, 0].numpy() * 1400 - 1000
    assert shown.appearance == pytest.approx(lung_appearance(hu, lungs, FINE), rel=1e-3)


@pytest.mark.parametrize(
    ("appearance", "word"),
    [
        (Appearance(0.09, 0.8), "noisier"),
        (Appearance(0.001, 0.8), "blurred"),
        (Appearance(0.02, 0.4), "inverted"),
        (Appearance(0.02, 0.8, 0.1), "not a chest"),
        (Appearance(0.02, 0.8, 0.3), None),
        (Appearance(0.02, 0.8), None),
        (Appearance(), None),
    ],
)
def test_noise_blur_dark_tissue_and_narrow_lungs_get_warnings_of_their_own(
    tiny_bundle: Path, tmp_path: Path, appearance: Appearance, word: str | None
) -> None:
    settings = {**open_bundle(tiny_bundle).settings, "appearance": UsualAppearance(0.01, 0.03, 0.65, 0.2)._asdict()}
    models = Models(revise_bundle(tiny_bundle, tmp_path / "bundle", settings=settings), CPU)
    found = diagnose(replace(given(*volume(99)), appearance=appearance), models, lambda f: None)
    assert [word in text for text in found.warnings] == ([True] if word else [])


@pytest.mark.parametrize(("fewest", "warned"), [(2, False), (1000, True)])
def test_fewer_slices_than_were_learned_from_get_a_warning(
    tiny_bundle: Path, tmp_path: Path, fewest: int, warned: bool
) -> None:
    usual = UsualAppearance(0.0, 1.0, 0.0, fewest_slices=fewest)
    settings = {**open_bundle(tiny_bundle).settings, "appearance": usual._asdict()}
    models = Models(revise_bundle(tiny_bundle, tmp_path / "bundle", settings=settings), CPU)
    inputs = given(*volume(99))
    found = diagnose(inputs, models, lambda f: None)
    assert [
        f"slices of the lungs than any that the classifier learned from ({len(inputs.ct)} instead of" in text
        for text in found.warnings
    ] == [True] * warned
