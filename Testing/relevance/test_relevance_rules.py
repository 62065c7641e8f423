"""Each rule against loops over explicit contributions r_ij, in double precision."""

import pytest
import torch
from CovidCTDiagnosisLib.networks import NetVLAD, SpatialPyramidPooling
from CovidCTDiagnosisLib.relevance import (
    GATES,
    LRP0,
    ZB,
    AlphaBeta,
    FrozenNetVLAD,
    PassThrough,
    Placed,
    WinnerTakeAllPool,
    WinnerTakeAllPyramid,
)
from CovidCTDiagnosisLib.relevance.rules import EPSILON
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev

SEEDS = st.integers(0, 2**31)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def matrix(layer, x):
    """Dense (outputs, inputs) weights of a layer at one sample's shape, and its biases."""
    weights = jacrev(layer)(x).reshape(layer(x).numel(), x.numel()).detach()
    return weights, layer(torch.zeros_like(x)).flatten().detach()


def run(rule, layer, x, relevance):
    with torch.no_grad():
        z, kept = rule.forward(layer, x)
        torch.testing.assert_close(z, layer(x))
        passed = rule.backward(layer, kept, Placed(relevance))
        return passed._replace(relevance=passed.relevance.maps)


def alpha_beta_by_loops(x, weights, biases, relevance, alpha, beta):
    x, relevance = x.flatten(), relevance.flatten()
    passed, absorbed, created = torch.zeros_like(x), 0.0, 0.0
    for row, bias, r in zip(weights, biases, relevance, strict=True):
        terms = torch.cat([row * x, bias[None]])
        carried = 0.0
        for share, sign in ((alpha, 1), (beta, -1)):
            part = torch.where(terms * sign > 0, terms, 0)
            if part.any():
                shares = share * part / part.sum() * r
                passed += shares[:-1]
                absorbed += shares[-1].item()
                carried += share
        created += (carried - 1) * r.item()
    return passed, absorbed, created


def assert_closes(passed, relevance, tolerance=1e-9):
    after = passed.relevance.sum() + passed.bias + passed.stabiliser - passed.created
    scale = relevance.abs().sum() + passed.relevance.abs().sum()
    assert abs(after - relevance.sum()) <= tolerance * scale


@given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_lrp0_shares_by_contribution(seed, inputs, outputs, bias):
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias).double()
    x, relevance = draw(3, inputs), draw(3, outputs)
    passed = run(LRP0(), layer, x, relevance)
    for sample in range(3):
        contributions = layer.weight * x[sample]
        z = layer(x[sample])
        expected = (contributions / (z + EPSILON * z.sign())[:, None] * relevance[sample][:, None]).sum(0)
        torch.testing.assert_close(passed.relevance[sample], expected, rtol=1e-7, atol=1e-9)
    assert_closes(passed, relevance)
    if not bias:
        assert passed.bias == 0
        assert passed.relevance.sum().item() == pytest.approx(
            relevance.sum().item(), abs=1e-4 * (relevance / layer(x)).abs().max().item()
        )


def test_lrp0_names_what_its_stabiliser_absorbs():
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    passed = run(LRP0(), layer, torch.tensor([1e-9, 0.0], dtype=torch.float64), draw(1).fill_(2.0))
    assert passed.relevance.tolist() == pytest.approx([1, 0])
    assert passed.stabiliser == pytest.approx(1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, -1.0), (1.0, 0.0), (1.5, -0.5)])
@given(SEEDS, st.integers(3, 5), st.integers(3, 6), st.booleans())
@settings(max_examples=8, deadline=None)
def test_alpha_beta_is_the_sum_over_every_contribution(stride, signed, alpha, beta, seed, height, width, bias):
    torch.manual_seed(seed)
    layer = nn.Conv2d(2, 3, 3, stride, padding=1, bias=bias).double()
    x = draw(2, 2, height, width)
    x[:, :, :, :2] = 0
    if not signed:
        x = x.abs()
    relevance = draw(*layer(x).shape)
    passed = run(AlphaBeta(alpha, beta), layer, x, relevance)
    by_loops = [alpha_beta_by_loops(x[s], *matrix(layer, x[s]), relevance[s], alpha, beta) for s in range(len(x))]
    expected = torch.stack([p for p, _, _ in by_loops]).view_as(x)
    torch.testing.assert_close(passed.relevance, expected, rtol=1e-7, atol=1e-9)
    assert passed.bias == pytest.approx(sum(b for _, b, _ in by_loops), abs=1e-9)
    assert passed.created == pytest.approx(sum(c for _, _, c in by_loops), abs=1e-9)
    assert_closes(passed, relevance)


@pytest.mark.parametrize(("sign", "created"), [(1, 1.0), (-1, -2.0)])
def test_a_neuron_of_one_sign_creates_relevance(sign, created):
    layer = nn.Conv2d(1, 1, 3, bias=False)
    layer.weight.data.fill_(sign * 0.1)
    passed = run(AlphaBeta(), layer, torch.rand(1, 1, 3, 3) + 0.1, torch.ones(1, 1, 1, 1))
    assert passed.created == pytest.approx(created)
    assert passed.relevance.sum().item() == pytest.approx(1 + created)


def test_a_part_lost_in_rounding_counts_as_absent():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 32, 3, bias=False)
    layer.weight.data.abs_()
    layer.weight.data[:, 0, 0, 0] = -1e-6
    relevance = torch.rand(1, 32, 6, 6)
    passed = run(AlphaBeta(), layer, torch.rand(1, 8, 8, 8), relevance)
    assert passed.created == pytest.approx(relevance.sum().item(), rel=1e-5)
    assert passed.relevance.min() >= 0
    assert_closes(passed, relevance, 1e-5)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_single_precision_agrees_with_double(seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(16, 8, 3, padding=1).double()
    x = nn.functional.leaky_relu(draw(1, 16, 9, 9))
    relevance = layer(x).detach().clamp(min=0)
    exact = run(AlphaBeta(), layer, x, relevance).relevance
    rounded = run(AlphaBeta(), layer.float(), x.float(), relevance.float()).relevance
    assert (rounded - exact).norm() <= 1e-5 * exact.norm()


def test_alpha_and_beta_add_to_one():
    with pytest.raises(ValueError, match="must be 1"):
        AlphaBeta(2, 1)


@given(SEEDS, st.integers(3, 6), st.integers(3, 6))
@settings(max_examples=20, deadline=None)
def test_zb_is_the_sum_over_every_contribution(seed, height, width):
    torch.manual_seed(seed)
    layer = nn.Conv2d(1, 3, 3, padding=1).double()
    high = (torch.rand(1, 1, height, width) > 0.4).double()
    low = -0.5 * high
    x = low + torch.rand_like(high) * (high - low)
    relevance = draw(1, 3, height, width)
    passed = run(ZB(low, high), layer, x, relevance)
    weights, _ = matrix(layer, x[0])
    expected, blind = torch.zeros(x.numel(), dtype=torch.float64), 0.0
    for row, r in zip(weights, relevance.flatten(), strict=True):
        terms = x.flatten() * row - low.flatten() * row.clamp(min=0) - high.flatten() * row.clamp(max=0)
        if terms.sum() > 1e-12:
            expected += terms / (terms.sum() + EPSILON) * r
        else:
            blind += r.item()
    torch.testing.assert_close(passed.relevance.flatten(), expected, rtol=1e-7, atol=1e-9)
    assert passed.bias == pytest.approx(blind, abs=1e-9)
    assert (passed.relevance[high == 0] == 0).all()
    assert_closes(passed, relevance)


def test_activations_pass_relevance_through():
    relevance = draw(2, 3)
    for layer in (nn.ReLU(), nn.LeakyReLU(0.01)):
        assert torch.equal(run(PassThrough(), layer, draw(2, 3), relevance).relevance, relevance)


@pytest.mark.parametrize(
    ("rule", "layer"),
    [
        (WinnerTakeAllPool(), nn.MaxPool2d(2)),
        (WinnerTakeAllPool(), nn.MaxPool2d(3, stride=2, padding=1)),
        (WinnerTakeAllPyramid(), SpatialPyramidPooling()),
        (WinnerTakeAllPyramid(), SpatialPyramidPooling((4, 1))),
    ],
)
@pytest.mark.parametrize("size", [(5, 5), (7, 9), (12, 10)])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_routes_as_its_gradient(rule, layer, size, ties):
    torch.manual_seed(0)
    x = draw(2, 3, *size)
    x = (x.round() if ties else x).requires_grad_()
    z = layer(x)
    relevance = draw(*z.shape)
    (routed,) = torch.autograd.grad(z, x, relevance)
    passed = run(rule, layer, x.detach(), relevance)
    torch.testing.assert_close(passed.relevance, routed)
    assert passed.relevance.sum().item() == pytest.approx(relevance.sum().item())


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, layout=st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_relevance_at_places_goes_where_it_would_go_as_a_map(seed, layout):
    torch.manual_seed(seed)
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    x = torch.rand(2, 2, 6, 5, dtype=torch.float64).contiguous(memory_format=layout)
    places = torch.randint(30, (2, 3, 4))  # one may stand twice
    placed = Placed(draw(2, 3, 4), places, torch.Size((2, 3, 6, 5)))
    maps = torch.zeros(2, 3, 30, dtype=torch.float64).scatter_add(2, places, placed.values).view(2, 3, 6, 5)
    torch.testing.assert_close(placed.maps, maps)
    torch.testing.assert_close(placed.take(layer(x)), layer(x).flatten(2).gather(2, places))
    for rule in (AlphaBeta(), ZB(torch.zeros_like(x), torch.ones_like(x))):
        with torch.no_grad():
            _, kept = rule.forward(layer, x)
            few, all_ = (rule.backward(layer, kept, relevance) for relevance in (placed, Placed(maps)))
        torch.testing.assert_close(few.relevance.maps, all_.relevance.maps)
        assert few[1:] == pytest.approx(all_[1:], abs=1e-9)


def test_netvlad_is_gradient_times_input_with_assignments_and_norms_frozen():
    torch.manual_seed(0)
    layer, top = NetVLAD(6, 4).double(), draw(24)
    x = draw(5, 6)
    assignments = layer.assignments(x).detach()
    within = layer.residuals(x, assignments).norm(dim=1, keepdim=True).detach()
    whole = (layer.residuals(x, assignments) / within).norm().detach()

    def frozen(features):
        return (layer.residuals(features, assignments) / within / whole).flatten()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(frozen(x) @ top, x)
    descriptor = frozen(x).detach()
    passed = run(FrozenNetVLAD(), layer, x.detach(), descriptor * top)
    torch.testing.assert_close(passed.relevance, x.detach() * gradient, rtol=1e-5, atol=1e-7)
    assert passed.bias == pytest.approx((frozen(torch.zeros_like(x)) @ top).item(), abs=1e-6)
    assert_closes(passed, descriptor * top)


def test_netvlad_survives_a_cluster_that_no_slice_chose():
    layer = NetVLAD(6, 4)
    layer.assign.bias.data[0] = -200
    x = torch.rand(3, 6)
    passed = run(FrozenNetVLAD(), layer, x, torch.ones(24))
    assert passed.relevance.isfinite().all()


def test_gates_pay_what_they_say():
    torch.manual_seed(0)
    ct, lesions, relevance = draw(2, 3, 4, 4), draw(2, 3, 4, 4), draw(2, 3, 4, 4)
    for gate in GATES.values():
        shares = gate.split(ct, lesions, relevance)
        torch.testing.assert_close(sum(shares), gate.paid * relevance)
    to_ct, to_lesions = GATES["winner-take-all"].split(ct, lesions, relevance)
    assert torch.equal(to_ct != 0, ct.abs() > lesions.abs())
    assert torch.equal(to_lesions != 0, ct.abs() < lesions.abs())
