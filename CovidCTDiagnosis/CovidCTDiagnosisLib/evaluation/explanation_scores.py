"""What heatmaps are worth, beside gradient x input and chance: where they lie, and what they tell of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..ct.regrid import to_grid
from ..errors import InputError
from ..networks import VolumeClassifier
from ..pipeline.models import Models
from ..pipeline.slice_series import series_input
from ..pipeline.slices import NOMINAL_SLICE_MM
from ..relevance import explain
from ..relevance.composite import TARGET, TARGETS
from ..training.examples import LONGEST_SIDE, Example
from ..training.sources import Case
from .relevance_measures import (
    area_over_curve,
    flipping_curve,
    gradient_times_input,
    lung_pixels,
    pointing_game,
    randomised,
    rank_correlation,
    relevance_mass,
    relevance_rank,
)

RELEVANCE, GRADIENT, RANDOM = "relevance", "gradient x input", "random"
METHODS = (RELEVANCE, GRADIENT, RANDOM)
CT, LESIONS, BOTH = "CT", "lesion mask", "both"
INPUTS = (CT, LESIONS, BOTH)

SHARES = np.linspace(0, 0.5, 11)
"""Of the lungs' pixels that are flipped."""
NOISE = 0.01
"""Standard deviation of the noise that heatmaps should bear: 14 HU."""

DRAWS = 10
"""How often layers are drawn anew: by one drawing the heatmap may change much or little."""


@dataclass(frozen=True)
class Localisation:
    """One heatmap on one expert slice.

    Attributes:
        slice: name.
        method, input: of ``METHODS`` and ``INPUTS``.
        mass, rank: of the relevance in the expert's lesions.
        points: 1 if the most relevant pixel lies there, else 0.
        chance: share of the lungs that is lesion.
    """

    slice: str
    method: str
    input: str
    mass: float
    rank: float
    points: float
    chance: float


@dataclass(frozen=True)
class Flipping:
    """Scores of one scan at every one of ``SHARES``."""

    scan: str
    method: str
    scores: list[float]

    @property
    def area(self) -> float:
        """See ``area_over_curve``."""
        return area_over_curve(np.array(self.scores), SHARES)


@dataclass(frozen=True)
class Randomisation:
    """Rank correlation of a scan's heatmap with that after layers were drawn anew, this one last.

    Attributes:
        scan: name.
        draw: 0 to ``DRAWS`` - 1, which drawing.
        layer: of the classifier.
        method: of ``METHODS``.
        correlation: NaN where a heatmap is flat.
    """

    scan: str
    draw: int
    layer: str
    method: str
    correlation: float


@dataclass(frozen=True)
class Stability:
    """Rank correlation of a scan's heatmap with that of the scan with noise."""

    scan: str
    method: str
    correlation: float


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    bundle: str
    localisation: list[Localisation] = field(default_factory=list)
    flipping: list[Flipping] = field(default_factory=list)
    randomisation: list[Randomisation] = field(default_factory=list)
    stability: list[Stability] = field(default_factory=list)


Maps = tuple[Tensor, Tensor]
"""Of the CT and of the lesion mask, (S, 1, H, W) each."""


def heatmaps(
    method: str, classifier: VolumeClassifier, ct: Tensor, lesions: Tensor, inside: Tensor | None = None
) -> Maps:
    """Both heatmaps of the COVID-19 score by one of ``METHODS``, (S, 1, H, W) each, signed.

    Args:
        method: of ``METHODS``.
        classifier: that is explained.
        ct, lesions: (S, 1, H, W), as for ``VolumeClassifier``.
        inside: bool, same shape, where there is lung; None: where either input holds anything.
    """
    inside = lung_pixels(ct, lesions) if inside is None else inside
    if method == RELEVANCE:
        found = explain(classifier, ct, lesions, inside.to(ct))
        return found.ct, found.lesions
    if method == GRADIENT:
        return gradient_times_input(classifier, ct, lesions, TARGETS[TARGET])
    generator = torch.Generator().manual_seed(0)
    by_ct, by_lesions = (torch.rand(ct.shape, generator=generator) * inside for _ in range(2))
    return by_ct, by_lesions


def measure(slices: Sequence[Case], examples: Sequence[Example], models: Models) -> Results:
    """All figures of merit of a bundle's heatmaps.

    Args:
        slices: with an expert's lesions: where relevance lies.
        examples: COVID-19 scans that the classifier has not learned from: what the network cares for.
        models: segments the slices and gives the classifier, which runs on the CPU here.
    """
    classifier = models.network("classifier").cpu()
    results = Results(f"{models.bundle.name} {models.bundle.version}")
    for case in slices:
        results.localisation.extend(_localise(case, classifier, models))
    for example in examples:
        volume = (example.ct, example.lesions)
        for method in METHODS:
            maps = heatmaps(method, classifier, *volume)
            scores = flipping_curve(_score(classifier), *volume, maps[0] + maps[1], SHARES)
            results.flipping.append(Flipping(example.name, method, scores.tolist()))
        for method in (RELEVANCE, GRADIENT):
            results.randomisation.extend(_randomise(example, method, classifier))
            results.stability.append(_shake(example, method, classifier))
    return results


def _localise(case: Case, classifier: VolumeClassifier, models: Models) -> list[Localisation]:
    """Every heatmap of one slice; none where no lungs are found or none of the expert's lesions lies in them."""
    assert case.labels is not None
    try:
        inputs = series_input([case.hu[0]], models, LONGEST_SIDE, NOMINAL_SLICE_MM, case.spacing[1])
    except InputError:
        return []
    inside = inputs.inside.numpy() > 0
    mask = (to_grid(case.labels > 0, case.spacing, inputs.grid) > 0.5)[:, None][inside]
    if not mask.any():
        return []
    found = []
    for method in METHODS:
        by_ct, by_lesions = heatmaps(method, classifier, inputs.ct, inputs.lesions, inputs.inside)
        for name, relevance in zip(INPUTS, (by_ct, by_lesions, by_ct + by_lesions), strict=True):
            values = relevance.numpy()[inside]
            measures = relevance_mass(values, mask), relevance_rank(values, mask), pointing_game(values, mask)
            found.append(Localisation(case.name, method, name, *measures, float(mask.mean())))
    return found


def _score(classifier: VolumeClassifier) -> Callable[[Tensor, Tensor], float]:
    """The score that is explained."""
    weights = torch.tensor(TARGETS[TARGET])

    def score(ct: Tensor, lesions: Tensor) -> float:
        with torch.inference_mode():
            return float((classifier(ct, lesions) * weights).sum())

    return score


def _both(method: str, classifier: VolumeClassifier, ct: Tensor, lesions: Tensor) -> Tensor:
    by_ct, by_lesions = heatmaps(method, classifier, ct, lesions)
    return by_ct + by_lesions


def _randomise(example: Example, method: str, classifier: VolumeClassifier) -> list[Randomisation]:
    before = _both(method, classifier, example.ct, example.lesions)
    found = []
    for draw in range(DRAWS):
        for layer, changed in randomised(classifier, seed=draw):
            after = _both(method, changed, example.ct, example.lesions)
            correlation = rank_correlation(before, after, lung_pixels(example.ct, example.lesions))
            found.append(Randomisation(example.name, draw, layer, method, correlation))
    return found


def _shake(example: Example, method: str, classifier: VolumeClassifier) -> Stability:
    inside = lung_pixels(example.ct, example.lesions)
    noise = torch.randn(example.ct.shape, generator=torch.Generator().manual_seed(0))
    shaken = (example.ct + NOISE * noise).clamp(1e-3, 1) * inside
    before, after = (_both(method, classifier, ct, example.lesions) for ct in (example.ct, shaken))
    # A heatmap that noise makes flat counts as correlation 0.
    return Stability(example.name, method, np.nan_to_num(rank_correlation(before, after, inside)))
