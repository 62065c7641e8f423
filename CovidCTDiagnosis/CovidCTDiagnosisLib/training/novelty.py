"""Fit the distance and the limits of appearance by which scans unlike the training data are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from ..networks import Novelty, VolumeClassifier
from ..pipeline.appearance import Appearance, UsualAppearance
from .examples import Example
from .splits import BLOCKS

FALSE_ALARMS = 0.05
"""Of distance and appearance together."""
FAT_AROUND = 0.04
"""Of the classifier's window: how much darker the lungs' surround may be with more fat in it than any scan had."""
NARROWER = 0.75
"""How narrow lungs may be in the body, as a part of the least that any scan had: chest walls differ, and pictures are
cropped."""
TIGHT = 3
"""Limits of appearance that further scans may lie beyond by chance: that of the lungs' width is too wide for that."""
LEAST_SPREAD = 0.05
"""Of a feature (a natural logarithm): maps that are always dark must not be told apart by rounding."""


def average_maps(classifier: VolumeClassifier, examples: Sequence[Example]) -> Tensor:
    """The encoder's maps and facts of the CT, each averaged over the lungs, (N, features)."""
    with torch.inference_mode():
        sums = [Novelty.lung_sums(classifier.encoder(e.ct, e.lesions), e.ct) for e in examples]
    return torch.stack([total / pixels.clamp(min=1) for total, pixels in sums])


def fit_appearance(appearances: Sequence[Appearance], fewest_slices: int) -> UsualAppearance | None:
    """Limits beyond which a further scan like these lies with probability 1 / (N + 1) each.

    Args:
        appearances: of the scans.
        fewest_slices: that any of them has for the classifier.

    Returns:
        None where no texture, no surround or no width of the lungs is known.
    """
    known = [[v for v in values if not math.isnan(v)] for values in zip(*appearances, strict=True)]
    if not all(known):
        return None
    textures, surrounds, widths = known
    return UsualAppearance(
        min(textures), max(textures), min(surrounds) - FAT_AROUND, NARROWER * min(widths), fewest_slices
    )


def left_to_distance(scans: int) -> float:
    """What the limits of appearance of so many scans leave of ``FALSE_ALARMS``; of few scans at least a fifth."""
    return max(FALSE_ALARMS - TIGHT / (scans + 1), FALSE_ALARMS / 5)


def fit_novelty(
    averages: Tensor,
    false_alarms: float = FALSE_ALARMS,
    rows_a_scan: int = 1,
    patients: Sequence[str] | None = None,
    kinds: Sequence[int] | None = None,
) -> Novelty:
    """Mean and shrunk covariance (Ledoit and Wolf), scaled so that few of what was not fitted lie beyond 1.

    Args:
        averages: see ``average_maps``.
        false_alarms: the share of what was not fitted that may lie beyond 1.
        rows_a_scan: how many rows in a row are of one scan, which is left out as a whole.
        patients: of each scan, whose scans are left out together; None where that is not known: neighbours may be one
            patient then, so blocks of them are left out.
        kinds: of each scan, such as its status: as much of each kind is left out every time, since without one whole
            kind its scans would all lie far away.
    """
    features = Novelty.features(averages).double().numpy()
    scans = np.arange(len(features)).reshape(-1, rows_a_scan)
    names = patients or [str(n) for n in range(len(scans))]
    distances = []
    for left_out in _blocks(names, kinds or [0] * len(names)):
        block = scans[np.isin(names, left_out)].ravel()
        rest = np.delete(features, block, axis=0)
        mean, whiten = _whitening(rest)
        distances.append(np.linalg.norm((features[block] - mean) @ whiten, axis=1))
    limit = float(np.quantile(np.concatenate(distances), 1 - false_alarms))
    mean, whiten = _whitening(features)
    network = Novelty(features.shape[1])
    network.mean.copy_(torch.from_numpy(mean))
    network.whiten.copy_(torch.from_numpy(whiten / limit))
    return network.eval()


def _blocks(names: Sequence[str], kinds: Sequence[int]) -> list[np.ndarray]:
    """Names in their order, once each, in blocks that hold like shares of every kind."""
    kind_of = dict(zip(reversed(names), reversed(kinds), strict=True))
    of_kinds = [[name for name in dict.fromkeys(names) if kind_of[name] == kind] for kind in sorted(set(kinds))]
    return [np.concatenate(parts) for parts in zip(*(np.array_split(one, BLOCKS) for one in of_kinds), strict=True)]


def _whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and the matrix that makes the covariance one."""
    spread = np.maximum(features.std(0), LEAST_SPREAD)
    fitted = LedoitWolf().fit(features / spread)
    values, vectors = np.linalg.eigh(fitted.covariance_)
    root: np.ndarray = vectors / np.sqrt(np.maximum(values, 1e-9))
    return features.mean(0), root / spread[:, None]
