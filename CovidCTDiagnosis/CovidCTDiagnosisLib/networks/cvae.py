"""Conditional variational autoencoder for pre-training the encoder (paper section 4.2.1, equations 1 to 6)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import GatedEncoder

Prior = Literal["image-and-label", "label"]


class CVAEOutput(NamedTuple):
    """Reconstruction (S, 1, H, W) and the Gaussians' means and log-variances, (S, 16) each."""

    reconstruction: Tensor
    posterior_mean: Tensor
    posterior_logvar: Tensor
    prior_mean: Tensor
    prior_logvar: Tensor


class CVAE(nn.Module):
    """Gated encoder, label embedding, merge network, context gating, 16 latents and a decoder.

    Equation 1 conditions prior and posterior on the same (x, y); then nothing keeps their divergence from
    vanishing. ``prior="image-and-label"`` builds it as written, ``prior="label"`` conditions the prior on
    the label embedding alone. sigma_gen is one learned number for all pixels.

    Args:
        size: (H, W) of the slices, multiples of 8: the map is flattened, so one size holds for training.
        prior: which prior, see above.
        side_information: whether the encoder has its lesion branch.

    Shapes: ct and lesions (S, 1, H, W) as for the encoder; label (S,) of 0 or 1.
    """

    latents = 16
    neurons = 64

    def __init__(
        self,
        size: tuple[int, int] = (96, 128),
        prior: Prior = "label",
        side_information: bool = True,
    ) -> None:
        super().__init__()
        if size[0] % 8 or size[1] % 8:
            raise ValueError(f"slice size {size} is not a multiple of 8")
        self.size = size
        self.prior = prior
        self.map_size = (size[0] // 8, size[1] // 8)
        cells = GatedEncoder.channels * self.map_size[0] * self.map_size[1]
        n = self.neurons
        self.encoder = GatedEncoder(side_information)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Sequential(nn.Flatten(), nn.Linear(cells, n), nn.ReLU())
        self.embed_label = nn.Sequential(nn.Linear(2, n), nn.ReLU())
        self.merge = nn.Sequential(nn.Linear(2 * n, n), nn.ReLU())
        self.context_gate = nn.Sequential(nn.Linear(n, n), nn.Sigmoid())
        self.posterior_head = nn.Linear(n, 2 * self.latents)
        self.prior_head = nn.Linear(n, 2 * self.latents)
        self.expand = nn.Linear(self.latents, cells)
        self.decode_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(GatedEncoder.channels, 32, 3, padding=1),
                nn.ConvTranspose2d(32, 16, 3, padding=1),
                nn.ConvTranspose2d(16, 1, 2),
            ]
        )
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))

    def forward(self, ct: Tensor, lesions: Tensor, label: Tensor) -> CVAEOutput:
        """Encode, draw z = mu + sigma * epsilon from the posterior (its mean in evaluation), decode."""
        embedding = self.embed_label(F.one_hot(label.long(), 2).to(ct.dtype))
        image = self.flatten(self.pool(self.encoder(ct, lesions)))
        merged = self.merge(torch.cat([image, embedding], dim=1))
        gated = self.context_gate(merged) * merged
        posterior_mean, posterior_logvar = self.posterior_head(gated).chunk(2, dim=1)
        condition = gated if self.prior == "image-and-label" else embedding
        prior_mean, prior_logvar = self.prior_head(condition).chunk(2, dim=1)
        z = posterior_mean
        if self.training:
            z = z + torch.exp(0.5 * posterior_logvar) * torch.randn_like(z)
        return CVAEOutput(self.decode(z), posterior_mean, posterior_logvar, prior_mean, prior_logvar)

    def decode(self, z: Tensor) -> Tensor:
        """(S, 16) to (S, 1, H, W): three transposed convolutions, each with leaky ReLU and upsampling."""
        x = self.expand(z).unflatten(1, (GatedEncoder.channels, *self.map_size))
        for level, layer in enumerate(self.decode_layers):
            scale = 2 ** (2 - level)
            x = F.interpolate(
                F.leaky_relu(layer(x), 0.01),
                size=(self.size[0] // scale, self.size[1] // scale),
                mode="bilinear",
                align_corners=False,
            )
        return x

    def loss(self, output: CVAEOutput, ct: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of equation 6, negated, in nats per slice: -log p(x|z) and the divergence.

        The first lacks the constant of the normal distribution, half of log 2 pi a pixel.

        Their sum is the negative variational lower bound, to be minimised.
        """
        pixels = ct[0].numel()
        squared = (output.reconstruction - ct).square().flatten(1).sum(1)
        reconstruction = 0.5 * squared * torch.exp(-2 * self.log_sigma) + pixels * self.log_sigma
        difference = output.posterior_mean - output.prior_mean
        divergence = 0.5 * (
            output.prior_logvar
            - output.posterior_logvar
            + (output.posterior_logvar.exp() + difference.square()) * torch.exp(-output.prior_logvar)
            - 1
        ).sum(1)
        return reconstruction.mean(), divergence.mean()
