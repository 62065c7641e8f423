"""``covid-ct evaluate diagnosis``: a bundle on scans that it has not learned from."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import open_bundle
from ..errors import InputError, UsageError
from ..folders import replaced_file
from ..pipeline.compute import choose_device, tune_allocator
from ..pipeline.diagnosis import Diagnosis, diagnose
from ..pipeline.models import Models
from ..training.examples import Example, prepare_examples, split_data
from ..training.scan_table import TEST, TRAIN, VALIDATION, is_scan_table
from .example_pictures import write_pictures
from .metrics import wilson
from .novelty import diagnose_beyond_the_lungs, novelty_lines, spoil_and_diagnose
from .roc import delong
from .targets import interval_text

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


def print_diagnosis(
    data: Path,
    bundle: Path | None,
    device: str,
    output: Path | None = None,
    spoil: bool = False,
    all_splits: bool = False,
    pictures: Path | None = None,
) -> None:
    """AUC, sensitivity and specificity on the scans kept apart.

    Args:
        data: data folder with slice series, or a table of scans.
        bundle: or the one shipped.
        device: where to segment.
        output: gets the predictions as a table, for ``covid-ct evaluate report``.
        all_splits: the table also gets the scans that the bundle learned from or was calibrated on.
        pictures: folder that gets a picture of each of these scans, for the examples of the report.
        spoil: also spoil the slice series kept apart, take slices without lung, and count the warnings.

    Raises:
        InputError: the data lack a part, or no COVID-19 or no other scan is kept apart.
        UsageError: ``output`` is missing for all splits or cannot be written, ``pictures`` cannot be a folder, or there
            are no slice series to spoil.
    """
    for path in filter(None, (output, pictures)):
        if not path.resolve().parent.is_dir():
            raise UsageError(f"The folder {path.parent} does not exist.", "Create it or choose another.")
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise UsageError(f"{pictures} is a file.", "Give a folder for the pictures.")
    if all_splits and output is None:
        raise UsageError("The scans of all splits go into a table.", "Add --output TABLE.csv.")
    if spoil and is_scan_table(data):
        raise UsageError("Only slice series can be spoilt.", "Leave out --spoil.")
    tune_allocator()
    models = Models(open_bundle(bundle), choose_device(device))
    split = split_data(data)
    scans = split.test
    if {s.covid for s in scans} != {0, 1}:
        raise InputError(
            "No COVID-19 or no other scans are kept apart.",
            "Put some of either into the split test (all, if the bundle learned from none).",
        )
    test = _prepare(scans, models)
    found = _diagnose(test, models)
    probability = np.array([d.probability for d in found])
    covid = np.array([e.covid for e in test])
    called = np.array([d.probability >= d.threshold for d in found])
    print(f"Diagnosis, {len(covid)} scans kept apart ({covid.sum()} COVID-19), 95 % intervals")
    rows = {"AUC": delong(probability, covid)} if min(np.bincount(covid)) > 1 else {}
    rows |= {
        "sensitivity": wilson(int((called & (covid == 1)).sum()), int((covid == 1).sum())),
        "specificity": wilson(int((~called & (covid == 0)).sum()), int((covid == 0).sum())),
    }
    for name, interval in rows.items():
        print(f"  {name:36} {interval_text(interval)}")
    if output is not None:
        maker = models.bundle.identity
        table = _rows(TEST, scans, test, found, maker)
        for name, others in ((TRAIN, split.learn), (VALIDATION, split.calibrate)) if all_splits else ():
            examples = _prepare(others, models)
            table += _rows(name, others, examples, _diagnose(examples, models), maker)
        _write(output, table)
        print(f"Predictions: {output}")
    if pictures is not None:
        write_pictures(test, models, pictures)
        print(f"Pictures: {pictures}")
    if spoil:
        for line in novelty_lines(chain(spoil_and_diagnose(scans, models), diagnose_beyond_the_lungs(models))):
            print(line, flush=True)


def _prepare(scans: Sequence[Any], models: Models) -> list[Example]:
    with tempfile.TemporaryDirectory() as cache:
        return prepare_examples(scans, models, Path(cache))


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
    with replaced_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
