"""Which way up the patient lies in slice images, and which end of a stack is the apex.

The spine is found: dense bone in the middle of the picture's hind third, and tissue behind it. A contrast-filled heart
is as bright, but lies before the middle; ribs and shoulder blades are more at the back; thoraces are wider than deep.
This tells the four quarter turns apart. Whether the picture is mirrored too matters little to masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from ..ct.windows import LUNG_WINDOW

TURNS = {"upright": 0, "back-left": 1, "upside-down": 2, "back-right": 3}
"""Quarter turns, counter-clockwise, that bring the patient's back to the bottom of the picture."""

THUMBNAIL = 48
AIR_HU, BODY_HU = -500, -300

MIDDLE, FLANKS, SIDES = ((0.44, 0.56),), ((0.3, 0.4), (0.6, 0.7)), ((0.05, 0.25), (0.75, 0.95))
"""Columns, as shares of the picture."""
# Log odds per unit of evidence, fitted by conditional logistic regression on 2110 slices of four 8-bit sources and two
# CTs. Left out in tenths by series, 12 slices were turned wrongly, and of 1132 runs of ten neighbours none.
BONE_EVIDENCE = (((0.66, 1.0), MIDDLE, 31.0), ((0.5, 0.66), FLANKS, -21.7), ((0.83, 1.0), SIDES, 24.9))
TISSUE_EVIDENCE = (((0.83, 1.0), MIDDLE, 14.8),)
"""Rows, columns and weight of the mean over a part of the picture."""
WIDTH_WEIGHT = 4.3
DOUBTFUL = 2.0
"""Log odds of the best turn over the next below which it is no more than a guess."""
MARGIN_SHARE = 0.08
"""Of a body's size, around it."""
BLUNDERS = 0.03
"""Share of slices whose evidence means nothing."""


def log_likelihoods(hu: np.ndarray) -> np.ndarray:
    """How well a slice agrees with each of ``TURNS``, in their order: log probabilities, (4,).

    Args:
        hu: (rows, columns), full field of view or cropped, turned by any quarter turns, mirrored or not.
    """
    picture = thumbnail(hu)
    seen = ((_bone(picture.hu), BONE_EVIDENCE), (_tissue(picture.hu), TISSUE_EVIDENCE))
    evidence = np.array(
        [sum(_evidence(np.rot90(shown, turn), parts) for shown, parts in seen) for turn in TURNS.values()]
    )
    evidence += np.array([1, -1, 1, -1]) * picture.log_aspect * WIDTH_WEIGHT
    odds = np.exp(evidence - evidence.max())
    return np.log((1 - BLUNDERS) * odds / odds.sum() + BLUNDERS / len(TURNS))


def common_turn(likelihoods: np.ndarray) -> int:
    """The quarter turns that all slices, (N, 4), agree best with."""
    return int(likelihoods.sum(axis=0).argmax())


def is_doubtful(likelihoods: np.ndarray) -> bool:
    """Whether slices, (N, 4), agree with another turn nearly as well as with ``common_turn``."""
    best, next_best = np.sort(likelihoods.sum(axis=0))[:-3:-1]
    return bool(best - next_best < DOUBTFUL)


def turns_of(likelihoods: np.ndarray) -> np.ndarray:
    """Quarter turns of each slice, where those of a folder mostly, but not surely, agree.

    The shares of the four in the folder are estimated from all slices (expectation maximisation), and each
    slice takes its most probable one given these shares: doubtful slices follow the others, clear ones do not.

    Args:
        likelihoods: log probabilities, (N, 4).
    """
    shares = np.full(len(TURNS), 1 / len(TURNS))
    posterior = np.exp(likelihoods)
    for _ in range(50):
        posterior = np.exp(likelihoods) * shares
        posterior /= posterior.sum(axis=1, keepdims=True)
        shares = posterior.mean(axis=0)
    return posterior.argmax(axis=1)


def apex_is_last(slices: Sequence[np.ndarray]) -> bool:
    """Whether an upright stack runs from base to apex: the heart's and liver's share of the middle shrinks then.

    Args:
        slices: (J, I) HU each, in order.
    """
    pictures = [thumbnail(s).hu for s in slices]
    aerated = np.array([(p < AIR_HU).mean() for p in pictures])
    middle = [_share(p, (0.25, 0.6), (0.3, 0.7)) for p in pictures]
    in_lungs = np.flatnonzero(aerated > 0.08)
    if len(in_lungs) < 3:
        return False
    centred = in_lungs - in_lungs.mean()
    return float(centred @ np.asarray(middle)[in_lungs]) < 0


class Thumbnail(NamedTuple):
    """A slice cropped around the lungs and shrunk.

    Attributes:
        hu: (THUMBNAIL, THUMBNAIL) float32 within [-1000, 400].
        log_aspect: logarithm of columns over rows before shrinking.
    """

    hu: np.ndarray
    log_aspect: float


def thumbnail(hu: np.ndarray) -> Thumbnail:
    """Of a slice (rows, columns)."""
    cropped = _crop_to_lungs(hu)
    return Thumbnail(shrink(cropped), float(np.log(cropped.shape[1] / cropped.shape[0])))


def shrink(hu: np.ndarray) -> np.ndarray:
    """A slice (rows, columns) clipped to the lung window and resized to (THUMBNAIL, THUMBNAIL), float32."""
    clipped = np.clip(hu, *LUNG_WINDOW).astype(np.float32)
    return resize(clipped, (THUMBNAIL, THUMBNAIL), mode="edge", anti_aliasing=True)


def outside_air(hu: np.ndarray) -> np.ndarray:
    """Air that connects two corners of the picture at least, bool (rows, columns): a lung may touch one."""
    labels, _ = ndimage.label(hu < AIR_HU)
    corners, count = np.unique(labels[[0, 0, -1, -1], [0, -1, 0, -1]], return_counts=True)
    return np.isin(labels, corners[(corners > 0) & (count > 1)])


def body(hu: np.ndarray) -> np.ndarray:
    """The body with what it encloses, bool (rows, columns); everything in a picture that is cropped to the body."""
    if outside_air(hu).mean() < 0.15:
        return np.ones(hu.shape, bool)
    # The couch is thin and not connected with the body.
    tissue = ndimage.binary_opening(hu > BODY_HU, iterations=max(max(hu.shape) // 80, 1))
    labels, count = ndimage.label(tissue)
    if count == 0:
        return np.ones(hu.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    filled: np.ndarray = ndimage.binary_fill_holes(labels == sizes.argmax())
    return filled


def _crop_to_lungs(hu: np.ndarray) -> np.ndarray:
    """The box around the air in the body with a margin; a picture that is cropped to the body stays whole."""
    inside = body(hu)
    if inside.all():
        return hu
    air = ndimage.binary_opening((hu < AIR_HU) & inside, iterations=2)
    if air.sum() >= 0.01 * inside.sum():
        inside = air
    return hu[_with_margin(ndimage.find_objects(inside.astype(np.uint8))[0])]


def _with_margin(box: tuple[slice, ...]) -> tuple[slice, ...]:
    margins = [round(MARGIN_SHARE * (s.stop - s.start)) for s in box]
    return tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margins, strict=True))


def _bone(hu: np.ndarray) -> np.ndarray:
    """Between 0 (soft tissue, whose level differs from window to window) and 1 (dense bone)."""
    soft = hu[hu > -150]
    level = float(np.median(soft)) if soft.size else 40.0
    return np.clip((hu - level - 40) / 200, 0, 1)


def _tissue(hu: np.ndarray) -> np.ndarray:
    """Between 0 (lung) and 1 (soft tissue)."""
    return np.clip((hu + 600) / 500, 0, 1)


def _evidence(
    shown: np.ndarray, parts: Sequence[tuple[tuple[float, float], Sequence[tuple[float, float]], float]]
) -> float:
    """Weighted means over parts of an upright thumbnail: rows, columns and weight of each."""
    return sum(
        weight * float(np.mean([shown[_part(*rows), _part(*c)].mean() for c in columns]))
        for rows, columns, weight in parts
    )


def _share(hu: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> float:
    """Of soft tissue in a part of the thumbnail."""
    return float(_tissue(hu[_part(*rows), _part(*columns)]).mean())


def _part(first: float, last: float) -> slice:
    return slice(round(THUMBNAIL * first), round(THUMBNAIL * last))
