"""Figures of merit of heatmaps: where relevance lies, and whether the network cares for what it marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..networks import VolumeClassifier

# Localisation


def relevance_mass(relevance: np.ndarray, mask: np.ndarray) -> float:
    """Share of the positive relevance that lies in the mask (Arras et al. 2022), 0 to 1; NaN where there is none.

    Args:
        relevance: signed, of any shape.
        mask: bool, of the same shape.
    """
    positive = np.maximum(relevance, 0).astype(np.float64)
    whole = positive.sum()
    return float(positive[mask].sum() / whole) if whole > 0 else float("nan")


def relevance_rank(relevance: np.ndarray, mask: np.ndarray) -> float:
    """Of the K most relevant pixels, K the mask's size, the share in the mask (Arras et al. 2022), 0 to 1.

    Where equals are the last of them, what chance would choose among these. NaN where no pixel is more relevant than
    another, or the mask is empty.
    """
    size = int(mask.sum())
    if not size or np.ptp(relevance) == 0:
        return float("nan")
    last = np.partition(relevance.ravel(), -size)[-size]
    above, equal = relevance > last, relevance == last
    hits = mask[above].sum() + (size - above.sum()) * mask[equal].mean()
    return float(hits / size)


def pointing_game(relevance: np.ndarray, mask: np.ndarray) -> float:
    """1 if the most relevant pixel lies in the mask, else 0 (Zhang et al. 2016); NaN where all are alike."""
    return float(mask.ravel()[int(np.argmax(relevance))]) if np.ptp(relevance) > 0 else float("nan")


def lung_pixels(ct: Tensor, lesions: Tensor) -> Tensor:
    """Where either input of a volume holds anything, bool: in the lungs, some of whose pixels are black."""
    return (ct > 0) | (lesions > 0)


# Pixel flipping


def flipping_curve(
    score: Callable[[Tensor, Tensor], float],
    ct: Tensor,
    lesions: Tensor,
    relevance: Tensor,
    shares: np.ndarray,
) -> np.ndarray:
    """Scores when the most relevant pixels of the lungs are made ordinary, more and more of them (Samek et al. 2017).

    An ordinary pixel has the median of the lungs outside lesions, and no lesion.

    Args:
        score: of a volume.
        ct, lesions: (S, 1, H, W), as for ``VolumeClassifier``.
        relevance: of the same shape; of both inputs together.
        shares: of the lungs' pixels, rising.

    Returns:
        One score per share.
    """
    inside = lung_pixels(ct, lesions)
    healthy = ct[inside & (lesions < 0.5)]
    ordinary = healthy.median() if len(healthy) else ct[inside].median()
    order = torch.argsort(relevance[inside], descending=True, stable=True)
    places = inside.flatten().nonzero()[:, 0][order]
    scores = []
    for share in shares:
        flipped = places[: round(float(share) * len(places))]
        changed_ct, changed_lesions = ct.clone(), lesions.clone()
        changed_ct.view(-1)[flipped] = ordinary
        changed_lesions.view(-1)[flipped] = 0
        scores.append(score(changed_ct, changed_lesions))
    return np.array(scores)


def area_over_curve(scores: np.ndarray, shares: np.ndarray) -> float:
    """Mean drop of the score over the shares that were flipped, starting from 0; larger is better."""
    drops = scores[0] - scores
    return float(trapezoid(drops, shares) / (shares[-1] - shares[0]))


# Gradient x input, to compare with


def gradient_times_input(
    classifier: VolumeClassifier, ct: Tensor, lesions: Tensor, weights: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """The plainest heatmap: x ds/dx of both inputs.

    Args:
        classifier: left as it is.
        ct, lesions: (S, 1, H, W).
        weights: of the scores [not COVID-19, COVID-19] in s.
    """
    inputs = [x.clone().requires_grad_() for x in (ct, lesions)]
    with torch.enable_grad():
        scores = classifier(*inputs)
        found = torch.autograd.grad((scores * scores.new_tensor(weights)).sum(), inputs, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
    by_ct, by_lesions = (x.detach() * g for x, g in zip(inputs, gradients, strict=True))
    return by_ct, by_lesions


# Randomisation


def randomised(classifier: VolumeClassifier, seed: int) -> Iterator[tuple[str, VolumeClassifier]]:
    """Layers drawn anew one after the other from the scores down, each with all above it (Adebayo et al. 2018).

    Weights are the layer's own, shuffled, so that their sizes stay.

    Yields:
        The name of the layer drawn last, and the same network, changed: use it before going on.
    """
    changed = deepcopy(classifier).eval()
    generator = torch.Generator().manual_seed(seed)
    layers = [
        (name, module)
        for name, module in changed.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, nn.BatchNorm2d)
    ]
    for name, layer in reversed(layers):
        with torch.no_grad():
            for parameter in layer.parameters(recurse=False):
                shuffled = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[shuffled].view_as(parameter))
        yield name, changed


def rank_correlation(one: Tensor, other: Tensor, inside: Tensor) -> float:
    """Spearman's correlation of two heatmaps over the lungs' pixels; NaN where one of them is flat."""
    pair = [x[inside].numpy() for x in (one, other)]
    if any(np.ptp(x) == 0 for x in pair):
        return float("nan")
    return float(spearmanr(*pair).statistic)
