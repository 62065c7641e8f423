"""``covid-ct evaluate``: a bundle on data that it has not learned from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..bundle import open_bundle
from ..ct import fetch_sample, fetch_truth, read_image, read_scan, to_axial
from ..pipeline.compute import choose_device, tune_allocator
from ..pipeline.lungs import LEFT, RIGHT, segment_lungs
from ..pipeline.models import Models
from ..pipeline.slices import segment_slices, stack_slices
from ..training.calibration import score_differences
from ..training.diagnosis import prepare_examples, split_by_blocks
from ..training.sources import NOMINAL_SLICE_MM, UNKNOWN_LESION, read_lesion_slices, read_series
from ..training.train import KEPT_SLICES
from .metrics import Interval, bootstrap_auc, dice, wilson

LEFT_LOBES, RIGHT_LOBES = (10, 11), (12, 13, 14)
"""Labels of the lobes in the truth of the NIfTI sample."""

CLASSES = {1: "ground-glass opacity", 2: "consolidation"}


def lung_dice(models: Models) -> dict[str, float]:
    """Dice of lungs against the lobes of the NIfTI sample, which no training uses: both, right, left."""
    ct = to_axial(read_scan(fetch_sample("chest-nifti")))
    truth = to_axial(read_image(fetch_truth("chest-nifti"))).voxels
    lungs = segment_lungs(ct, models, lambda fraction: None)
    right, left = np.isin(truth, RIGHT_LOBES), np.isin(truth, LEFT_LOBES)
    return {
        "both": dice(lungs > 0, right | left),
        "right": dice(lungs == RIGHT, right),
        "left": dice(lungs == LEFT, left),
    }


def kept_slice_scores(data: Path, models: Models) -> dict[str, float]:
    """Means over the expert slices that no shipped network learned from."""
    scores: dict[str, list[float]] = {}
    for case in read_lesion_slices(data):
        if case.name not in KEPT_SLICES:
            continue
        assert case.labels is not None
        lungs, lesions = segment_slices(stack_slices([case.hu[0]], NOMINAL_SLICE_MM), models)
        expert = case.labels > 0
        scores.setdefault("lesion, Dice", []).append(dice(lesions > 0, expert))
        if expert.any():
            scores.setdefault("lungs inside lesions, sensitivity", []).append(float(lungs[expert].mean()))
        for number, name in CLASSES.items():
            if (case.labels == number).any():
                known = case.labels != UNKNOWN_LESION
                scores.setdefault(f"{name}, Dice", []).append(dice((lesions == number) & known, case.labels == number))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _models(bundle: Path | None, device: str) -> Models:
    tune_allocator()
    return Models(open_bundle(bundle), choose_device(device))


def print_segmentation(data: Path | None, bundle: Path | None, device: str) -> None:
    """Lungs on the NIfTI sample; lesions on the expert slices kept apart, where the data folder is given."""
    models = _models(bundle, device)
    print("Lungs, Dice against the five lobes of the 512 x 512 x 133 CT (never trained on)")
    for side, value in lung_dice(models).items():
        print(f"  {side:36} {value:.3f}")
    if data is None:
        print("Lesions are measured on the data folder: give it with --data.")
        return
    print(f"Lesions, mean over the {len(KEPT_SLICES)} expert slices kept apart")
    for name, value in kept_slice_scores(data, models).items():
        print(f"  {name:36} {value:.3f}")
    print("A little leaks: the machine masks learned from come from a network that knew all expert slices.")


def print_diagnosis(data: Path | None, bundle: Path | None, device: str) -> None:
    """AUC, sensitivity and specificity on the block of series kept apart."""
    models = _models(bundle, device)
    series = split_by_blocks(read_series(data or Path("the data folder"))).test
    with tempfile.TemporaryDirectory() as cache:
        test = prepare_examples(series, models, Path(cache))
    settings = models.bundle.settings["diagnosis"]
    logit = settings["slope"] * score_differences(models.network("classifier"), test) + settings["offset"]
    covid = np.array([e.covid for e in test])
    called = 1 / (1 + np.exp(-logit)) >= settings["threshold"]
    print(f"Diagnosis, {len(covid)} series kept apart ({covid.sum()} COVID-19), 95 % intervals")
    rows = {
        "AUC": bootstrap_auc(logit, covid),
        "sensitivity": wilson(int((called & (covid == 1)).sum()), int((covid == 1).sum())),
        "specificity": wilson(int((~called & (covid == 0)).sum()), int((covid == 0).sum())),
    }
    for name, interval in rows.items():
        print(f"  {name:36} {_text(interval)}")
    print("The lung network has seen slices of these negative series; CVAE, classifier and calibration have not.")
    print("For comparison: grey-level histogram and image size alone reach an AUC of 0.92 in cross-validation.")


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
