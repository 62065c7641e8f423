"""``covid-ct calibrate``: fit a bundle's probability and threshold to a site's own labelled scans."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ..bundle import Bundle, revise_bundle
from ..errors import InputError, UsageError
from ..training.calibration import fit_platt, operating_point
from .metrics import Interval
from .predictions import SMALLEST, Predictions
from .reliability import brier
from .targets import interval_text

FEWEST = 5
"""Scans of either kind that there must be; below 50 in all the result is called uncertain."""
ENOUGH = 50
REPLICATES = 500


class SiteCalibration(NamedTuple):
    """What was fitted, and how well it does on scans that it was not fitted to.

    Attributes:
        slope, offset, threshold: of the bundle's ``diagnosis`` settings.
        sensitivity, specificity: at the threshold, median and 95 % interval over scans left out of bootstrap
            replicates, each with a fit of its own.
        brier_before, brier_after: of the probabilities; after: by the same replicates.
    """

    slope: float
    offset: float
    threshold: float
    sensitivity: Interval
    specificity: Interval
    brier_before: float
    brier_after: float


def fit_site(
    predictions: Predictions,
    settings: dict[str, float],
    sensitivity: float,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> SiteCalibration:
    """Platt scaling at the site's own share of COVID-19, and the threshold that reaches a sensitivity.

    Args:
        predictions: of the bundle to be adapted, with the truth.
        settings: ``diagnosis`` settings of that bundle.
        sensitivity: aimed at.
        replicates: of the stratified bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than ``FEWEST`` scans of either kind.
    """
    covid = predictions.covid
    if min(covid.sum(), (1 - covid).sum()) < FEWEST:
        raise InputError(
            f"There are {covid.sum()} COVID-19 and {(1 - covid).sum()} other scans, too few to calibrate on.",
            f"Label at least {FEWEST} of either kind, better {ENOUGH} in all.",
        )
    probability = np.clip(predictions.probability, SMALLEST, 1 - SMALLEST)
    differences = (np.log(probability / (1 - probability)) - settings["offset"]) / settings["slope"]
    slope, offset = fit_platt(differences, covid, balanced=False)
    threshold = operating_point(differences, covid, sensitivity, slope, offset)
    left_out = _left_out(differences, covid, sensitivity, replicates, seed)
    low, middle, high = np.nanpercentile(left_out, [2.5, 50, 97.5], axis=0)
    intervals = [Interval(float(middle[n]), float(low[n]), float(high[n])) for n in (0, 1)]
    before = brier(predictions.probability, covid)
    return SiteCalibration(slope, offset, threshold, intervals[0], intervals[1], before, float(middle[2]))


def _left_out(differences: np.ndarray, covid: np.ndarray, sensitivity: float, replicates: int, seed: int) -> np.ndarray:
    """Sensitivity, specificity and Brier score on the scans left out of each replicate, (replicates, 3)."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(covid == kind) for kind in (1, 0)]
    found = []
    for _ in range(replicates):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        rest = np.setdiff1d(np.arange(len(covid)), drawn)
        slope, offset = fit_platt(differences[drawn], covid[drawn], balanced=False)
        threshold = operating_point(differences[drawn], covid[drawn], sensitivity, slope, offset)
        probability, truth = expit(slope * differences[rest] + offset), covid[rest]
        called = probability >= threshold
        shares = [called[truth == 1].mean() if (truth == 1).any() else np.nan]
        shares.append((~called[truth == 0]).mean() if (truth == 0).any() else np.nan)
        found.append([*shares, float(np.mean((probability - truth) ** 2)) if len(rest) else np.nan])
    return np.array(found)


def calibrate_site(predictions: Predictions, bundle: Bundle, output: Path, sensitivity: float) -> None:
    """Write a copy of the bundle with fitted settings, and print how sure it is.

    Args:
        predictions: of this bundle, with the truth; see ``Predictions.to_fit`` for which of them count.
        bundle: to be adapted.
        output: bundle to write.
        sensitivity: aimed at.

    Raises:
        InputError: too few scans.
        UsageError: ``output`` is the bundle itself, or holds something else.
    """
    if output.resolve() == bundle.folder.resolve():
        raise UsageError("The bundle itself is not changed.", "Give another folder with --output.")
    given, predictions = len(predictions.scans), predictions.to_fit
    if len(predictions.scans) < given:
        print(f"{given - len(predictions.scans)} scans of other splits are left aside.")
    fitted = fit_site(predictions, bundle.settings["diagnosis"], sensitivity)
    scans, covid = len(predictions.scans), int(predictions.covid.sum())
    facts = {"scans": scans, "covid": covid, "aimed_sensitivity": sensitivity}
    found = {"slope": fitted.slope, "offset": fitted.offset, "threshold": fitted.threshold, "calibrated_on": facts}
    replaced = output.is_dir() and any(output.iterdir())
    revise_bundle(bundle.folder, output, settings={**bundle.settings, "diagnosis": found})
    _print(fitted, scans, covid)
    print(f"Bundle: {output}{' (replaces an older one)' if replaced else ''}")


def _print(fitted: SiteCalibration, scans: int, covid: int) -> None:
    print(f"Calibrated on {scans} scans ({covid} COVID-19). On scans left out, with 95 % intervals:")
    for name, interval in (("sensitivity", fitted.sensitivity), ("specificity", fitted.specificity)):
        print(f"  {name:24} {interval_text(interval)}")
    print(f"  {'Brier score':24} {fitted.brier_after:.3f} (before: {fitted.brier_before:.3f}, on all scans)")
    print(f"  {'threshold':24} {fitted.threshold:.3f}")
    if scans < ENOUGH:
        print(f"Fewer than {ENOUGH} scans: take these numbers as a first guess.")
