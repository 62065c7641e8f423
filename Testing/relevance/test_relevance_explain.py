"""The whole chain, from the score to the pixels of both inputs."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from CovidCTDiagnosisLib.networks import VolumeClassifier
from CovidCTDiagnosisLib.relevance import explain
from hypothesis import given, settings
from hypothesis import strategies as st

GATE_NAMES = ["gradient-times-input", "half-and-half", "winner-take-all"]


def network(seed=0, side_information=True):
    torch.manual_seed(seed)
    return VolumeClassifier(side_information, neurons=24, clusters=5)


def volume(seed=0, slices=3, height=26, width=31):
    """Two lungs with noise and some lesions."""
    torch.manual_seed(seed)
    j, i = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    inside = (((i.abs() - 0.5) / 0.4) ** 2 + (j / 0.8) ** 2 < 1).float().expand(slices, 1, -1, -1)
    return torch.rand_like(inside) * inside, (torch.rand_like(inside) > 0.8) * inside, inside


def absorbed(explanation):
    return sum(e.bias + e.stabiliser - e.created for e in explanation.ledger)


def entries(explanation):
    return {e.layer: e for e in explanation.ledger}


@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(20, 33),
    st.integers(20, 33),
    st.sampled_from(GATE_NAMES),
)
@settings(max_examples=15, deadline=None)
def test_the_ledger_closes_and_ends_at_the_maps(seed, slices, height, width, gate):
    classifier, inputs = network(seed), volume(seed, slices, height, width)
    explanation = explain(classifier, *inputs, gate=gate)
    scores = classifier(*inputs[:2]).detach()
    torch.testing.assert_close(explanation.scores, scores)
    assert explanation.score == pytest.approx(scores[1].item(), rel=1e-5, abs=1e-6)
    assert all(entry.residual < 1e-4 for entry in explanation.ledger)
    largest = max(abs(entry.bias) for entry in explanation.ledger) + abs(explanation.score)
    maps = (explanation.ct.sum() + explanation.lesions.sum()).item()
    assert explanation.score == pytest.approx(maps + absorbed(explanation), abs=1e-4 * largest)
    for relevance in (explanation.ct, explanation.lesions):
        assert relevance.shape == inputs[0].shape
        assert relevance.isfinite().all()
        assert (relevance[inputs[2] == 0] == 0).all()
        assert relevance.any()


def test_every_layer_is_in_the_ledger_and_entries_join():
    explanation = explain(network(), *volume())
    ledger = entries(explanation)
    layers = ["classify", "aggregate", "slice_network.1", "slice_network.0", "pyramid", "encoder.relu"]
    branches = [f"encoder.{b}_branch.{n}" for b in ("ct", "lesion") for n in reversed(range(8))]
    assert list(ledger) == [*layers, "encoder.gate", *branches]
    assert ledger["classify"].incoming == pytest.approx(explanation.score)
    assert ledger["pyramid"].incoming == pytest.approx(ledger["slice_network.0"].outgoing)
    assert ledger["encoder.ct_branch.0"].outgoing == pytest.approx(explanation.ct.sum().item(), rel=1e-5)
    assert ledger["encoder.lesion_branch.0"].outgoing == pytest.approx(explanation.lesions.sum().item(), rel=1e-5)


def test_linear_stages_keep_the_score_where_they_have_no_bias():
    classifier = network().double()
    for constant in (
        classifier.slice_network[0].bias,
        classifier.aggregate.centres,
        classifier.classify.bias,
    ):
        constant.data.zero_()
    explanation = explain(classifier, *(x.double() for x in volume()))
    reached = entries(explanation)["encoder.gate"].incoming
    assert reached == pytest.approx(explanation.score, rel=1e-6)


def test_features_and_constants_make_the_score():
    classifier, inputs = network().double(), [x.double() for x in volume()]
    ledger = entries(explain(classifier, *inputs))
    with torch.no_grad():
        features = classifier.slice_features(*inputs[:2])
        assignments = classifier.aggregate.assignments(features)
        residuals = classifier.aggregate.residuals(features, assignments)
        norms = residuals.norm(dim=1)
        norms = norms * (residuals / norms[:, None]).norm()
        weight = classifier.classify.weight[1].view_as(residuals) / norms[:, None]
        relevance = features * (assignments @ weight)
        centres = -(assignments.sum(0)[:, None] * classifier.aggregate.centres * weight).sum()
    assert ledger["aggregate"].outgoing == pytest.approx(relevance.sum().item(), rel=1e-6)
    assert ledger["aggregate"].bias == pytest.approx(centres.item(), rel=1e-6)
    assert ledger["classify"].bias == pytest.approx(classifier.classify.bias[1].item(), rel=1e-6)


def test_maps_of_the_difference_are_the_difference_of_maps():
    classifier, inputs = network(), volume()
    covid, other, both = (explain(classifier, *inputs, target=t) for t in ("covid", "not-covid", "difference"))
    assert both.score == pytest.approx(covid.score - other.score, rel=1e-6)
    for branch in ("ct", "lesions"):
        expected = getattr(covid, branch) - getattr(other, branch)
        assert (getattr(both, branch) - expected).norm() < 1e-5 * expected.norm()


def test_chunks_do_not_change_the_maps():
    classifier, inputs = network(), volume(slices=5)
    one, two, all_at_once = (explain(classifier, *inputs, chunk=c) for c in (1, 2, 100))
    for other in (one, two):
        for branch in ("ct", "lesions"):
            expected = getattr(all_at_once, branch)
            assert (getattr(other, branch) - expected).norm() < 1e-5 * expected.norm()
    for mine, theirs in zip(one.ledger, all_at_once.ledger, strict=True):
        assert mine.layer == theirs.layer
        assert mine.outgoing == pytest.approx(theirs.outgoing, rel=1e-3, abs=1e-7)


def test_half_and_half_halves_the_maps_and_creates_nothing():
    classifier, inputs = network(), volume()
    full, half = explain(classifier, *inputs), explain(classifier, *inputs, gate="half-and-half")
    torch.testing.assert_close(half.ct, full.ct / 2)
    torch.testing.assert_close(half.lesions, full.lesions / 2)
    assert entries(half)["encoder.gate"].created == 0
    assert entries(full)["encoder.gate"].created == entries(full)["encoder.gate"].incoming


def test_winner_take_all_gives_each_feature_to_one_branch():
    classifier, inputs = network(), volume()
    full, winner = explain(classifier, *inputs), explain(classifier, *inputs, gate="winner-take-all")
    gate = entries(winner)["encoder.gate"]
    assert gate.created == 0
    assert gate.outgoing == pytest.approx(gate.incoming, rel=1e-5)
    assert not torch.allclose(winner.ct, full.ct)


@pytest.mark.parametrize("empty", [1, 2])
def test_no_lesions_or_no_lungs_still_give_finite_maps(empty):
    inputs = list(volume(slices=1))
    for index in [1] if empty == 1 else [0, 1, 2]:
        inputs[index] = torch.zeros_like(inputs[index])
    explanation = explain(network(), *inputs)
    assert explanation.ct.isfinite().all()
    assert explanation.lesions.isfinite().all()
    assert all(entry.residual < 1e-4 for entry in explanation.ledger)
    if empty == 2:
        assert not explanation.ct.any()


def test_without_side_information_only_the_ct_is_explained():
    classifier, inputs = network(side_information=False), volume()
    explanation = explain(classifier, *inputs)
    assert not explanation.lesions.any()
    assert not any("lesion" in e.layer or e.layer == "encoder.gate" for e in explanation.ledger)
    maps = explanation.ct.sum().item()
    assert explanation.score == pytest.approx(maps + absorbed(explanation), abs=1e-5)


def test_weights_stay_and_runs_repeat_in_threads():
    classifier, inputs = network(), volume()
    before = deepcopy(classifier.state_dict())
    first = explain(classifier, *inputs)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: explain(classifier, *inputs), range(4)))
    for run in runs:
        assert torch.equal(run.ct, first.ct)
        assert torch.equal(run.lesions, first.lesions)
        assert run.ledger == first.ledger
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not first.ct.requires_grad


def test_progress_is_work_done_over_work_planned():
    reports = []
    explain(network(), *volume(slices=5), chunk=2, progress=lambda done, planned: reports.append((done, planned)))
    done = [d for d, _ in reports]
    assert done == sorted(set(done))
    assert {planned for _, planned in reports} == {done[-1]}


def outside(inputs):
    inputs[1] = torch.ones_like(inputs[1])


def too_bright(inputs):
    inputs[0] = inputs[0] * 2


def fractional(inputs):
    inputs[2] = inputs[2] * 0.5


def misshapen(inputs):
    inputs[1] = inputs[1][:, 0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (outside, "lesions must be zero outside the lungs"),
        (too_bright, "ct must lie within"),
        (fractional, "inside must be 0 or 1"),
        (misshapen, "one shape"),
    ],
)
def test_inputs_that_break_the_bounds_are_refused(spoil, message):
    inputs = list(volume())
    spoil(inputs)
    with pytest.raises(ValueError, match=message):
        explain(network(), *inputs)


@pytest.mark.parametrize("option", [{"target": "flu"}, {"gate": "closed"}, {"alpha": 2.0, "beta": 0.0}])
def test_options_that_do_not_exist_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option.values())) if len(option) == 1 else "must be 1"):
        explain(network(), *volume(), **option)


@pytest.mark.parametrize("kept_mb", [0, 0.3])
def test_what_is_kept_from_the_way_up_changes_nothing(kept_mb, monkeypatch):
    classifier, inputs = network(), volume(slices=5)
    kept = explain(classifier, *inputs, chunk=1)
    monkeypatch.setattr("CovidCTDiagnosisLib.relevance.composite.KEPT_MB", kept_mb)
    climbs = []
    encoder = classifier.encoder.ct_branch[0]
    hook = encoder.register_forward_hook(lambda *_: climbs.append(1))
    again = explain(classifier, *inputs, chunk=1)
    hook.remove()
    assert 5 < len(climbs) <= 10
    for name in ("ct", "lesions"):
        torch.testing.assert_close(getattr(again, name), getattr(kept, name), rtol=0, atol=0)
    assert again.ledger == kept.ledger
