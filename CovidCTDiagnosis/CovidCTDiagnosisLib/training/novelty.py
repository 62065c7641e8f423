"""Fit the distance and the range of texture by which scans unlike the training data are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from ..networks import Novelty, VolumeClassifier
from ..pipeline.texture import TextureRange
from .examples import Example
from .splits import BLOCKS

FALSE_ALARMS = 0.05
"""Of distance and texture together."""
LEAST_SPREAD = 0.05
"""Of a feature (a natural logarithm): maps that are always dark must not be told apart by rounding."""


def average_maps(classifier: VolumeClassifier, examples: Sequence[Example]) -> Tensor:
    """The encoder's maps and facts of the CT, each averaged over the lungs, (N, features)."""
    with torch.inference_mode():
        sums = [Novelty.lung_sums(classifier.encoder(e.ct, e.lesions), e.ct) for e in examples]
    return torch.stack([total / pixels.clamp(min=1) for total, pixels in sums])


def fit_texture(textures: Sequence[float]) -> TextureRange | None:
    """From the least to the greatest: a further scan like these lies outside with probability 2 / (N + 1).

    None where no texture is known.
    """
    known = [texture for texture in textures if not math.isnan(texture)]
    return TextureRange(min(known), max(known)) if known else None


def left_to_distance(scans: int) -> float:
    """What the texture of so many scans leaves of ``FALSE_ALARMS``; of few scans at least a fifth."""
    return max(FALSE_ALARMS - 2 / (scans + 1), FALSE_ALARMS / 5)


def fit_novelty(averages: Tensor, false_alarms: float = FALSE_ALARMS) -> Novelty:
    """Mean and shrunk covariance (Ledoit and Wolf), scaled so that few of what was not fitted lie beyond 1.

    Args:
        averages: see ``average_maps``; neighbours may be one patient, so blocks of them are left out together.
        false_alarms: the share of what was not fitted that may lie beyond 1.
    """
    features = Novelty.features(averages).double().numpy()
    distances = []
    for block in np.array_split(np.arange(len(features)), BLOCKS):
        rest = np.delete(features, block, axis=0)
        mean, whiten = _whitening(rest)
        distances.append(np.linalg.norm((features[block] - mean) @ whiten, axis=1))
    limit = float(np.quantile(np.concatenate(distances), 1 - false_alarms))
    mean, whiten = _whitening(features)
    network = Novelty(features.shape[1])
    network.mean.copy_(torch.from_numpy(mean))
    network.whiten.copy_(torch.from_numpy(whiten / limit))
    return network.eval()


def _whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and the matrix that makes the covariance one."""
    spread = np.maximum(features.std(0), LEAST_SPREAD)
    fitted = LedoitWolf().fit(features / spread)
    values, vectors = np.linalg.eigh(fitted.covariance_)
    root: np.ndarray = vectors / np.sqrt(np.maximum(values, 1e-9))
    return features.mean(0), root / spread[:, None]
