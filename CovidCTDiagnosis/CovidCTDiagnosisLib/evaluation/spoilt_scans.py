"""How much the warnings of scans unlike the training data catch: scans that were spoilt, slices without lung."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..ct.slice_images import hu_to_grey
from ..errors import InputError
from ..pipeline.appearance import UNRELIABLE
from ..pipeline.models import Models
from ..pipeline.slice_segmentation import SliceOptions
from ..pipeline.slice_series import diagnose_images
from ..training.sources import Series
from .metrics import interval_text, wilson
from .sample_ct import read_sample_ct


class Caught(NamedTuple):
    """Of scans of one kind: how many were refused, or were told not to be relied on."""

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
        rng = np.random.default_rng(0)
        yield _caught(kind, ([_spoilt(kind, hu_to_grey(s[0]), rng) for s in scan.slices] for scan in series), models)


def diagnose_beyond_the_lungs(models: Models) -> Iterator[Caught]:
    """Diagnose the slices of the NIfTI sample below its lungs and above them, by its expert lung mask.

    Yields:
        what was caught: one scan of either kind.
    """
    ct, lungs = read_sample_ct()
    held = np.flatnonzero(lungs.any(axis=(1, 2)))
    for kind, part in (("abdomen of a CT", ct.voxels[: held[0]]), ("neck of a CT", ct.voxels[held[-1] + 1 :])):
        yield _caught(kind, [[hu_to_grey(hu) for hu in part]], models)


def _caught(kind: str, scans: Iterable[list[np.ndarray]], models: Models) -> Caught:
    refused = warned = count = 0
    for images in scans:
        count += 1
        try:
            found = diagnose_images(images, models, SliceOptions(orientation="upright"))
        except InputError:
            refused += 1
            continue
        warned += any(UNRELIABLE in text for text in found.warnings)
    return Caught(kind, refused, warned, count)


def _spoilt(kind: str, grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rint(np.clip(SPOILT[kind](grey.astype(np.float32), rng), 0, 255)).astype(np.uint8)


def novelty_lines(found: Iterable[Caught]) -> Iterator[str]:
    """Lines of text, each as soon as its scans are known; the share of either with Wilson's 95 % interval."""
    yield f"{'spoilt':28}{'refused':>9}{'warned':>9}{'scans':>7}   refused or warned"
    for caught in found:
        share = interval_text(wilson(caught.refused + caught.warned, caught.scans))
        yield f"{caught.kind:28}{caught.refused:9}{caught.warned:9}{caught.scans:7}   {share}"
