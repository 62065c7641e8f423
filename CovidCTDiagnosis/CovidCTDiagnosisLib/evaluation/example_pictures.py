"""Pictures of diagnosed scans for a report's examples (figure 9 of the paper): where the classifier looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..folders import replaced_file
from ..pipeline.models import Models
from ..relevance import explain
from ..training.examples import Example
from .drawing import SKY, png
from .relevance_measures import lung_pixels

SLICES = 3
FULL_PERCENTILE = 99.5
"""Of the positive relevance of the scan: from here on a colour is the brightest."""


def write_pictures(examples: Sequence[Example], models: Models, folder: Path) -> None:
    """One PNG for each scan, named as it is (see ``picture``).

    Args:
        examples: scans as the classifier sees them.
        models: gives the network ``classifier``.
        folder: made if it is not there.
    """
    folder.mkdir(exist_ok=True)
    for example in examples:
        with replaced_file(folder / f"{example.name}.png") as partial:
            partial.write_bytes(png(picture(example, models)))


def picture(example: Example, models: Models) -> Figure:
    """The slices with most relevance for COVID-19, as the classifier sees them and counted as it does.

    Lesions are outlined; positive relevance of CT and lesions for the score of COVID-19 is laid over the CT. What was
    kept of the scan does not tell lung as dark as air from what lies outside: a study's relevance differs a little.
    """
    ct, lesions = (x.to(models.device) for x in (example.ct, example.lesions))
    inside = lung_pixels(ct, lesions)
    classifier = models.network("classifier")
    explained = explain(classifier, ct, lesions, inside)
    relevance = _slices(explained.ct).clip(0) + _slices(explained.lesions).clip(0)
    positive = relevance[relevance > 0]
    full = float(np.percentile(positive, FULL_PERCENTILE)) if positive.size else 1.0
    strongest = np.argsort(-relevance.sum((1, 2)), kind="stable")[:SLICES]
    figure = Figure((2.6 * SLICES, 2.4), layout="constrained")
    grey, outlined = _slices(example.ct), _slices(example.lesions)
    for axes, k in zip(figure.subplots(1, SLICES, squeeze=False)[0], sorted(strongest.tolist()), strict=False):
        axes.imshow(grey[k], cmap="gray", vmin=0, vmax=1)
        shown = np.sqrt((relevance[k] / full).clip(0, 1))
        axes.imshow(relevance[k], cmap="hot", vmin=0, vmax=full, alpha=0.7 * shown)
        if (outlined[k] > 0.5).any():
            axes.contour(outlined[k], [0.5], colors=SKY, linewidths=0.8)
        axes.set_title(f"slice {k + 1} of {len(grey)}", fontsize=8)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def _slices(maps: Tensor) -> np.ndarray:
    """(S, 1, H, W) as (S, H, W)."""
    found: np.ndarray = maps[:, 0].detach().cpu().numpy()
    return found
