"""What ``covid-ct evaluate segmentation`` measures: on the sample CT, and slice by slice against experts.

All numbers are kept as counts of voxels, so that every mean, pooled value and interval can be made from them
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..bundle import Bundle
from ..ct import Volume
from ..ct.regrid import bounding_region
from ..pipeline.compute import describe_device
from ..pipeline.lesion_mask import LesionSource
from ..pipeline.lesions import segment_lesions
from ..pipeline.lung_sides import LEFT, RIGHT
from ..pipeline.lungs import segment_lungs
from ..pipeline.models import Models
from ..pipeline.slices import NOMINAL_PIXEL_MM, NOMINAL_SLICE_MM, SliceProbabilities, slice_lungs, slice_probabilities
from ..training.folds import FOLDS, held_out
from ..training.sources import UNKNOWN_LESION, Case
from .grid_ceiling import GridCeiling, lung_ceiling
from .metrics import BoundaryErrors, Overlap, boundary_errors
from .slices_agreement import agreement

LUNGS, LESION, GROUND_GLASS, CONSOLIDATION = "lungs", "lesion", "ground-glass opacity", "consolidation"
CLASSES = {1: GROUND_GLASS, 2: CONSOLIDATION}

BOUNDARY_REACH_MM = 20.0


@dataclass(frozen=True)
class SliceScore:
    """One expert slice, segmented by networks that have not learned from it.

    Attributes:
        name: of the case.
        fold: number of its fold, from 0.
        machine_masks: whether the networks learned from machine-made masks.
        overlaps: ``LESION``, ``GROUND_GLASS``, ``CONSOLIDATION`` against the expert's masks, and ``LUNGS``
            against the expert's lesions, of which only the sensitivity has a meaning.
    """

    name: str
    fold: int
    machine_masks: bool
    overlaps: dict[str, Overlap]


@dataclass(frozen=True)
class CtScore:
    """The CT with expert lungs.

    Attributes:
        lungs: against the lobes: ``both``, ``right``, ``left``.
        boundary: errors of both lungs by distance from the boundary.
        seconds: wall time of ``lungs`` and ``lesions`` once the CT is read.
        machine: where that was: ``type``, ``name``, ``threads``.
        agreement: Dice of ``lungs`` and ``lesions`` between the CT and its export as 8-bit slices.
        ceiling: what lung Dice each working grid allows.
    """

    lungs: dict[str, Overlap]
    boundary: BoundaryErrors
    seconds: dict[str, float]
    machine: dict[str, Any]
    agreement: dict[str, float]
    ceiling: list[GridCeiling]


@dataclass(frozen=True)
class ThresholdCurve:
    """Mean lesion Dice over all expert slices against the threshold of the lesion probability.

    Attributes:
        machine_masks: whether the networks learned from machine-made masks.
        thresholds: ``THRESHOLDS``.
        mean_dice: at each of them.
        chosen: each fold's threshold, which serves the slices of the other folds best.
    """

    machine_masks: bool
    thresholds: list[float]
    mean_dice: list[float]
    chosen: list[float]


@dataclass
class Results:
    """Everything that one evaluation knows.

    Attributes:
        bundle: ``name``, ``version``, ``sha256`` of each file and ``training`` of each network.
        ct: on the sample CT.
        folds: every expert slice by its fold's networks, with and without machine masks.
        curves: of either kind of training, as far as measured.
        ceiling: what lesion Dice each working grid allows.
        lesion_source: who draws the lesion masks of the folds.
        folds_made: how the folds' networks were made: fingerprints of ``data`` and ``recipe``, and the precision in
            which either kind was trained, see ``precision_key``.
    """

    bundle: dict[str, Any]
    ct: CtScore
    folds: list[SliceScore] = field(default_factory=list)
    curves: list[ThresholdCurve] = field(default_factory=list)
    ceiling: list[GridCeiling] = field(default_factory=list)
    lesion_source: LesionSource = "involvement"
    folds_made: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON values, see ``segmentation.schema.json``."""
        ct = asdict(self.ct)
        ct["lungs"] = {side: o._asdict() for side, o in self.ct.lungs.items()}
        ct["boundary"] = self.ct.boundary._asdict()
        ct["ceiling"] = [c._asdict() for c in self.ct.ceiling]
        return {
            "schema_version": 1,
            "bundle": self.bundle,
            "ct": ct,
            "folds": [_score_document(s) for s in self.folds],
            "curves": [asdict(c) for c in self.curves],
            "ceiling": [c._asdict() for c in self.ceiling],
            "lesion_source": self.lesion_source,
            "folds_made": self.folds_made,
        }


def _score_document(score: SliceScore) -> dict[str, Any]:
    overlaps = {name: o._asdict() for name, o in score.overlaps.items()}
    return {
        "name": score.name,
        "fold": score.fold,
        "machine_masks": score.machine_masks,
        "overlaps": overlaps,
    }


def read_scores(documents: Iterable[dict[str, Any]]) -> list[SliceScore]:
    """The slice scores of a document's ``folds``."""
    return [
        SliceScore(
            d["name"],
            d["fold"],
            d["machine_masks"],
            {name: Overlap(**counts) for name, counts in d["overlaps"].items()},
        )
        for d in documents
    ]


def precision_key(machine_masks: bool) -> str:
    """Where ``Results.folds_made`` holds Lightning's name of the precision that this kind of folds was trained in."""
    return f"precision_{'with' if machine_masks else 'without'}_machine_masks"


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """What results say of the bundle that they belong to."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "training": {name: network["training"] for name, network in bundle.networks.items()},
    }


def score_ct(ct: Volume, expert: np.ndarray, models: Models) -> CtScore:
    """Segment an axial CT once, timed, and compare its lungs with the lobes.

    Args:
        ct: HU, axial.
        expert: uint8 (K, J, I), the lungs: 1 right, 2 left.
        models: networks ``lungs``, ``lesions`` and ``involvement``.
    """
    begun = time.perf_counter()
    lungs = segment_lungs(ct, models, lambda fraction: None).labels
    between = time.perf_counter()
    lungs = segment_lesions(ct, lungs, models, lambda fraction: None).lungs
    seconds = {"lungs": between - begun, "lesions": time.perf_counter() - between}
    overlaps = {
        "both": Overlap.of(lungs > 0, expert > 0),
        "right": Overlap.of(lungs == RIGHT, expert == RIGHT),
        "left": Overlap.of(lungs == LEFT, expert == LEFT),
    }
    return CtScore(
        overlaps,
        _boundary(lungs > 0, expert > 0, ct.spacing[::-1]),
        seconds,
        describe_device(models.device),
        agreement(ct, models),
        lung_ceiling(expert > 0, ct.spacing[::-1], models),
    )


def _boundary(found: np.ndarray, expert: np.ndarray, spacing: tuple[float, float, float]) -> BoundaryErrors:
    margin = [int(np.ceil(BOUNDARY_REACH_MM / s)) for s in spacing]
    region = bounding_region(found | expert, (margin[0], margin[1], margin[2]))
    return boundary_errors(found[region], expert[region], spacing, BOUNDARY_REACH_MM)


THRESHOLDS = tuple(n / 20 for n in range(3, 15))
"""Of the lesion probability, among which the best is looked for."""


@dataclass(frozen=True)
class HeldOut:
    """An expert slice and what networks that have not learned from it say of it.

    Attributes:
        case: the slice.
        fold: its number.
        lungs: bool (J, I).
        probabilities: of lesion and its classes.
    """

    case: Case
    fold: int
    lungs: np.ndarray
    probabilities: SliceProbabilities

    def lesions(self, threshold: float, merge: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Lungs with the lesions that reach out of them, bool (J, I), and lesion classes, uint8 (J, I)."""
        return self.probabilities.lesions(self.lungs, threshold, merge)

    def dice(self, threshold: float) -> float:
        """Dice of the lesion mask at this threshold."""
        assert self.case.labels is not None
        _, lesions = self.lesions(threshold)
        return Overlap.of(lesions > 0, self.case.labels[0] > 0).dice


def run_slices(cases: Sequence[Case], models: Models, fold: int, source: LesionSource = "involvement") -> list[HeldOut]:
    """Expert slices through the networks, each on its own, by the path that serves users' slices.

    Args:
        cases: expert slices of this fold.
        models: networks ``lungs``, ``lesions`` and ``involvement``; those that draw have not learned from them.
        fold: its number.
        source: who draws the mask.
    """
    slices, spacing = [case.hu[0] for case in cases], (NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM, NOMINAL_SLICE_MM)
    lungs = slice_lungs(slices, spacing, models, lambda fraction: None)
    found = slice_probabilities(slices, spacing, models, source=source)
    return [
        HeldOut(case, fold, mask, probabilities) for case, mask, probabilities in zip(cases, lungs, found, strict=True)
    ]


def mean_dice_at(slices: Sequence[HeldOut]) -> dict[float, float]:
    """Mean lesion Dice over slices at each of ``THRESHOLDS``."""
    return {threshold: float(np.mean([s.dice(threshold) for s in slices])) for threshold in THRESHOLDS}


def score_slice(held_out: HeldOut, threshold: float, machine_masks: bool) -> tuple[SliceScore, np.ndarray]:
    """Count on an expert slice.

    Lesions are given the two classes that experts named; voxels whose class nobody named count for ``LESION``
    only.

    Args:
        held_out: the slice.
        threshold: of the lesion probability; chosen without this slice.
        machine_masks: whether the networks learned from machine-made masks.

    Returns:
        its score and the lesion classes found, uint8 (J, I).
    """
    lungs, lesions = held_out.lesions(threshold, merge=True)
    overlaps = _overlaps(held_out.case, lungs[None], lesions[None])
    return SliceScore(held_out.case.name, held_out.fold, machine_masks, overlaps), lesions


def _overlaps(case: Case, lungs: np.ndarray, lesions: np.ndarray) -> dict[str, Overlap]:
    assert case.labels is not None
    expert, known = case.labels > 0, case.labels != UNKNOWN_LESION
    overlaps = {LUNGS: Overlap.of(lungs, expert), LESION: Overlap.of(lesions > 0, expert)}
    for number, name in CLASSES.items():
        overlaps[name] = Overlap.of((lesions == number) & known, case.labels == number)
    return overlaps


def score_folds(
    cases: list[Case],
    models_of: Callable[[int], Models],
    machine_masks: bool,
    masks: Path,
    source: LesionSource = "involvement",
) -> tuple[list[SliceScore], ThresholdCurve]:
    """Score every expert slice by networks that have not learned from it.

    A fold's threshold is the one that serves the slices of the other folds best, each by its own fold's networks.

    Args:
        cases: all expert slices in order of number.
        models_of: the networks of a fold that have not learned from its slices.
        machine_masks: whether these learned from machine-made masks.
        masks: folder that gets the lesion classes found, one PNG a slice (see ``mask_path``).
        source: who draws the mask.
    """
    slices = [s for fold in range(FOLDS) for s in run_slices(held_out(cases, fold), models_of(fold), fold, source)]
    scores, thresholds = [], []
    for fold in range(FOLDS):
        curve = mean_dice_at([s for s in slices if s.fold != fold])
        thresholds.append(max(curve, key=lambda t: curve[t]))
        for slice_ in (s for s in slices if s.fold == fold):
            score, lesions = score_slice(slice_, thresholds[-1], machine_masks)
            path = mask_path(masks, score)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(lesions).save(path)
            scores.append(score)
    curve = mean_dice_at(slices)
    return scores, ThresholdCurve(machine_masks, [*curve], [*curve.values()], thresholds)


def mask_path(masks: Path, score: SliceScore) -> Path:
    """Where the lesion classes found on a slice are kept."""
    variant = "with" if score.machine_masks else "without"
    return masks / f"{variant}-machine-masks" / f"{Path(score.name).name}.png"
