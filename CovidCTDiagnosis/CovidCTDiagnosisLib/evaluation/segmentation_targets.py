"""The table of targets: what was measured, what was aimed at, and what others reach."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .metrics import (
    Overlap,
    Statistic,
    bootstrap_images,
    interval_text,
    mean_dice,
    mean_sensitivity,
    pooled_dice,
    pooled_sensitivity,
)
from .segmentation_scores import CONSOLIDATION, GROUND_GLASS, LESION, LUNGS, CtScore, Results, SliceScore

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"


class Row(NamedTuple):
    """One row, as text.

    Attributes:
        what: quantity.
        where: on which images.
        target: number aimed at.
        measured: the number that counts for the verdict, with its interval where images were drawn.
        beside: the same by another way of averaging, or of its parts.
        without: measured by networks that learned from no machine mask; empty where that makes no difference.
        verdict: ``MET``, ``MISSED`` or ``NOT_MEASURED``.
        anchors: what others reach.
    """

    what: str
    where: str
    target: str
    measured: str
    beside: str
    without: str
    verdict: str
    anchors: str


class _SliceTarget(NamedTuple):
    """A number over expert slices: the statistic that counts and the one beside it, each with its name."""

    what: str
    overlap: str
    target: float
    main: Statistic
    main_name: str
    other: Statistic
    other_name: str
    anchors: str

    def overlaps(self, scores: Sequence[SliceScore], statistic: Statistic) -> list[Overlap]:
        """What a statistic is of: pooled of all slices, a mean of those in which there is something to find."""
        return overlaps_of(scores, self.overlap, unmarked=statistic in _POOLED)


_POOLED = (pooled_dice, pooled_sensitivity)
_PLAIN_UNET = (
    "a plain 2-D U-Net (1.9 M parameters, 256×256, strong augmentation, machine masks as a third of the batches, "
    "50 minutes on two cores)"
)
_INFNET = "(trained on these 50 slices, tested on others of the set)"

_CT = "512×512×133 CT, never trained on"
_SLICES = "expert slices, 5 folds"

_SLICE_TARGETS = (
    _SliceTarget(
        "Lungs with disease, sensitivity inside expert lesions",
        LUNGS,
        0.95,
        pooled_sensitivity,
        "pooled over pixels",
        mean_sensitivity,
        "mean over slices",
        "thresholding loses most of it",
    ),
    _SliceTarget(
        "Lesion, Dice",
        LESION,
        0.78,
        mean_dice,
        "mean over slices",
        pooled_dice,
        "pooled over pixels",
        f"Inf-Net 0.682, Semi-Inf-Net 0.739 {_INFNET}; MiniSeg 0.628 with the set itself in training, 0.537 trained "
        f"elsewhere; {_PLAIN_UNET} 0.702 on held-out slices",
    ),
    _SliceTarget(
        "Ground-glass opacity, Dice",
        GROUND_GLASS,
        0.66,
        mean_dice,
        "mean over slices that have it",
        pooled_dice,
        "pooled over pixels of all",
        "Semi-Inf-Net with multi-class head 0.624; that plain U-Net 0.563; Tilborghs 2020 in 3-D 0.523",
    ),
    _SliceTarget(
        "Consolidation, Dice",
        CONSOLIDATION,
        0.55,
        mean_dice,
        "mean over slices that have it",
        pooled_dice,
        "pooled over pixels of all",
        "Semi-Inf-Net with multi-class head 0.458; that plain U-Net 0.510; Tilborghs 2020 in 3-D 0.369",
    ),
)


def table(results: Results) -> list[Row]:
    """All rows in order."""
    return [
        _lung_row(results.ct),
        *(_slice_row(target, results.folds) for target in _SLICE_TARGETS),
        _time_row(results.ct),
        _agreement_row(results.ct, LUNGS, "Lungs", 0.97),
        _agreement_row(results.ct, "lesions", "Lesion mask", 0.9),
    ]


def overlaps_of(scores: Sequence[SliceScore], name: str, unmarked: bool = False) -> list[Overlap]:
    """One overlap of every slice on which the expert marked something for it.

    Args:
        scores: of slices.
        name: of what is looked for.
        unmarked: also of slices on which nothing is to be found: pooled, what was found there counts as wrong.
    """
    overlaps = [s.overlaps[name] for s in scores if name in s.overlaps]
    return [overlap for overlap in overlaps if unmarked or overlap.expert]


def _verdict(value: float, target: float, good: Callable[[float, float], bool] = operator.ge) -> str:
    return MET if good(value, target) else MISSED


def _lung_row(ct: CtScore) -> Row:
    both = ct.lungs["both"].dice
    return Row(
        "Lungs, Dice",
        f"five lobes of the {_CT}",
        "0.985",
        f"{both:.5f}",
        f"right {ct.lungs['right'].dice:.3f}, left {ct.lungs['left'].dice:.3f}",
        "",
        _verdict(both, 0.985),
        "twenty lines of thresholding 0.978; a public small 2-D U-Net 0.948; Tilborghs 2020 reports 0.982 on its "
        "own set",
    )


def _time_row(ct: CtScore) -> Row:
    seconds = ct.seconds["lungs"] + ct.seconds["lesions"]
    return Row(
        "Lungs and lesions, wall time",
        f"{_CT}; target on two cores",
        "12 s",
        f"{seconds:.1f} s",
        f"lungs {ct.seconds['lungs']:.1f} s, lesions {ct.seconds['lesions']:.1f} s; {ct.machine['name']}, "
        f"{ct.machine['threads']} thread{'s' if ct.machine['threads'] > 1 else ''}",
        "",
        _verdict(seconds, 12, operator.le),
        "paper 72 s on a TITAN Xp; TotalSegmentator's fastest flags about 70 s on a CPU; the lungmask R231 network "
        "alone about 88 s per 100 slices on two cores",
    )


def _agreement_row(ct: CtScore, key: str, name: str, target: float) -> Row:
    value = ct.agreement[key]
    return Row(
        f"{name}, CT exported as 8-bit slices agrees with analyze, Dice",
        _CT,
        f"{target:.2f}",
        f"{value:.3f}",
        "",
        "",
        _verdict(value, target),
        "none known",
    )


def _slice_row(target: _SliceTarget, folds: Sequence[SliceScore]) -> Row:
    with_masks = [s for s in folds if s.machine_masks]
    measured, beside, verdict = NOT_MEASURED, "", NOT_MEASURED
    if overlaps := target.overlaps(with_masks, target.main):
        found = bootstrap_images(overlaps, target.main)
        measured = f"{interval_text(found)} {target.main_name} ({len(overlaps)})"
        other = bootstrap_images(target.overlaps(with_masks, target.other), target.other)
        beside = f"{interval_text(other)} {target.other_name}"
        verdict = _verdict(found.value, target.target)
    return Row(
        target.what,
        _SLICES,
        f"{target.target:.2f}",
        measured,
        beside,
        _without_machine_masks(target, folds),
        verdict,
        target.anchors,
    )


def _without_machine_masks(target: _SliceTarget, folds: Sequence[SliceScore]) -> str:
    overlaps = target.overlaps([s for s in folds if not s.machine_masks], target.main)
    return interval_text(bootstrap_images(overlaps, target.main)) if overlaps else NOT_MEASURED
