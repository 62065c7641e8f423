"""Recipes of CVAE and classifier (paper sections 4.2 and 5.1) on segmented scans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ct.windows import LUNG_WINDOW
from ..networks import CVAE, CVAEOutput, VolumeClassifier
from ..networks.cvae import Prior
from ..pipeline.compute import channels_last
from .examples import Example
from .loop import Recipe, seeded
from .record import PAPER

CVAE_SIZE = (96, 128)
CVAE_RATE = 5e-3
WEIGHT_DECAY = 1e-5
SLICES_A_STEP = 32
VOLUMES_A_STEP = 4


@dataclass(frozen=True)
class Scheme:
    """How CVAE and classifier learn.

    Attributes:
        prior: of the CVAE.
        classifier_rate: learning rate of the classifier.
        constant_rate: Adam at that rate to the end, without an average of the weights; else one cycle of AdamW up to
            it, and averaged weights.
        epochs: how often everything is seen, or None for as many steps as the caller says.
        augment: flips, other windows, noise, slices left out.
        balanced: whether both classes are drawn alike often, or each as often as it is.
        stop_early: by the loss of what is kept for validation, with the weights that did best there.
    """

    prior: Prior
    classifier_rate: float
    constant_rate: bool
    epochs: int | None
    augment: bool
    balanced: bool
    stop_early: bool

    def steps(self, count: int, at_once: int, steps: int) -> int:
        """Optimiser steps for so many slices or volumes, so many at once; ``steps`` unless there are epochs."""
        return steps if self.epochs is None else self.epochs * math.ceil(count / at_once)


SHORT = "short"
SCHEMES = {
    SHORT: Scheme("label", 3e-4, False, None, augment=True, balanced=True, stop_early=False),
    PAPER: Scheme("image-and-label", 1e-5, True, 200, augment=False, balanced=False, stop_early=True),
}
"""``short`` is for the few hundred steps that two CPU cores allow. ``paper`` is what sections 4.2 and 5.1 say; where
they are silent it does as all training here: gradients are clipped, an epoch is as many draws as there are scans.
"""

FOCAL_GAMMA = 5.0
CLASS_WEIGHTS = (0.25, 0.35)
"""Lambda of equation 7: COVID-19 negative, positive (section 5.1)."""


def focal_loss(scores: Tensor, covid: Tensor, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Equation 7: -lambda_t (1 - p_t)^gamma log p_t, mean over volumes.

    Args:
        scores: (B, 2), before softmax.
        covid: (B,) int64, 0 or 1.
        gamma: how strongly easy volumes are played down.
    """
    log_p = F.log_softmax(scores.float(), 1).gather(1, covid[:, None])[:, 0]
    weight = scores.new_tensor(CLASS_WEIGHTS)[covid]
    return -(weight * (1 - log_p.exp()) ** gamma * log_p).mean()


# Volumes


PICTURE_WINDOW = (-1400.0, 200.0)
"""HU of black and white that make the lungs of the slice series as bright as those of CTs in HU."""


LEAST_GREY = 1e-3
"""Of a lung's pixel: 0 is what lies outside."""


def _augment(rng: np.random.Generator, example: Example) -> tuple[Tensor, Tensor]:
    """Left-right flip, of pictures another window, noise, and slices left out."""
    ct, lesions = example.ct, example.lesions
    keep = np.sort(rng.permutation(len(ct))[: max(int(len(ct) * rng.uniform(0.6, 1.0)), 2)])
    ct, lesions = ct[keep], lesions[keep]
    if rng.random() < 0.5:
        ct, lesions = ct.flip(3), lesions.flip(3)
    grey = _as_windowed(ct, float(rng.uniform(0, 1))) if example.picture and rng.random() < 0.5 else ct
    grey = grey * float(rng.uniform(0.85, 1.15)) + float(rng.normal(0, 0.04))
    grey = grey + float(rng.uniform(0, 0.04)) * torch.from_numpy(rng.standard_normal(ct.shape, np.float32))
    return grey.clamp(LEAST_GREY, 1) * (ct > 0), lesions


def in_window(example: Example, share: float) -> Example:
    """A picture's scaled CT taken from the classifier's window (share 0) to ``PICTURE_WINDOW`` (1).

    Nobody says with which windows the slice series were made, and a CT in HU must look to the network like one of them.
    A scan in HU stays as it is: made darker still, its lungs would be black.
    """
    if not example.picture:
        return example
    slope, offset = _windowing(share)
    ct = _as_windowed(example.ct, share).clamp(LEAST_GREY, 1) * (example.ct > 0)
    seen = example.appearance
    return replace(
        example, ct=ct, appearance=seen._replace(texture=slope * seen.texture, surround=slope * seen.surround + offset)
    )


def _as_windowed(ct: Tensor, share: float) -> Tensor:
    slope, offset = _windowing(share)
    return slope * ct + offset


def _windowing(share: float) -> tuple[float, float]:
    """Slope and offset that take a scaled CT from the classifier's window (share 0) to ``PICTURE_WINDOW`` (1)."""
    (low, high), (picture_low, picture_high) = LUNG_WINDOW, PICTURE_WINDOW
    shown_low = low + share * (picture_low - low)
    shown_high = high + share * (picture_high - high)
    return (shown_high - shown_low) / (high - low), (shown_low - low) / (high - low)


def draw_volumes(
    rng: np.random.Generator, examples: Sequence[Example], augment: bool, balanced: bool = True
) -> list[tuple[Tensor, Tensor, int]]:
    """Volumes of any slice count and size.

    Args:
        rng: random source.
        examples: to draw from.
        augment: whether they are changed.
        balanced: both classes alike often.
    """
    drawn = []
    for n in range(VOLUMES_A_STEP):
        group = [e for e in examples if e.covid == n % 2] if balanced else examples
        example = group[int(rng.integers(len(group)))]
        pair = _augment(rng, example) if augment else (example.ct, example.lesions)
        drawn.append((*pair, example.covid))
    return drawn


def classifier_loss(network: nn.Module, batch: list[tuple[Tensor, Tensor, int]]) -> Tensor:
    """Focal loss of a list of volumes."""
    scores = torch.stack([network(ct, lesions) for ct, lesions, _ in batch])
    return focal_loss(scores, torch.tensor([covid for *_, covid in batch], device=scores.device))


def classifier_recipe(
    examples: Sequence[Example],
    encoder: dict[str, Tensor] | None,
    steps: int,
    seed: int = 0,
    side_information: bool = True,
    scheme: Scheme = SCHEMES[SHORT],
    validation: Sequence[Example] = (),
) -> Recipe:
    """The classifier, its encoder carried over from the CVAE.

    Args:
        examples: to learn from.
        encoder: state of the CVAE's encoder, or None for random weights.
        steps: optimiser steps, four volumes each, unless the scheme has epochs.
        seed: of everything random.
        side_information: whether the encoder has its lesion branch.
        scheme: how it learns.
        validation: for early stopping, where the scheme has it.
    """
    network = channels_last(seeded(seed, lambda: VolumeClassifier(side_information)))
    if encoder is not None:
        network.encoder.load_state_dict(encoder)
    return Recipe(
        network,
        lambda rng: draw_volumes(rng, examples, scheme.augment, scheme.balanced),
        classifier_loss,
        steps=scheme.steps(len(examples), VOLUMES_A_STEP, steps),
        learning_rate=scheme.classifier_rate,
        weight_decay=WEIGHT_DECAY,
        constant_rate=scheme.constant_rate,
        seed=seed,
        # One by one, so that each counts once.
        validation=[[(e.ct, e.lesions, e.covid)] for e in validation] if scheme.stop_early and validation else None,
    )


# Slices


def encoder_weights(cvae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a CVAE's state."""
    prefix = "encoder."
    return {name.removeprefix(prefix): value for name, value in cvae.items() if name.startswith(prefix)}


def fit_size(slices: Tensor) -> Tensor:
    """Pad with zeros or cut (S, 1, H, W) around its centre to ``CVAE_SIZE``."""
    height, width = CVAE_SIZE[0] - slices.shape[2], CVAE_SIZE[1] - slices.shape[3]
    return F.pad(slices, (width // 2, width - width // 2, height // 2, height - height // 2))


def cvae_recipe(
    examples: Sequence[Example],
    steps: int,
    seed: int = 0,
    side_information: bool = True,
    scheme: Scheme = SCHEMES[SHORT],
) -> Recipe:
    """The CVAE on single slices of one size; for arguments see ``classifier_recipe``."""
    ct = torch.cat([fit_size(e.ct) for e in examples])
    lesions = torch.cat([fit_size(e.lesions) for e in examples])
    covid = torch.tensor([e.covid for e in examples for _ in range(len(e.ct))])

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(ct), size=SLICES_A_STEP))
        return ct[chosen], lesions[chosen], covid[chosen]

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        assert isinstance(network, CVAE)
        images, masks, labels = batch
        found = CVAEOutput(*(part.float() for part in network(images, masks, labels)))
        reconstruction, divergence = network.loss(found, images)
        # Per pixel, so that the gradients have the size that the learning rate expects.
        return (reconstruction + divergence) / images[0].numel()

    return Recipe(
        channels_last(seeded(seed, lambda: CVAE(CVAE_SIZE, scheme.prior, side_information))),
        draw,
        loss,
        steps=scheme.steps(len(ct), SLICES_A_STEP, steps),
        learning_rate=CVAE_RATE,
        weight_decay=0.0,
        constant_rate=scheme.constant_rate,
        seed=seed,
    )
