"""What the classifier must beat: grey levels alone, and a plain network without gate, CVAE and NetVLAD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ..ct.windows import LUNG_WINDOW, scale
from ..networks.encoder import convolution_branch
from .diagnosis import classifier_loss, draw_volumes
from .examples import Example
from .loop import Hardware, Recipe, fit, seeded
from .lung_labels import label_lung_slice
from .sources import Series

BINS = 32
TREES = 300
LEAST_SHARE = 1e-3
"""Below one in a thousand a probability tells nothing more."""
LEAST_INVOLVEMENT = 1e-6
"""So that none at all has a logit, and no order is lost."""
CURVE = np.linspace(0, 1, 101)
"""Quantiles at which histograms are compared."""


class Subject(NamedTuple):
    """A series as it is, and as the classifier sees it.

    Attributes:
        series: its slices.
        example: masked lungs and lesions.
    """

    series: Series
    example: Example

    @property
    def covid(self) -> int:
        """1 or 0."""
        return self.example.covid


Score = Callable[[Sequence[Subject]], np.ndarray]
"""Subjects to (N,) scores, higher for COVID-19."""


def _histogram(grey: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(grey, BINS, (0, 1))
    return counts / max(counts.sum(), 1)


def _image_features(subject: Subject) -> np.ndarray:
    """Grey-level histogram of whole images, and their size: what a scanner leaves in a picture."""
    slices = [scale(s[0], LUNG_WINDOW) for s in subject.series.slices]
    sizes = np.mean([s.shape for s in slices], axis=0)
    return np.concatenate([_histogram(np.concatenate([s.ravel() for s in slices])), sizes])


def _lung_features(subject: Subject) -> np.ndarray:
    """Grey-level fractions within lungs found by thresholding."""
    parts = []
    for (hu,) in subject.series.slices:
        lungs = label_lung_slice(hu)
        parts.append(scale(hu, LUNG_WINDOW)[lungs])
    return _histogram(np.concatenate(parts))


def _fitted(model: object, features: Callable[[Subject], np.ndarray], learn: Sequence[Subject]) -> Score:
    fitted = model.fit(np.stack([features(s) for s in learn]), [s.covid for s in learn])  # type: ignore[attr-defined]

    def score(subjects: Sequence[Subject]) -> np.ndarray:
        share = fitted.predict_proba(np.stack([features(s) for s in subjects]))[:, 1].clip(LEAST_SHARE, 1 - LEAST_SHARE)
        return logit(share)

    return score


def learn_histogram(learn: Sequence[Subject]) -> Score:
    """Logistic regression on the grey-level histogram and size of whole images: the shortcut."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    return _fitted(model, _image_features, learn)


def score_involvement(subjects: Sequence[Subject]) -> np.ndarray:
    """How much of the lungs is lesion, and nothing else: what a classifier must add to."""
    share = np.array([s.example.involvement_percent / 100 for s in subjects]).clip(
        LEAST_INVOLVEMENT, 1 - LEAST_INVOLVEMENT
    )
    return logit(share)


def learn_lung_fractions(learn: Sequence[Subject], seed: int = 0) -> Score:
    """Random forest on grey-level fractions in crude lungs: honest but simple."""
    return _fitted(RandomForestClassifier(TREES, class_weight="balanced", random_state=seed), _lung_features, learn)


class SliceCNN(nn.Module):
    """One convolution branch, mean over pixels and slices, and a linear layer.

    Shapes: as ``VolumeClassifier``; lesions are not looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branch = convolution_branch()
        self.classify = nn.Linear(64, 2)

    def forward(self, ct: Tensor, lesions: Tensor) -> Tensor:
        """See the class."""
        scores: Tensor = self.classify(self.branch(ct).mean((0, 2, 3)))
        return scores


def learn_slice_cnn(
    learn: Sequence[Subject], run: Path, steps: int, seed: int = 0, hardware: Hardware | None = None
) -> nn.Module:
    """Train a ``SliceCNN`` on masked lungs as the classifier is trained; goes on from checkpoints in ``run``."""
    examples = [s.example for s in learn]
    recipe = Recipe(
        seeded(seed, SliceCNN),
        lambda rng: draw_volumes(rng, examples, augment=True),
        classifier_loss,
        steps=steps,
        learning_rate=3e-3,
        seed=seed,
    )
    return fit(recipe, run, hardware)


# One common histogram


def common_curve(learn: Sequence[Subject]) -> np.ndarray:
    """Mean quantiles (at ``CURVE``) of grey levels in the lungs outside lesions."""
    return np.mean([_quantiles(s.example) for s in learn], axis=0)


def _quantiles(example: Example) -> np.ndarray:
    outside = (example.ct > 0) & (example.lesions < 0.5)
    grey = example.ct[outside].numpy()
    return np.quantile(grey, CURVE) if len(grey) else CURVE.copy()


def matched(subject: Subject, common: np.ndarray) -> Subject:
    """The subject with grey levels changed so that its lungs outside lesions have the common quantiles.

    Whole images and lesions go through the same curve, which goes on beyond its ends with slope 1.
    """
    own = _quantiles(subject.example)
    own = own + np.linspace(0, 1e-6, len(own))  # strictly rising, or it would be no function

    def change(grey: np.ndarray) -> np.ndarray:
        inner = np.interp(grey, own, common)
        beyond = np.where(grey < own[0], grey - own[0], np.where(grey > own[-1], grey - own[-1], 0))
        return np.clip(inner + beyond, 0, 1)

    low, high = LUNG_WINDOW
    slices = [
        np.rint(low + (high - low) * change(scale(s, LUNG_WINDOW))).astype(np.int16) for s in subject.series.slices
    ]
    ct = torch.from_numpy(change(subject.example.ct.numpy()).astype(np.float32)).clamp_min(1e-3)
    ct = ct * (subject.example.ct > 0)
    told = subject.example
    example = Example(told.name, ct, told.lesions, told.covid, involvement_percent=told.involvement_percent)
    return Subject(Series(subject.series.name, slices, subject.series.covid), example)
