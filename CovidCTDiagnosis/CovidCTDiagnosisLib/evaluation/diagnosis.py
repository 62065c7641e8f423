"""``covid-ct evaluate diagnosis``: a bundle on scans that it has not learned from."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import open_bundle
from ..errors import InputError, UsageError
from ..folders import require_parent
from ..pipeline.compute import choose_device
from ..pipeline.diagnosis import Diagnosis, diagnose
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from ..tables import require_own_table, write_rows
from ..training.examples import Example, prepare_examples, split_data
from ..training.scan_table import TEST, TRAIN, VALIDATION, is_scan_table
from ..training.splits import Split
from .confusion import Confusion
from .example_pictures import write_pictures
from .metrics import interval_text
from .roc import delong
from .spoilt_scans import diagnose_beyond_the_lungs, novelty_lines, spoil_and_diagnose

COLUMNS = (
    "scan",
    "probability",
    "covid",
    "split",
    "centre",
    "co_rads",
    "involvement_percent",
    "label",
    "warnings",
    "bundle",
)


def evaluate_diagnosis(
    data: Path,
    bundle: Path | None,
    device: str,
    *,
    output: Path | None = None,
    spoil: bool = False,
    all_splits: bool = False,
    pictures: Path | None = None,
    run: Path | None = None,
) -> None:
    """AUC, sensitivity and specificity on the held-out scans.

    Args:
        data: data folder with slice series, or a table of scans.
        bundle: or the one shipped.
        device: where to segment.
        output: gets the predictions as a table, for ``covid-ct evaluate report``.
        all_splits: the table also gets the scans that the bundle learned from or was calibrated on.
        pictures: folder that gets a picture of each of these scans, for the examples of the report.
        run: folder that keeps the segmented scans, from which a run that was stopped goes on.
        spoil: also spoil the held-out slice series, take slices without lung, and count the warnings.

    Raises:
        InputError: the data lack a part, or no COVID-19 or no other scan is held out.
        UsageError: ``output`` is missing for all splits or cannot be written, ``pictures`` cannot be a folder, or there
            are no slice series to spoil.
    """
    if output is not None:
        require_own_table(output, [COLUMNS], "predictions without columns of your own")
    _check_folders(pictures, run)
    if all_splits and output is None:
        raise UsageError("The scans of all splits go into a table.", "Add --output TABLE.csv.")
    if spoil and is_scan_table(data):
        raise UsageError("Only slice series can be spoilt.", "Leave out --spoil.")
    tune_allocator()
    models = Models(open_bundle(bundle), choose_device(device))
    split = split_data(data)
    if {scan.covid for scan in split.test} != {0, 1}:
        raise InputError(
            "No COVID-19 or no other scans are held out.",
            "Put some of either into the split test (all, if the bundle learned from none).",
        )
    with nullcontext(run) if run else tempfile.TemporaryDirectory() as cache:
        test = _prepare(split.test, models, Path(cache))
        found = _diagnose(test, models)
        _print_summary(test, found)
        rows = _rows(TEST, split.test, test, found, models.bundle.identity)
        if all_splits:
            rows += _rows_of_others(split, models, Path(cache))
    if output is not None:
        _write(output, rows)
        print(f"Predictions: {output}")
    if pictures is not None:
        write_pictures(test, models, pictures)
        print(f"Pictures: {pictures}")
    if spoil:
        spoilt = chain(spoil_and_diagnose(split.test, models), diagnose_beyond_the_lungs(models))
        for line in novelty_lines(spoilt):
            print(line, flush=True)


def _check_folders(*folders: Path | None) -> None:
    for folder in filter(None, folders):
        require_parent(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file.", "Give a folder.")


def _print_summary(examples: Sequence[Example], found: Sequence[Diagnosis]) -> None:
    """Area under the curve, where there are two scans of either kind, sensitivity and specificity."""
    covid = np.array([e.covid for e in examples])
    calls = Confusion.of(np.array([d.probability >= d.threshold for d in found]), covid)
    print(f"Diagnosis, {len(covid)} held-out scans ({covid.sum()} COVID-19), 95 % intervals")
    rows = {"sensitivity": calls.sensitivity, "specificity": calls.specificity}
    if min(np.bincount(covid)) > 1:
        rows = {"AUC": delong(np.array([d.probability for d in found]), covid), **rows}
    for name, interval in rows.items():
        print(f"  {name:36} {interval_text(interval)}")


def _rows_of_others(split: Split[Any], models: Models, cache: Path) -> list[tuple[Any, ...]]:
    """``COLUMNS`` of the scans that the bundle learned from or was calibrated on."""
    found = []
    for name, scans in ((TRAIN, split.train), (VALIDATION, split.validation)):
        examples = _prepare(scans, models, cache)
        found += _rows(name, scans, examples, _diagnose(examples, models), models.bundle.identity)
    return found


def _prepare(scans: Sequence[Any], models: Models, cache: Path) -> list[Example]:
    return prepare_examples(scans, models, cache, partial(print, file=sys.stderr, flush=True))


def _diagnose(examples: Sequence[Example], models: Models) -> list[Diagnosis]:
    return [diagnose(example, models, lambda fraction: None) for example in examples]


def _rows(
    split: str, scans: Sequence[Any], examples: Sequence[Example], diagnoses: Sequence[Diagnosis], maker: str
) -> list[tuple[Any, ...]]:
    """``COLUMNS`` of each scan; what the table of scans says of it goes along."""
    found = []
    for scan, example, said in zip(scans, examples, diagnoses, strict=True):
        told = (split, getattr(scan, "centre", ""), getattr(scan, "co_rads", None))
        seen = (f"{example.involvement_percent:.1f}", said.label, " ".join(said.warnings), maker)
        found.append((scan.name, f"{said.probability:.4f}", scan.covid, *told, *seen))
    return found


def _write(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    write_rows(path, COLUMNS, rows)
