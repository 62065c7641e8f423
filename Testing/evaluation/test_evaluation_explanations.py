"""Figures of merit of heatmaps: against Quantus and by hand, and the command that prints them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.evaluation import explanation_scores
from CovidCTDiagnosisLib.evaluation.explanation_scores import (
    GRADIENT,
    INPUTS,
    METHODS,
    RANDOM,
    RELEVANCE,
    SHARES,
    Flipping,
    Localisation,
    Randomisation,
    Results,
    Stability,
    heatmaps,
    measure,
)
from CovidCTDiagnosisLib.evaluation.explanations_page import page, print_table, rows
from CovidCTDiagnosisLib.evaluation.relevance_measures import (
    area_over_curve,
    flipping_curve,
    gradient_times_input,
    pointing_game,
    randomised,
    rank_correlation,
    relevance_mass,
    relevance_rank,
)
from CovidCTDiagnosisLib.evaluation.segmentation_targets import MET, MISSED
from CovidCTDiagnosisLib.networks import VolumeClassifier
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.examples import Example
from CovidCTDiagnosisLib.training.sources import Case
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def quantus():
    sys.modules.setdefault("zennit.torchvision", ModuleType("zennit.torchvision"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

        yield quantus


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_mass_and_rank_are_those_of_quantus(quantus, seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance, mask = rng.normal(0, 1, (17, 23)), rng.random((17, 23)) > 0.8
    batch = {"a_batch": np.maximum(relevance, 0)[None, None], "s_batch": mask[None, None]}
    theirs = quantus.RelevanceMassAccuracy(disable_warnings=True).evaluate_batch(**batch)
    assert relevance_mass(relevance, mask) == pytest.approx(theirs[0])
    batch["a_batch"] = relevance[None, None]
    theirs = quantus.RelevanceRankAccuracy(disable_warnings=True).evaluate_batch(**batch)
    assert relevance_rank(relevance, mask) == pytest.approx(theirs[0])
    assert pointing_game(relevance, mask) == bool(quantus.PointingGame(disable_warnings=True).evaluate_batch(**batch))


def test_measures_by_hand() -> None:
    relevance, mask = np.array([4.0, 3.0, -9.0, 1.0]), np.array([True, False, True, False])
    assert relevance_mass(relevance, mask) == 0.5
    assert relevance_rank(relevance, mask) == 0.5
    assert pointing_game(relevance, mask) and not pointing_game(relevance, ~mask)
    for measured in (relevance_mass, relevance_rank, pointing_game):
        assert np.isnan(measured(np.zeros(4), mask))  # a flat map points nowhere
    assert np.isnan(relevance_mass(-np.ones(3), np.ones(3, bool)))


def test_rank_does_not_depend_on_the_order_of_equals() -> None:
    relevance = np.array([0.0, 0, 0, 5, 0])
    for mask in ([1, 1, 0, 0, 0], [0, 1, 0, 0, 1]):
        assert relevance_rank(relevance, np.array(mask, bool)) == pytest.approx(0.5 * 2 / 4)
    assert relevance_rank(relevance, np.array([0, 0, 0, 1, 1], bool)) == pytest.approx((1 + 1 / 4) / 2)


# Flipping


def volume(seed: int = 0, slices: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inside = torch.zeros(slices, 1, 24, 30)
    inside[..., 3:21, 3:13] = inside[..., 3:21, 17:27] = 1
    ct = (0.1 + 0.05 * torch.rand(inside.shape, generator=generator)) * inside
    lesions = torch.zeros_like(ct)
    lesions[1, 0, 8:14, 18:24] = 1
    return ct + 0.5 * lesions, lesions


def test_flipping_makes_pixels_ordinary_in_order_and_nothing_outside() -> None:
    ct, lesions = volume()
    seen = []

    def score(flipped_ct: torch.Tensor, flipped_lesions: torch.Tensor) -> float:
        seen.append((flipped_ct.clone(), flipped_lesions.clone()))
        return float(flipped_lesions.sum())

    share = 36 / int((ct > 0).sum())  # the lesion's pixels
    scores = flipping_curve(score, ct, lesions, lesions, np.array([0, share / 2, share, 1]))
    assert scores.tolist() == [36, 18, 0, 0]
    assert torch.equal(seen[0][0], ct) and torch.equal(seen[0][1], lesions)
    ordinary = ct[(ct > 0) & (lesions == 0)].median()
    assert (seen[2][0][lesions > 0] == ordinary).all() and torch.equal(seen[2][0][lesions == 0], ct[lesions == 0])
    assert all(torch.equal(flipped > 0, ct > 0) for flipped, _ in seen)


def test_the_area_is_the_mean_drop() -> None:
    assert area_over_curve(np.array([3.0, 3.0, 3.0]), np.array([0, 0.1, 0.2])) == 0
    assert area_over_curve(np.array([3.0, 1.0, 1.0]), np.array([0, 0.1, 0.2])) == pytest.approx(1.5)


# Heatmaps to compare with


def network(seed: int = 0) -> VolumeClassifier:
    torch.manual_seed(seed)
    return VolumeClassifier(neurons=24, clusters=5).eval()


def test_gradient_times_input_is_the_slope_along_the_input() -> None:
    """Its sum is what the score gains when both inputs grow by a small share."""
    classifier, (ct, lesions) = network().double(), volume()
    ct, lesions = ct.double(), lesions.double()
    maps = gradient_times_input(classifier, ct, lesions, (0.0, 1.0))
    more, less = (classifier(ct * a, lesions * a)[1].item() for a in (1 + 1e-6, 1 - 1e-6))
    assert float(maps[0].sum() + maps[1].sum()) == pytest.approx((more - less) / 2e-6, rel=1e-3)


def test_layers_are_drawn_anew_from_the_scores_down_and_the_network_stays() -> None:
    classifier = network()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    changed_so_far = []
    for layer, changed in randomised(classifier, seed=1):
        differing = {n.rpartition(".")[0] for n, v in changed.state_dict().items() if not torch.equal(v, before[n])}
        changed_so_far.append(layer)
        assert differing == set(changed_so_far)
        for name, value in changed.state_dict().items():
            torch.testing.assert_close(value.flatten().sort().values, before[name].flatten().sort().values)
    assert changed_so_far[0] == "classify" and changed_so_far[-1] == "encoder.ct_branch.0"
    assert "aggregate" in changed_so_far  # its centres belong to no convolution
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_correlation_is_that_of_ranks_inside_the_lungs() -> None:
    ct, _ = volume()
    inside = ct > 0
    one = torch.rand(ct.shape)
    assert rank_correlation(one, one**3 + 5 * ~inside, inside) == pytest.approx(1)
    assert rank_correlation(one, -one, inside) == pytest.approx(-1)
    assert np.isnan(rank_correlation(one, torch.zeros_like(one), inside))


@pytest.mark.parametrize("method", METHODS)
def test_every_heatmap_lies_inside_the_lungs(method: str) -> None:
    ct, lesions = volume()
    for relevance in heatmaps(method, network(), ct, lesions):
        assert relevance.shape == ct.shape and relevance.any() and not relevance[ct == 0].any()


# All together


@pytest.fixture(scope="module")
def results(tiny_bundle: Path, chest_phantom) -> Results:
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    chest = chest_phantom(spacing=(3.0, 3.0, 5.0))
    hu = chest.voxels[30:31].copy()
    labels = np.zeros(hu.shape, np.uint8)
    labels[0, 35:50, 25:40] = 1
    hu[labels > 0] = -300
    slices = [Case("expert", hu, (5.0, 3.0, 3.0), labels), Case("nothing", np.full_like(hu, -1000), (5, 3, 3), labels)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explanation_scores, "DRAWS", 2)  # for speed
        return measure(slices, [Example(f"scan {n}", *volume(n), 1) for n in range(2)], models)


def test_everything_is_measured_for_every_method(results: Results) -> None:
    assert {(r.slice, r.method, r.input) for r in results.localisation} == {
        ("expert", method, source) for method in METHODS for source in INPUTS
    }
    assert all(0 <= r.mass <= 1 and 0 <= r.rank <= 1 for r in results.localisation)
    assert {(f.scan, f.method, len(f.scores)) for f in results.flipping} == {
        (f"scan {n}", method, len(SHARES)) for n in range(2) for method in METHODS
    }
    assert {f.scores[0] for f in results.flipping if f.scan == "scan 0"} == {results.flipping[0].scores[0]}
    assert {r.method for r in results.randomisation} == {RELEVANCE, GRADIENT}
    assert len(results.stability) == 4 and all(-1 <= s.correlation <= 1 for s in results.stability)


def made_up(better: bool) -> Results:
    """Relevance better or worse than gradient x input in everything."""
    good = {RELEVANCE: 0.8 if better else 0.2, GRADIENT: 0.5, RANDOM: 0.1}
    results = Results("bundle 1")
    for n in range(4):
        results.localisation.extend(
            Localisation(f"{n}", m, i, v, v, v > 0.4, 0.1) for m, v in good.items() for i in INPUTS
        )
        results.flipping.extend(Flipping(f"{n}", m, [0.0, *[-v] * (len(SHARES) - 1)]) for m, v in good.items())
        for m in (RELEVANCE, GRADIENT):
            # A map that is the same but for its sign has not changed.
            results.randomisation.extend(
                Randomisation(f"{n}", draw, "classify", m, (1 - good[m]) * (-1) ** draw) for draw in range(4)
            )
            results.stability.append(Stability(f"{n}", m, good[m]))
    return results


@pytest.mark.parametrize("better", [True, False])
def test_verdicts_follow_the_numbers(better: bool) -> None:
    judged = [row for row in rows(made_up(better)) if row.verdict]
    assert len(judged) == 4 and {row.verdict for row in judged} == {MET if better else MISSED}


def test_the_page_and_the_table_say_the_same(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(results)
    printed, html = capsys.readouterr().out, page(results)
    assert html.count("<svg") == 0 and html.count("data:image/svg+xml") == 2
    for row in rows(results):
        assert row.measured[0] in html and row.measured[0].split()[0] in printed
    assert json.loads(json.dumps(rows(results)))
