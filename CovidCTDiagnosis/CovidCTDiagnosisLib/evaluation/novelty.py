"""How much the warning "unlike those that the classifier learned from" catches of scans that were spoilt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..ct.slice_images import hu_to_grey
from ..errors import InputError
from ..pipeline.models import Models
from ..pipeline.slice_folder import SliceOptions
from ..pipeline.slice_series import diagnose_images
from ..training.sources import Series


class Caught(NamedTuple):
    """Of scans that were spoilt in one way: how many were refused or got a warning."""

    kind: str
    refused: int
    warned: int
    scans: int


def _window(low: float, high: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def show(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip((grey - 255 * low) / (high - low), 0, 255)

    return show


SPOILT: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "as they are (false alarms)": lambda grey, rng: grey,
    "inverted": lambda grey, rng: 255 - grey,
    "soft-tissue window": _window(0.6, 0.9),
    "low contrast": lambda grey, rng: 96 + grey / 4,
    "noise": lambda grey, rng: grey + rng.normal(0, 40, grey.shape),
    "blurred": lambda grey, rng: ndimage.gaussian_filter(grey, 4),
}
"""Changes of 8-bit slices."""


def spoil_and_diagnose(
    series: Sequence[Series], models: Models, kinds: Sequence[str] = tuple(SPOILT)
) -> Iterator[Caught]:
    """Spoil scans that the classifier has not learned from, and diagnose them as ``covid-ct diagnose-series`` does.

    Yields:
        what was caught of each kind, as soon as it is known.
    """
    for kind in kinds:
        yield _caught(kind, series, models)


def _caught(kind: str, series: Sequence[Series], models: Models) -> Caught:
    rng = np.random.default_rng(0)
    refused = warned = 0
    for scan in series:
        images = [_spoilt(kind, hu_to_grey(s[0]), rng) for s in scan.slices]
        try:
            found = diagnose_images(images, models, SliceOptions(orientation="upright"))
        except InputError:
            refused += 1
            continue
        warned += bool(found.warnings)
    return Caught(kind, refused, warned, len(series))


def _spoilt(kind: str, grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rint(np.clip(SPOILT[kind](grey.astype(np.float32), rng), 0, 255)).astype(np.uint8)


def novelty_lines(found: Iterable[Caught]) -> Iterator[str]:
    """Lines of text, each as soon as its scans are known."""
    yield f"{'spoilt':28}{'refused':>9}{'warned':>9}{'scans':>7}"
    for caught in found:
        yield f"{caught.kind:28}{caught.refused:9}{caught.warned:9}{caught.scans:7}"
