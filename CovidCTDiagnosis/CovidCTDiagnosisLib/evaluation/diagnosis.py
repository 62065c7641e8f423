"""``covid-ct evaluate diagnosis``: a bundle on slice series that it has not learned from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..bundle import open_bundle
from ..pipeline.compute import choose_device, tune_allocator
from ..pipeline.models import Models
from ..training.calibration import score_differences
from ..training.diagnosis import prepare_examples, split_by_blocks
from ..training.sources import read_series
from .metrics import bootstrap_auc, wilson
from .targets import interval_text


def print_diagnosis(data: Path, bundle: Path | None, device: str) -> None:
    """AUC, sensitivity and specificity on the block of series kept apart."""
    tune_allocator()
    models = Models(open_bundle(bundle), choose_device(device))
    series = split_by_blocks(read_series(data)).test
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
        print(f"  {name:36} {interval_text(interval)}")
    print("For comparison: grey-level histogram and image size alone reach an AUC of 0.92 in cross-validation.")
