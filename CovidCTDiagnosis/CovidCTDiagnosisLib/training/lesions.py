"""Recipes of the lesion networks: 3-D U-Net for classes (paper section 4.1) and 2DS (section 3).

Learn from: expert slices (ground-glass, consolidation), slices with machine-made masks (lesion of unknown
class), and lesions of all four classes planted in 3-D in whole chests. Crazy paving and the combined pattern
are known from planted lesions alone. Both networks are pre-trained on what is plentiful (machine masks, planted
lesions) and then learn from everything, most of all from the expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.losses import GeneralizedWassersteinDiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from ..ct.regrid import Triple
from ..ct.windows import LUNG_WINDOW, scale
from ..networks import (
    COMBINED,
    CONSOLIDATION,
    CRAZY_PAVING,
    GROUND_GLASS,
    EfficientNetLite0,
    UNet2DEnsemble,
    UNet3D,
    make_2ds,
)
from ..pipeline.compute import channels_last
from .augment import random_contrast, random_flip, random_grid, random_scanner, random_turn, random_window, sample
from .chests import pick_chest, read_chests
from .imagenet_weights import pretrained_contracting_path
from .loop import Hardware, Recipe, Steps, fit_in_stages, seeded
from .lung_labels import aerated_lungs, lesions_of_lungs
from .planting import KINDS, lesion_shape, plant_lesions
from .sources import UNKNOWN_LESION, Case, read_covid_slices, read_lesion_slices

LesionNetwork = Literal["involvement", "lesions"]

MEMBER: dict[str, Any] = {"widths": (16, 32, 48, 64, 128), "contracting": "efficientnet-lite0", "outputs": 2}
"""Architecture of each network of 2DS."""
INVOLVEMENT: dict[str, Any] = {**MEMBER, "members": 2}
"""Architecture of 2DS."""
UNET: dict[str, Any] = {"widths": (24, 48, 96, 192)}
"""Architecture of the 3-D U-Net, narrower than usual: so the second network of 2DS fits the bundle's 30 MB."""

STEP: Triple = (3.0, 1.75, 1.75)
"""Working grid of both lesion networks, mm along (k, j, i)."""

# About a whole slice of the lungs' box; 2DS also gets planes of a planted volume.
SLICE_PATCH = (1, 112, 144)
VOLUME_PATCH = (16, 96, 96)
PLANTED_PATCH, PLANTED_PATCHES = (8, 44, 44), 6
"""Several small ones in a batch, as a large one holds a class or two: from such batches classes are not learned."""
SLICES, PLANES = 8, 2
UNET_SLICES = 4
"""Of a batch of the 3-D U-Net."""
PLANTED_SHARE = 0.75
"""Of the U-Net's batches; the rest are slices, or parts of labelled CTs."""
EQUAL_KINDS = (0.25, 0.25, 0.25, 0.25)
"""How often the U-Net's planted lesions are of each class."""
EXPERT_SHARE = 0.8
CLASSES_TOLD = 0.999
"""Of a slice, from which on it teaches 2DS the classes' Dice: no lesion, or of a class that is told."""

# Distances between classes for the generalized Wasserstein Dice loss (Fidon 2017): every lesion class is far
# from background, the combined pattern is near the patterns it combines.
CLASS_DISTANCES = np.array(
    [
        [0.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.0, 0.6, 0.5, 0.4],
        [1.0, 0.6, 0.0, 0.5, 0.4],
        [1.0, 0.5, 0.5, 0.0, 0.4],
        [1.0, 0.4, 0.4, 0.4, 0.0],
    ]
)


@dataclass(frozen=True)
class LesionCases:
    """Where lesions are learned from; every part but one may be empty.

    Attributes:
        expert: slices labelled by an expert.
        machine: slices with machine-made masks.
        chests: CTs with lung labels, to plant lesions in.
        volumes: labelled CTs.
        shapes: of real lesions, to plant; see ``planting.lesion_shape``.
    """

    expert: list[Case] = field(default_factory=list)
    machine: list[Case] = field(default_factory=list)
    chests: list[Case] = field(default_factory=list)
    volumes: list[Case] = field(default_factory=list)
    shapes: list[np.ndarray] = field(default_factory=list)


def lesion_cases(data: Path, dicom: Path, machine_masks: bool = True) -> LesionCases:
    """All cases of the shared data folder, those with machine-made masks if wanted."""
    machine = [_within_lungs(case) for case in read_covid_slices(data)] if machine_masks else []
    return LesionCases(read_lesion_slices(data), machine, read_chests(data, dicom), shapes=_shapes(machine))


def _shapes(machine: list[Case]) -> list[np.ndarray]:
    """Of each volume that slices come from."""
    volumes = groupby(machine, key=lambda case: case.name)
    return [lesion_shape([c.labels[0] > 0 for c in cases if c.labels is not None]) for _, cases in volumes]


def _within_lungs(case: Case) -> Case:
    assert case.labels is not None
    lesions = lesions_of_lungs(case.labels[0] > 0, aerated_lungs(case.hu[0]))
    return replace(case, labels=np.where(lesions, case.labels, 0))


def _draw_slice(rng: np.random.Generator, cases: LesionCases) -> tuple[np.ndarray, np.ndarray]:
    expert = cases.expert and (not cases.machine or rng.random() < EXPERT_SHARE)
    source = cases.expert if expert else cases.machine
    case = source[int(rng.integers(len(source)))]
    return _draw_labelled(rng, case, case.spacing[0], SLICE_PATCH, None)


def _draw_part(
    rng: np.random.Generator, volumes: list[Case], count: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A part of a labelled CT, mostly around a lesion."""
    case = volumes[int(rng.integers(len(volumes)))]
    focus = case.labelled if rng.random() < 0.7 else None
    return _draw_labelled(rng, case, STEP[0] * rng.uniform(0.75, 1.3), count, focus)


def _draw_labelled(
    rng: np.random.Generator, case: Case, slice_mm: float, count: tuple[int, int, int], focus: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    step = STEP[1] * rng.uniform(0.75, 1.35)
    stretch = rng.uniform(0.9, 1.1)
    grid = random_grid(rng, case, (slice_mm, step * stretch, step / stretch), count, focus)
    hu, found = sample(case, grid)
    fractions = list(found.values())
    if rng.random() < 0.5:
        hu, *fractions = random_turn(rng, hu, *fractions)
    if rng.random() < 0.5:
        hu = random_contrast(rng, hu)
    labels = np.zeros(hu.shape, np.uint8)
    if found:
        lesion = np.stack(fractions)
        strongest = np.array(list(found), np.uint8)[lesion.argmax(0)]
        labels = np.where(lesion.sum(0) > 0.5, strongest, labels)
    return _finish(rng, hu, labels)


def _draw_planted(
    rng: np.random.Generator,
    chests: list[Case],
    count: tuple[int, int, int],
    anywhere: bool = False,
    shapes: Sequence[np.ndarray] = (),
    kinds: Sequence[float] = KINDS,
) -> tuple[np.ndarray, np.ndarray]:
    """A part of a chest with lesions planted in its lungs, mostly; it lies around the lungs if not anywhere."""
    chest = pick_chest(rng, chests)
    step = STEP[1] * rng.uniform(0.75, 1.3)
    steps: Triple = (STEP[0] * rng.uniform(0.75, 1.3), step, step)
    grid = random_grid(rng, chest, steps, count, chest.tissue if anywhere else chest.labelled)
    hu, fractions = sample(chest, grid)
    lungs = fractions.get(1, np.zeros_like(hu))
    if rng.random() < 0.5:
        hu, lungs = random_turn(rng, hu, lungs)
    labels = np.zeros(hu.shape, np.uint8)
    if rng.random() < 0.75:
        hu, labels = plant_lesions(rng, hu, lungs > 0.5, grid.step, shapes=shapes, kinds=kinds)
    if rng.random() < 0.5:
        hu = random_window(rng, hu)
    return _finish(rng, hu, labels)


def _finish(rng: np.random.Generator, hu: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hu, labels = random_flip(rng, random_scanner(rng, hu), labels)
    return scale(hu, LUNG_WINDOW), labels


def _batch(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    ct, labels = (torch.from_numpy(np.stack(arrays)).unsqueeze(1) for arrays in zip(*pairs, strict=True))
    return ct, labels.long()


def draw_lesions(rng: np.random.Generator, cases: LesionCases) -> tuple[Tensor, Tensor]:
    """A batch of slices or one patch of a CT: scaled CT and labels, (B, 1, K, J, I) each."""
    labelled = cases.expert or cases.machine or cases.volumes
    if cases.chests and (rng.random() < PLANTED_SHARE or not labelled):
        planted = partial(_draw_planted, rng, cases.chests, PLANTED_PATCH, shapes=cases.shapes, kinds=EQUAL_KINDS)
        return _batch([planted() for _ in range(PLANTED_PATCHES)])
    if cases.volumes:
        return _batch([_draw_part(rng, cases.volumes, VOLUME_PATCH)])
    return _batch([_draw_slice(rng, cases) for _ in range(UNET_SLICES)])


class LesionLoss:
    """Generalized Wasserstein Dice, cross-entropy of lesion and, twice as much and where it is known, of the class.

    A lesion of unknown class may be any for the cross-entropy. The Dice loss is told one of the two that experts name,
    whichever the network finds more probable: told whichever of the four, it would feed the combined pattern, which is
    near to all. All classes that a batch holds count alike, as the rare ones would not be learned otherwise.
    """

    def __init__(self) -> None:
        self.wasserstein = GeneralizedWassersteinDiceLoss(CLASS_DISTANCES, weighting_mode="GDL")

    def __call__(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of logits (B, 5, K, J, I) against labels (B, 1, K, J, I)."""
        ct, labels = batch
        logits = network(ct).float()
        likely = logits.detach()[:, [GROUND_GLASS, CONSOLIDATION]].argmax(1, keepdim=True) + 1
        told = torch.where(labels == UNKNOWN_LESION, likely, labels)
        lesion = torch.stack([logits[:, 0], torch.logsumexp(logits[:, 1:], 1)], 1)
        loss = self.wasserstein(logits, told) + F.cross_entropy(lesion, (labels[:, 0] > 0).long())
        return loss + 2 * _class_loss(logits[:, 1:], labels[:, 0])


def _class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the lesion classes, mean over those that are there, (B, 4, K, J, I) against (B, K, J, I)."""
    voxels = logits.movedim(1, -1)
    losses = [
        F.cross_entropy(voxels[here], labels[here] - 1)
        for number in range(GROUND_GLASS, COMBINED + 1)
        if (here := labels == number).any()
    ]
    return torch.stack(losses).mean() if losses else logits.new_zeros(())


def draw_involvement(rng: np.random.Generator, cases: LesionCases) -> tuple[Tensor, Tensor]:
    """Axial patches: scaled CT and labels, (B, 1, J, I) each."""
    planes = (PLANES, *SLICE_PATCH[1:])
    parts = []
    if cases.expert or cases.machine:
        parts += [_draw_slice(rng, cases) for _ in range(SLICES)]
    if cases.volumes:
        parts += [_draw_part(rng, cases.volumes, planes) for _ in range(SLICES // PLANES)]
    if cases.chests:
        # Bowel looks like lung with lesions: the pictures of slices end at the lungs, so only whole chests show it.
        parts += [_draw_planted(rng, cases.chests, planes, anywhere) for anywhere in (False, True)]
    # The planes of a part join the batch as slices.
    ct, labels = (torch.from_numpy(np.concatenate(arrays)).unsqueeze(1) for arrays in zip(*parts, strict=True))
    return ct, labels


def involvement_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Dice, mean over slices, plus binary cross-entropy (Tilborghs et al. 2020); half as much for the class.

    The class is learned where it is known to be consolidation or ground glass, with septa or without: by cross-entropy
    of all such voxels of a batch alike, as many slices hold none, and by the Dice of each class in each slice that has
    it, as it will be measured. A network of one output does not learn it. Each network of an ensemble has a loss of its
    own, of which this is the mean, so that none learns to lean on another.
    """
    members = network.members if isinstance(network, UNet2DEnsemble) else [network]
    return torch.stack([_tissue_loss(member(batch[0]).float(), batch[1]) for member in members]).mean()


def _tissue_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of one network's logits (B, 1 or 2, J, I) against labels (B, 1, J, I)."""
    lesion = (labels > 0).float()
    found = torch.sigmoid(logits[:, :1])
    dice = soft_dice(found, lesion, (1, 2, 3))
    loss = (1 - dice).mean() + F.binary_cross_entropy_with_logits(logits[:, :1], lesion)
    if logits.shape[1] == 1:
        return loss
    glass, dense = (labels == GROUND_GLASS) | (labels == CRAZY_PAVING), labels == CONSOLIDATION
    known = glass | dense
    if not known.any():
        return loss
    denser = logits[:, 1:]
    classes = F.binary_cross_entropy_with_logits(denser[known], dense[known].float())
    share, told = torch.sigmoid(denser), known | (labels == 0)
    losses = [_class_dice_loss(found * s, truth, told) for s, truth in ((share, dense), (1 - share, glass))]
    here = [value for value in losses if value is not None]
    return loss + (torch.stack(here).mean() + classes if here else classes) / 2


def _class_dice_loss(probability: Tensor, truth: Tensor, told: Tensor) -> Tensor | None:
    """Of the slices that have a class, and hardly a voxel of which nobody says the class; None if there are none."""
    chosen = truth.flatten(1).any(1) & (told.float().mean((1, 2, 3)) > CLASSES_TOLD)
    if not chosen.any():
        return None
    return (1 - soft_dice(probability * told, truth.float(), (1, 2, 3)))[chosen].mean()


def soft_dice(probability: Tensor, truth: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Dice over the axes, 20 voxels added above and below, so that slices without lesion do not give random values."""
    small = 20.0
    overlap = 2 * (probability * truth).sum(axes) + small
    return overlap / (probability.sum(axes) + truth.sum(axes) + small)


def _make_involvement(architecture: dict[str, Any]) -> nn.Module:
    network = make_2ds(**architecture)
    # Of no use where weights follow, to be fine-tuned, but harmless.
    for path in (part for part in network.modules() if isinstance(part, EfficientNetLite0)):
        path.load_state_dict(pretrained_contracting_path())
    return channels_last(network)


@dataclass(frozen=True)
class _Setup:
    """How a network learns: usual architecture, first weights, batches, loss, largest learning rate at first."""

    architecture: dict[str, Any]
    make: Callable[[dict[str, Any]], nn.Module]
    draw: Callable[[np.random.Generator, LesionCases], tuple[Tensor, Tensor]]
    loss: Callable[[], Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]]
    learning_rate: float


_SETUPS: dict[LesionNetwork, _Setup] = {
    # What has learned to see already is changed more gently.
    "involvement": _Setup(INVOLVEMENT, _make_involvement, draw_involvement, lambda: involvement_loss, 1e-3),
    "lesions": _Setup(UNET, lambda architecture: UNet3D(**architecture), draw_lesions, LesionLoss, 3e-3),
}


def lesion_recipe(
    network: LesionNetwork,
    cases: LesionCases,
    steps: int,
    learning_rate: float | None = None,
    seed: int = 0,
    validation: LesionCases | None = None,
    architecture: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of 2DS (``involvement``) or of the 3-D U-Net (``lesions``), ready for ``loop.fit``.

    Args:
        network: which.
        cases: what to learn from.
        steps: optimiser steps.
        learning_rate: largest of the schedule, or the usual one.
        seed: of everything random.
        validation: what is kept for early stopping.
        architecture: None is today's.
    """
    setup = _SETUPS[network]
    return Recipe(
        seeded(seed, lambda: setup.make(setup.architecture if architecture is None else architecture)),
        lambda rng: setup.draw(rng, cases),
        setup.loss(),
        steps=steps,
        learning_rate=learning_rate or setup.learning_rate,
        seed=seed,
        validation=(lambda rng: setup.draw(rng, validation)) if validation else None,
    )


def train_lesions(
    network: LesionNetwork,
    cases: LesionCases,
    pretrained: Path,
    run: Path,
    steps: Steps,
    seed: int = 0,
    hardware: Hardware | None = None,
) -> nn.Module:
    """Pre-train without the expert's slices, then learn from all.

    The two networks of 2DS learn apart, the second one with another seed and without the machine-made masks: the less
    alike they are, the less they err together.

    Args:
        network: which.
        cases: what to learn from.
        pretrained: run folder of the pre-training, which runs with other expert slices can share.
        run: run folder of what follows.
        steps: of both.
        seed: of everything random.
        hardware: what to train on.

    Returns:
        The network in evaluation mode.
    """
    if network == "lesions":
        return _learn(network, UNET, cases, pretrained, run, steps, seed, hardware)
    together = UNet2DEnsemble(**INVOLVEMENT)
    for n, part in enumerate((cases, replace(cases, machine=[]))):
        first, second = pretrained / f"member-{n}", run / f"member-{n}"
        member = _learn(network, MEMBER, part, first, second, steps, seed + n, hardware)
        together.members[n].load_state_dict(member.state_dict())
    return together.eval()


def _learn(
    network: LesionNetwork,
    architecture: dict[str, Any],
    cases: LesionCases,
    pretrained: Path,
    run: Path,
    steps: Steps,
    seed: int,
    hardware: Hardware | None,
) -> nn.Module:
    """One network in two stages; see ``train_lesions``."""
    recipe = partial(lesion_recipe, network, seed=seed, architecture=architecture)
    plentiful = recipe(replace(cases, expert=[]), steps.pretraining)
    everything = recipe(cases, steps.learning, learning_rate=1e-3)
    return fit_in_stages(plentiful, everything, pretrained, run, hardware)
