"""The whole chain against zennit, rule by rule the same (it writes alpha - beta = 1, with beta = 1)."""

from __future__ import annotations

import pytest
import torch
from CovidCTDiagnosisLib.networks import VolumeClassifier
from CovidCTDiagnosisLib.relevance import explain
from torch import Tensor, nn

STABILISER = 1e-13


@pytest.fixture(scope="module")
def zennit():
    from CovidCTDiagnosisLib.evaluation.zennit_peer import import_zennit

    return import_zennit()


def attribute(zennit, module: nn.Module, composite, x: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of a module's input from that of its output."""
    with composite.context(module) as modified:
        x = x.detach().requires_grad_()
        (passed,) = torch.autograd.grad(modified(x), x, relevance)
    return passed


def head_of(classifier: VolumeClassifier, features: Tensor) -> nn.Sequential:
    """From pyramid features to scores, NetVLAD as the linear map that its frozen assignments and norms make it."""
    x = classifier.slice_network(features)
    netvlad = classifier.aggregate
    assignments = netvlad.assignments(x)
    residuals = netvlad.residuals(x, assignments)
    within = residuals.norm(dim=1)
    weight = assignments / (within * (residuals / within[:, None]).norm())
    slices, neurons = x.shape
    vlad = nn.Linear(slices * neurons, weight.shape[1] * neurons).double()
    unit = torch.eye(neurons, dtype=torch.double)
    vlad.weight.data = torch.einsum("sk,de->kdse", weight, unit).reshape(vlad.weight.shape)
    vlad.bias.data = -(weight.sum(0)[:, None] * netvlad.centres).flatten()
    return nn.Sequential(classifier.slice_network, nn.Flatten(0), vlad, classifier.classify)


@pytest.mark.parametrize("seed", range(3))
def test_both_maps_are_zennit_s(zennit, seed: int) -> None:
    torch.manual_seed(seed)
    classifier = VolumeClassifier(neurons=24, clusters=5).double()
    for parameter in classifier.parameters():  # biases of both signs, far from zero
        if parameter.dim() == 1:
            parameter.data.normal_(0, 0.1)
    inside = torch.zeros(3, 1, 26, 31, dtype=torch.double)
    inside[..., 3:23, 4:13] = inside[..., 3:23, 17:28] = 1
    ct, lesions = torch.rand_like(inside) * inside, (torch.rand_like(inside) > 0.7) * inside
    mine = explain(classifier, ct, lesions, inside)

    rules, composites, types = zennit.rules, zennit.composites, zennit.types
    linear = (nn.Linear, rules.Epsilon(epsilon=STABILISER))
    passing = [(types.Activation, rules.Pass())]
    convolution = (nn.Conv2d, rules.AlphaBeta(alpha=2, beta=1, stabilizer=STABILISER))
    pixels = (nn.Conv2d, rules.ZBox(low=torch.zeros_like(inside), high=inside, stabilizer=STABILISER))

    encoder = classifier.encoder
    branches = {"ct": (encoder.ct_branch, ct), "lesions": (encoder.lesion_branch, lesions)}
    features = {name: branch(x).detach() for name, (branch, x) in branches.items()}
    gated = features["ct"] * features["lesions"]
    pooled = classifier.pyramid(encoder.relu(gated)).detach()
    head = head_of(classifier, pooled)
    scores = head(pooled)
    torch.testing.assert_close(scores, mine.scores)

    start = torch.stack([torch.zeros_like(scores[1]), scores[1]]).detach()
    relevance = attribute(zennit, head, composites.LayerMapComposite([linear, *passing]), pooled, start)
    top = nn.Sequential(encoder.relu, classifier.pyramid)
    relevance = attribute(zennit, top, composites.LayerMapComposite(passing), gated, relevance)
    composite = composites.SpecialFirstLayerMapComposite([convolution, *passing], [pixels])
    for name, (branch, x) in branches.items():  # the gate hands all relevance to both
        theirs = attribute(zennit, branch, composite, x, relevance)
        difference = (theirs - getattr(mine, name)).abs().max() / theirs.abs().max()
        assert theirs.abs().max() > 0 and difference < 1e-5
