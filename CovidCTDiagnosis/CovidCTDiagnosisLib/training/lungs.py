"""Recipe of the lung network (paper section 4.1): DeepMedic on whole chests and slices.

Learns from: the small HU volumes, a DICOM CT labelled by a classical method, 8-bit slices labelled by thresholding
with their lesion masks added (machine-made ones of COVID-19 volumes; the expert's), and lesions planted in all of
them. As the lesion networks, it is pre-trained without the expert's slices and then learns from everything. It does
not see the slice series, so that these stay clean for measuring.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ct.regrid import Triple
from ..ct.windows import LUNG_SEGMENTATION, scale
from ..networks import DeepMedic
from .augment import random_flip, random_grid, random_scanner, random_turn, random_window, sample
from .chests import pick_chest, read_chests
from .loop import Hardware, Recipe, Steps, fit_in_stages, seeded
from .lung_labels import label_lung_slice
from .planting import plant_lesions
from .sources import Case, read_covid_slices, read_lesion_slices

FINE_MM, COARSE_MM = 3.0, 6.0
# About the lungs' box at 3 mm, and a whole chest at 6 mm: what inference sees at once.
FINE_PATCH, COARSE_PATCH = (64, 64, 80), (52, 64, 64)
SLICE_PATCH = (1, 96, 128)
SLICES, PLANES = 8, 4
CHEST_SHARE = 0.3
EXPERT_SHARE = 0.5
"""Of the slices."""


@dataclass(frozen=True)
class LungCases:
    """Where lungs are learned from, with labels 1 in the lungs; every part but the chests may be empty.

    Attributes:
        chests: whole CTs.
        machine: slices whose lesions were marked by a machine.
        expert: slices whose lesions were marked by an expert.
    """

    chests: list[Case]
    machine: list[Case] = field(default_factory=list)
    expert: list[Case] = field(default_factory=list)


def lung_cases(data: Path, dicom: Path, machine_masks: bool = True) -> LungCases:
    """All cases of the shared data folder, those with machine-made masks if wanted."""
    machine = read_covid_slices(data) if machine_masks else []
    return LungCases(
        read_chests(data, dicom),
        [_with_lungs(case, trusted=False) for case in machine],
        [_with_lungs(case, trusted=True) for case in read_lesion_slices(data)],
    )


def _with_lungs(case: Case, trusted: bool) -> Case:
    assert case.labels is not None
    lungs = label_lung_slice(case.hu[0], case.labels[0] > 0, trusted)
    return Case(case.name, case.hu, case.spacing, lungs[None].astype(np.uint8))


def draw_lungs(rng: np.random.Generator, cases: LungCases) -> tuple[Tensor, Tensor]:
    """A patch of a chest or a batch of slices: scaled CT and lung fraction, (B, 1, K, J, I) each."""
    if rng.random() < CHEST_SHARE:
        pairs = [_draw_chest(rng, pick_chest(rng, cases.chests))]
    else:
        slices = SLICES if cases.machine or cases.expert else 0
        pairs = [_draw_slice(rng, _pick_slice(rng, cases)) for _ in range(slices)]
        pairs += [_draw_plane(rng, pick_chest(rng, cases.chests)) for _ in range(PLANES)]
    ct, lungs = (torch.from_numpy(np.stack(arrays)).unsqueeze(1) for arrays in zip(*pairs, strict=True))
    return ct, lungs


def _pick_slice(rng: np.random.Generator, cases: LungCases) -> Case:
    expert = cases.expert and (not cases.machine or rng.random() < EXPERT_SHARE)
    source = cases.expert if expert else cases.machine
    return source[int(rng.integers(len(source)))]


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
    cases: LungCases,
    steps: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
    validation: LungCases | None = None,
) -> Recipe:
    """The recipe, ready for ``loop.fit``; ``validation`` is kept for early stopping."""
    return Recipe(
        seeded(seed, DeepMedic),
        lambda rng: draw_lungs(rng, cases),
        lung_loss,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        validation=(lambda rng: draw_lungs(rng, validation)) if validation else None,
    )


def train_lungs(
    cases: LungCases, pretrained: Path, run: Path, steps: Steps, seed: int = 0, hardware: Hardware | None = None
) -> nn.Module:
    """Pre-train without the expert's slices, then learn from all; see ``lesions.train_lesions``."""
    plentiful = lung_recipe(replace(cases, expert=[]), steps.pretraining, seed=seed)
    everything = lung_recipe(cases, steps.learning, learning_rate=1e-3, seed=seed)
    return fit_in_stages(plentiful, everything, pretrained, run, hardware)
