"""Recipes of CVAE and classifier (paper sections 4.2 and 5.1) on slice series.

Every series is segmented once by the bundle's own networks and kept on disk as the classifier sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..networks import CVAE, VolumeClassifier
from ..pipeline.models import Models
from ..pipeline.slice_series import series_input
from .loop import Recipe, seeded
from .sources import NOMINAL_SLICE_MM, Series

LONGEST_SIDE = 128
CVAE_SIZE = (96, 128)
SEGMENTING = ("lungs", "lesions", "involvement")

FOCAL_GAMMA = 5.0
CLASS_WEIGHTS = (0.25, 0.35)
"""Lambda of equation 7: COVID-19 negative, positive (section 5.1)."""


@dataclass(frozen=True)
class Example:
    """A series as the classifier sees it: ct and lesions (S, 1, H, W) float32, covid 0 or 1."""

    name: str
    ct: Tensor
    lesions: Tensor
    covid: int


def prepare_examples(
    series: Sequence[Series], models: Models, cache: Path, report: Callable[[str], None] = lambda text: None
) -> list[Example]:
    """Segment series with the bundle and keep the result; known ones are read from the cache.

    Args:
        series: slice series.
        models: lungs and lesions come from these networks.
        cache: folder; what was made there by other weights or of other pictures is not used.
        report: gets a line per series segmented.
    """
    folder = cache / f"series-{LONGEST_SIDE}-{models.bundle.fingerprint(SEGMENTING)}"
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number, item in enumerate(series, start=1):
        file = folder / f"{item.name}-{item.digest}.npz"
        if not file.exists():
            report(f"Segmenting series {number} of {len(series)}: {item.name}")
            _save(file, item, models)
        with np.load(file) as saved:
            ct, lesions = (torch.from_numpy(saved[n].astype(np.float32) / 255) for n in ("ct", "lesions"))
        examples.append(Example(item.name, ct, lesions, item.covid))
    return examples


def _save(file: Path, series: Series, models: Models) -> None:
    inputs = series_input([s[0] for s in series.slices], models, LONGEST_SIDE, NOMINAL_SLICE_MM)
    arrays = {n: np.rint(getattr(inputs, n).numpy() * 255).astype(np.uint8) for n in ("ct", "lesions")}
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(file)


class Labelled(Protocol):
    """Anything that is COVID-19 (1) or not (0)."""

    @property
    def covid(self) -> int:
        """1 or 0."""


Item = TypeVar("Item", bound=Labelled)


@dataclass(frozen=True)
class Split(Generic[Item]):
    """What the classifier learns from, what it is calibrated on, and what it is measured on."""

    learn: list[Item]
    calibrate: list[Item]
    test: list[Item]


BLOCKS = 5
"""Of neighbouring series in each class."""


def encoder_weights(cvae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a CVAE's state."""
    prefix = "encoder."
    return {name.removeprefix(prefix): value for name, value in cvae.items() if name.startswith(prefix)}


def split_by_blocks(examples: Sequence[Item], fold: int = BLOCKS - 1) -> Split[Item]:
    """In each class one block of neighbouring names is for testing, the one before (in a circle) for calibration.

    One patient may appear as two neighbouring series, so neighbours stay together.

    Args:
        examples: in order of their names.
        fold: which block is for testing, 0 to 4.

    Raises:
        InputError: a class has fewer than one series a block.
    """
    test, calibrate = fold, (fold - 1) % BLOCKS
    split: Split[Item] = Split([], [], [])
    for label in (0, 1):
        group = [e for e in examples if e.covid == label]
        if len(group) < BLOCKS:
            kind = "COVID-19" if label else "other"
            raise InputError(
                f"There are {len(group)} {kind} series, too few for {BLOCKS} blocks.",
                f"Give at least {BLOCKS} of either kind.",
            )
        for number, block in enumerate(np.array_split(np.arange(len(group)), BLOCKS)):
            part = {test: split.test, calibrate: split.calibrate}.get(number, split.learn)
            part.extend(group[n] for n in block)
    return split


def focal_loss(scores: Tensor, covid: Tensor, gamma: float = FOCAL_GAMMA) -> Tensor:
    """Equation 7: -lambda_t (1 - p_t)^gamma log p_t, mean over volumes.

    Args:
        scores: (B, 2), before softmax.
        covid: (B,) int64, 0 or 1.
        gamma: how strongly easy volumes are played down.
    """
    log_p = F.log_softmax(scores, 1).gather(1, covid[:, None])[:, 0]
    weight = scores.new_tensor(CLASS_WEIGHTS)[covid]
    return -(weight * (1 - log_p.exp()) ** gamma * log_p).mean()


def _augment(rng: np.random.Generator, ct: Tensor, lesions: Tensor) -> tuple[Tensor, Tensor]:
    """Left-right flip, a window that wanders, noise, and slices left out."""
    keep = np.sort(rng.permutation(len(ct))[: max(int(len(ct) * rng.uniform(0.6, 1.0)), 2)])
    ct, lesions = ct[keep], lesions[keep]
    if rng.random() < 0.5:
        ct, lesions = ct.flip(3), lesions.flip(3)
    inside = ct > 0
    shifted = ct * float(rng.uniform(0.85, 1.15)) + float(rng.normal(0, 0.04))
    shifted = shifted + float(rng.uniform(0, 0.04)) * torch.from_numpy(rng.standard_normal(ct.shape, np.float32))
    return shifted.clamp(1e-3, 1) * inside, lesions


VOLUMES_A_STEP = 4


def draw_volumes(
    rng: np.random.Generator, examples: Sequence[Example], augment: bool
) -> list[tuple[Tensor, Tensor, int]]:
    """Volumes of any slice count and size, both classes alike often."""
    drawn = []
    for n in range(VOLUMES_A_STEP):
        group = [e for e in examples if e.covid == n % 2]
        example = group[int(rng.integers(len(group)))]
        pair = (example.ct, example.lesions)
        drawn.append((*(_augment(rng, *pair) if augment else pair), example.covid))
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
    learning_rate: float = 3e-4,
    augment: bool = True,
    side_information: bool = True,
) -> Recipe:
    """The classifier, its encoder carried over from the CVAE.

    The paper's recipe is learning rate 1e-5 for 200 epochs without augmentation; the defaults here are for the few
    hundred steps that two CPU cores allow.

    Args:
        examples: to learn from.
        encoder: state of the CVAE's encoder, or None for random weights.
        steps: optimiser steps, four volumes each.
        seed: of everything random.
        learning_rate: highest of the one-cycle schedule.
        augment: flips, window, noise, slices left out.
        side_information: whether the encoder has its lesion branch.
    """
    network = seeded(seed, lambda: VolumeClassifier(side_information))
    if encoder is not None:
        network.encoder.load_state_dict(encoder)
    return Recipe(
        network,
        lambda rng: draw_volumes(rng, examples, augment),
        classifier_loss,
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=1e-5,
        seed=seed,
    )


SLICES_A_STEP = 32


def fit_size(slices: Tensor, size: tuple[int, int] = CVAE_SIZE) -> Tensor:
    """Pad with zeros or cut (S, 1, H, W) around its centre to one size."""
    height, width = size[0] - slices.shape[2], size[1] - slices.shape[3]
    return F.pad(slices, (width // 2, width - width // 2, height // 2, height - height // 2))


def cvae_recipe(examples: Sequence[Example], steps: int, seed: int = 0, side_information: bool = True) -> Recipe:
    """The CVAE: Adam's rate 5e-3 as in the paper is its highest here, on single slices of one size."""
    ct = torch.cat([fit_size(e.ct) for e in examples])
    lesions = torch.cat([fit_size(e.lesions) for e in examples])
    covid = torch.tensor([e.covid for e in examples for _ in range(len(e.ct))])

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(ct), size=SLICES_A_STEP))
        return ct[chosen], lesions[chosen], covid[chosen]

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        assert isinstance(network, CVAE)
        images, masks, labels = batch
        reconstruction, divergence = network.loss(network(images, masks, labels), images)
        # Per pixel, so that the gradients have the size that the learning rate expects.
        return (reconstruction + divergence) / images[0].numel()

    network = seeded(seed, lambda: CVAE(CVAE_SIZE, side_information=side_information))
    return Recipe(network, draw, loss, steps=steps, learning_rate=5e-3, weight_decay=0.0, seed=seed)
