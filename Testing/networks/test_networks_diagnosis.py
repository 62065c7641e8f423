"""Gated encoder, CVAE and volume classifier against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from CovidCTDiagnosisLib.networks import (
    CVAE,
    GatedEncoder,
    NetVLAD,
    SpatialPyramidPooling,
    VolumeClassifier,
    convolution_branch,
)
from CovidCTDiagnosisLib.pipeline.macs import count_parameters
from torch import nn
from torch.distributions import Normal, kl_divergence


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pair(slices: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(slices, 1, height, width), (torch.rand(slices, 1, height, width) > 0.7).float()


def small_classifier(**options: bool) -> VolumeClassifier:
    return VolumeClassifier(bins=(3, 2), neurons=12, clusters=5, **options).eval()


# Encoder


def test_a_branch_has_the_papers_layers() -> None:
    convolutions = [m for m in convolution_branch() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size) for c in convolutions] == [(16, (5, 5)), (32, (3, 3)), (64, (3, 3))]
    assert [type(m).__name__ for m in convolution_branch() if not isinstance(m, nn.Conv2d)] == [
        "ReLU",
        "MaxPool2d",
        "LeakyReLU",
        "MaxPool2d",
        "LeakyReLU",
    ]


def test_the_gate_multiplies_the_branches_then_rectifies() -> None:
    encoder = GatedEncoder()
    ct, lesions = pair(2, 21, 26)
    assert encoder.lesion_branch is not None
    product = encoder.ct_branch(ct) * encoder.lesion_branch(lesions)
    assert product.min() < 0 < product.max()
    features = encoder(ct, lesions)
    assert features.shape == (2, 64, 5, 6)
    torch.testing.assert_close(features, torch.where(product > 0, product, 0.0))


def test_without_side_information_lesions_are_not_looked_at() -> None:
    encoder = GatedEncoder(side_information=False)
    ct, lesions = pair(2, 20, 20)
    torch.testing.assert_close(encoder(ct, lesions), encoder.ct_branch(ct).clamp_min(0))
    assert count_parameters(encoder) * 2 == count_parameters(GatedEncoder())


# Classifier


def test_pyramid_pooling_is_the_maximum_of_every_cell() -> None:
    x = torch.randn(2, 3, 11, 13)
    expected = []
    for bins in (5, 3, 2):
        level = torch.empty(2, 3, bins, bins)
        for row in range(bins):
            for column in range(bins):
                rows = slice(row * 11 // bins, math.ceil((row + 1) * 11 / bins))
                columns = slice(column * 13 // bins, math.ceil((column + 1) * 13 / bins))
                level[:, :, row, column] = x[:, :, rows, columns].amax((2, 3))
        expected.append(level.reshape(2, -1))
    torch.testing.assert_close(SpatialPyramidPooling()(x), torch.cat(expected, 1))


def test_netvlad_is_the_sum_of_soft_assigned_residuals() -> None:
    vlad = NetVLAD(features=6, clusters=4)
    x = torch.randn(7, 6)
    rows = []
    for k in range(4):
        row = torch.zeros(6)
        for s in range(7):
            logits = vlad.assign.weight @ x[s] + vlad.assign.bias
            row = row + (logits.exp() / logits.exp().sum())[k] * (x[s] - vlad.centres[k])
        rows.append(row / row.norm())
    whole = torch.cat(rows)
    torch.testing.assert_close(vlad(x), whole / whole.norm(), atol=1e-5, rtol=1e-4)


def test_classifier_has_the_parameters_its_docstring_names() -> None:
    assert count_parameters(VolumeClassifier()) / 1e6 == pytest.approx(1.42, rel=0.005)


def test_the_order_of_slices_does_not_matter() -> None:
    network = small_classifier()
    ct, lesions = pair(9, 24, 28)
    order = torch.randperm(9)
    with torch.inference_mode():
        torch.testing.assert_close(network(ct[order], lesions[order]), network(ct, lesions), atol=1e-5, rtol=1e-4)
        # But what is on the slices does.
        assert not torch.allclose(network(ct[:3], lesions[:3]), network(ct, lesions), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 20, 20), (2, 21, 37), (17, 128, 90), (3, 64, 20)])
def test_classifier_takes_any_number_and_size_of_slices(size: tuple[int, int, int]) -> None:
    with torch.inference_mode():
        scores = VolumeClassifier(neurons=8, clusters=3).eval()(*pair(*size))
    assert scores.shape == (2,) and scores.isfinite().all()


def test_slices_may_be_taken_in_chunks() -> None:
    network = small_classifier()
    ct, lesions = pair(7, 24, 24)
    with torch.inference_mode():
        features = torch.cat([network.slice_features(ct[n : n + 3], lesions[n : n + 3]) for n in (0, 3, 6)])
        torch.testing.assert_close(network.scores(features), network(ct, lesions), atol=1e-5, rtol=1e-4)


# CVAE

SIZE = (24, 32)


def cvae_case(**options: str) -> tuple[CVAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    network = CVAE(SIZE, **options)  # type: ignore[arg-type]
    return network, *pair(4, *SIZE), torch.tensor([0, 1, 1, 0])


def test_the_loss_is_the_negative_bound_of_independent_gaussians() -> None:
    network, ct, lesions, label = cvae_case()
    nn.init.constant_(network.log_sigma, -0.4)
    output = network(ct, lesions, label)
    reconstruction, divergence = network.loss(output, ct)
    posterior = Normal(output.posterior_mean, (output.posterior_logvar / 2).exp())
    prior = Normal(output.prior_mean, (output.prior_logvar / 2).exp())
    torch.testing.assert_close(divergence, kl_divergence(posterior, prior).sum(1).mean(), atol=1e-5, rtol=1e-4)
    likelihood = Normal(output.reconstruction, math.exp(-0.4)).log_prob(ct).flatten(1).sum(1).mean()
    constant = 0.5 * math.log(2 * math.pi) * SIZE[0] * SIZE[1]  # does not depend on any weight
    torch.testing.assert_close(reconstruction, -likelihood - constant, atol=1e-2, rtol=1e-4)


def test_the_divergence_vanishes_only_where_posterior_and_prior_agree() -> None:
    network, ct, lesions, label = cvae_case()
    output = network(ct, lesions, label)
    assert network.loss(output, ct)[1] > 1e-3
    same = output._replace(prior_mean=output.posterior_mean, prior_logvar=output.posterior_logvar)
    assert abs(network.loss(same, ct)[1].item()) < 1e-5


@pytest.mark.parametrize(("prior", "sees_image"), [("label", False), ("image-and-label", True)])
def test_the_prior_knows_what_its_name_says(prior: str, sees_image: bool) -> None:
    network, ct, lesions, label = cvae_case(prior=prior)
    with torch.inference_mode():
        first, other = network(ct, lesions, label), network(1 - ct, 1 - lesions, label)
        relabelled = network(ct, lesions, 1 - label)
    assert torch.equal(first.prior_mean, other.prior_mean) != sees_image
    assert not torch.equal(first.posterior_mean, other.posterior_mean)
    assert not torch.equal(first.prior_mean, relabelled.prior_mean)
    assert not torch.equal(first.posterior_mean, relabelled.posterior_mean)


def test_latents_are_drawn_in_training_and_their_mean_is_taken_in_evaluation() -> None:
    network, ct, lesions, label = cvae_case()
    with torch.no_grad():
        drawn = [network(ct, lesions, label).reconstruction for _ in range(2)]
        network.eval()
        settled = [network(ct, lesions, label) for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(settled[0].reconstruction, settled[1].reconstruction)
    torch.testing.assert_close(settled[0].reconstruction, network.decode(settled[0].posterior_mean))
    assert settled[0].posterior_mean.shape == (4, 16) and settled[0].reconstruction.shape == ct.shape


@pytest.mark.parametrize("size", [(90, 128), (96, 124), (12, 12)])
def test_slice_sizes_that_are_no_multiples_of_8_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        CVAE(size)


@pytest.mark.parametrize("side_information", [True, False])
def test_the_classifier_takes_over_the_cvaes_encoder(side_information: bool) -> None:
    source = CVAE(SIZE, side_information=side_information)
    network = small_classifier(side_information=side_information)
    network.encoder.load_state_dict(source.encoder.state_dict())
    ct, lesions = pair(2, *SIZE)
    torch.testing.assert_close(network.encoder(ct, lesions), source.encoder(ct, lesions))


def test_every_weight_of_the_cvae_learns() -> None:
    for prior in ("label", "image-and-label"):
        network, ct, lesions, label = cvae_case(prior=prior)
        sum(network.loss(network(ct, lesions, label), ct)).backward()
        idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle
