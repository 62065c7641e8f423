"""Lesion thresholds of the folds: each chosen without the fold's own slices, used for them, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import NetworkRecord, open_bundle, revise_bundle
from CovidCTDiagnosisLib.evaluation.segmentation_figures import threshold_curves
from CovidCTDiagnosisLib.evaluation.segmentation_scores import (
    HeldOut,
    ThresholdCurve,
    mean_dice_at,
    run_slices,
    score_folds,
    score_slice,
)
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.folds import FOLDS, held_out
from CovidCTDiagnosisLib.training.sources import Case, read_lesion_slices

QUIET_FOLDS = (0, 1)
"""Folds whose 2DS is less sure of lesions, so that their slices need a lower threshold."""


@pytest.fixture(scope="module")
def cases(small_data: Path) -> list[Case]:
    return read_lesion_slices(small_data)


@pytest.fixture(scope="module")
def networks(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Models]:
    """Networks of each fold, of which those of the quiet folds need another threshold."""
    bundle = open_bundle(tiny_bundle)
    weights = dict(bundle.weights("involvement"))
    weights["classify.bias"] = weights["classify.bias"] - 16
    facts = bundle.networks["involvement"]
    record = NetworkRecord(facts["architecture"], facts["preprocessing"], weights)
    quiet = revise_bundle(tiny_bundle, tmp_path_factory.mktemp("quiet") / "bundle", networks={"involvement": record})
    return [Models(quiet if fold in QUIET_FOLDS else bundle, torch.device("cpu")) for fold in range(FOLDS)]


@pytest.fixture(scope="module")
def slices(cases: list[Case], networks: list[Models]) -> list[HeldOut]:
    return [s for fold in range(FOLDS) for s in run_slices(held_out(cases, fold), networks[fold], fold)]


def best(slices: Sequence[HeldOut]) -> float:
    curve = mean_dice_at(slices)
    return max(curve, key=lambda threshold: curve[threshold])


def test_a_folds_own_slices_have_no_say_in_its_threshold(
    cases: list[Case], networks: list[Models], slices: list[HeldOut], tmp_path: Path
) -> None:
    scores, curve = score_folds(cases, lambda fold: networks[fold], True, tmp_path)
    others = [best([s for s in slices if s.fold != fold]) for fold in range(FOLDS)]
    own = [best([s for s in slices if s.fold == fold]) for fold in range(FOLDS)]
    assert curve.chosen == others
    # The slices are such that a threshold chosen with a fold's own slices, alone or among all, is another one.
    assert others != own and others != [best(slices)] * FOLDS
    assert scores == [score_slice(s, others[s.fold], True)[0] for s in slices]
    assert scores != [score_slice(s, 0.5, True)[0] for s in slices]


def test_the_figure_has_a_line_of_either_kind_and_a_mark_at_every_folds_threshold() -> None:
    curves = [
        ThresholdCurve(True, [0.2, 0.4, 0.6], [0.5, 0.7, 0.1], [0.4, 0.4, 0.2, 0.4, 0.6]),
        ThresholdCurve(False, [0.2, 0.4, 0.6], [0.4, 0.3, 0.2], [0.2, 0.2, 0.4, 0.2, 0.2]),
    ]
    (axes,) = threshold_curves(curves).axes
    for curve, line, marks in zip(curves, axes.lines, axes.collections, strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.transpose([curve.thresholds, curve.mean_dice]))
        heights = dict(zip(curve.thresholds, curve.mean_dice, strict=True))
        np.testing.assert_allclose(marks.get_offsets(), [(t, heights[t]) for t in curve.chosen])
