"""``covid-ct calibrate``: fit a bundle's probability and threshold to a site's own labelled scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ..bundle import Bundle, changed_version, revise_bundle, with_section
from ..errors import InputError, UsageError
from ..training.calibration import fit_platt, operating_point
from .metrics import Interval, interval_text, widened
from .predictions import Prediction, Predictions, counted, log_odds
from .reliability import brier
from .roc import delong

FEWEST, ENOUGH = 5, 50
"""Scans of either kind that there must be, and scans in all, below which the result is called uncertain."""
REPLICATES = 500
HEADING, CHANGE = "Calibrated on a site's own scans", "calibrated"
"""Of the model card's last section, and in the bundle's version."""


class SiteCalibration(NamedTuple):
    """What was fitted, and how well it does on scans that it was not fitted to.

    Attributes:
        slope, offset, threshold: of the bundle's ``diagnosis`` settings.
        sensitivity, specificity: at the threshold, mean and 95 % interval over scans left out of bootstrap
            replicates, each with a fit of its own; no narrower than Wilson's interval.
        on_fitted: sensitivity and specificity of the threshold on the very scans that it was fitted to.
        brier_before, brier_after: of the probabilities; after: by the same replicates.
    """

    slope: float
    offset: float
    threshold: float
    sensitivity: Interval
    specificity: Interval
    on_fitted: tuple[float, float]
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
    whose = list(zip(_whose(predictions.scans), covid, strict=True))
    counts = [len({key for key, ill in whose if ill == kind}) for kind in (1, 0)]
    if min(counts) < FEWEST:
        raise InputError(
            f"There are {counts[0]} COVID-19 and {counts[1]} other {counted(predictions.scans)}, too few to calibrate "
            "on.",
            f"Label at least {FEWEST} of either kind, better {ENOUGH} in all.",
        )
    differences = (log_odds(predictions.probability) - settings["offset"]) / settings["slope"]
    slope, offset = fit_platt(differences, covid, balanced=False)
    threshold = operating_point(differences, covid, sensitivity, slope, offset)
    left_out = _left_out(differences, predictions, sensitivity, replicates, seed)
    # Not the median: shares of few scans are coarse, and most often 1.
    mean = np.nanmean(left_out, axis=0)
    shares = [widened(Interval.of_draws(mean[n], left_out[:, n]), count) for n, count in enumerate(counts)]
    called = expit(slope * differences + offset) >= threshold
    on_fitted = (float(called[covid == 1].mean()), float((~called)[covid == 0].mean()))
    before = brier(predictions.probability, covid)
    return SiteCalibration(slope, offset, threshold, shares[0], shares[1], on_fitted, before, float(mean[2]))


def _left_out(
    differences: np.ndarray, predictions: Predictions, sensitivity: float, replicates: int, seed: int
) -> np.ndarray:
    """Sensitivity, specificity and Brier score on the scans left out of each replicate, (replicates, 3).

    Patients are drawn with all their scans, where the table names one for each scan.
    """
    rng, covid = np.random.default_rng(seed), predictions.covid
    groups = _groups(predictions.scans)
    found = []
    for _ in range(replicates):
        drawn = np.concatenate([group[n] for group in groups for n in rng.integers(len(group), size=len(group))])
        if len(np.unique(covid[drawn])) < 2:
            continue  # of patients with scans of both kinds
        rest = np.setdiff1d(np.arange(len(covid)), drawn)
        slope, offset = fit_platt(differences[drawn], covid[drawn], balanced=False)
        threshold = operating_point(differences[drawn], covid[drawn], sensitivity, slope, offset)
        probability, truth = expit(slope * differences[rest] + offset), covid[rest]
        called = probability >= threshold
        shares = [called[truth == 1].mean() if (truth == 1).any() else np.nan]
        shares.append((~called[truth == 0]).mean() if (truth == 0).any() else np.nan)
        found.append([*shares, float(np.mean((probability - truth) ** 2)) if len(rest) else np.nan])
    return np.array(found)


def _whose(scans: Sequence[Prediction]) -> list[str]:
    """The patient of each scan; where patients are not known, the scan itself."""
    by_patient = counted(scans) == "patients"
    return [s.patient if by_patient else s.name for s in scans]


def _groups(scans: Sequence[Prediction]) -> list[list[np.ndarray]]:
    """Places of the scans of each patient (see ``_whose``), those with COVID-19 first."""
    of: dict[str, list[int]] = {}
    for place, key in enumerate(_whose(scans)):
        of.setdefault(key, []).append(place)
    ill = {key: any(scans[place].covid for place in places) for key, places in of.items()}
    return [[np.array(places) for key, places in of.items() if ill[key] == kind] for kind in (True, False)]


def calibrate_site(predictions: Predictions, bundle: Bundle, output: Path, sensitivity: float) -> None:
    """Write a copy of the bundle with fitted settings, and print how sure it is.

    Args:
        predictions: of this bundle, with the truth; see ``Predictions.to_fit`` for which of them count.
        bundle: to be adapted.
        output: bundle to write.
        sensitivity: aimed at.

    Raises:
        InputError: too few scans, predictions that are not of this bundle, or none that tells COVID-19 from others.
        UsageError: ``output`` is the bundle itself, or holds something else.
    """
    if output.resolve() == bundle.folder.resolve():
        raise UsageError("The bundle itself is not changed.", "Give another folder with --output.")
    if not predictions.made_by(bundle):
        predictions.require_called_at(bundle.settings["diagnosis"]["threshold"])
    given, predictions = len(predictions.scans), predictions.to_fit
    if len(predictions.scans) < given:
        print(f"{given - len(predictions.scans)} scans of other splits are left aside.")
    if not any(s.is_validation for s in predictions.scans):
        print("No split is called validation, so all these scans are fitted to: judge the new bundle on others.")
    fitted = fit_site(predictions, bundle.settings["diagnosis"], sensitivity)
    warnings = _check_that_it_tells(predictions) + _warnings(fitted, predictions)
    scans, covid = len(predictions.scans), int(predictions.covid.sum())
    facts = {"scans": scans, "covid": covid, "aimed_sensitivity": sensitivity}
    found = {"slope": fitted.slope, "offset": fitted.offset, "threshold": fitted.threshold, "calibrated_on": facts}
    replaced = output.is_dir() and any(output.iterdir())
    revise_bundle(
        bundle.folder,
        output,
        version=changed_version(bundle.version, CHANGE),
        settings={**bundle.settings, "diagnosis": found},
        model_card=with_section(bundle.model_card, HEADING, _section(fitted, scans, covid, sensitivity, warnings)),
    )
    _print(fitted, scans, covid)
    for text in warnings:
        print(text)
    print(f"Bundle: {output}{' (replaces an older one)' if replaced else ''}")


def _check_that_it_tells(predictions: Predictions) -> list[str]:
    """Raise InputError if other scans have the higher probabilities; a warning if chance may have made the order."""
    area = delong(predictions.probability, predictions.covid)
    if area.value <= 0.5:
        raise InputError(
            f"These probabilities do not tell COVID-19 from other scans (AUC {interval_text(area)}).",
            "Check the column covid; if it is right, train on the site's scans.",
        )
    print(f"AUC {interval_text(area)}")
    if area.low > 0.5:
        return []
    return ["Chance alone may order scans so: do not rely on this bundle before it is tested on more scans."]


def _warnings(fitted: SiteCalibration, predictions: Predictions) -> list[str]:
    """What a user of the new bundle should know of how it was fitted."""
    told = []
    if fitted.on_fitted[1] == 0:
        told.append(
            "This threshold calls every other scan COVID-19, as COVID-19 scans that must be called have no higher "
            "probabilities than they: label more scans, or aim at a lower sensitivity."
        )
    if len(predictions.scans) < ENOUGH:
        told.append(f"Fewer than {ENOUGH} scans: take these numbers as a first guess.")
    if counted(predictions.scans) != "patients":
        told.append("Scans were taken for independent patients, as the table does not name the patient of each.")
    return told


def _section(fitted: SiteCalibration, scans: int, covid: int, aimed: float, warnings: list[str]) -> str:
    summary = (
        f"Probability and threshold ({fitted.threshold:.3f}) were fitted to {scans} scans of a site "
        f"({covid} COVID-19), for a sensitivity of {aimed:g}; what stands above of both is of the bundle before. "
        f"On scans left out: sensitivity {interval_text(fitted.sensitivity)}, "
        f"specificity {interval_text(fitted.specificity)}."
    )
    return " ".join([summary, *warnings])


def _print(fitted: SiteCalibration, scans: int, covid: int) -> None:
    print(f"Calibrated on {scans} scans ({covid} COVID-19). On scans left out, with 95 % intervals:")
    for name, interval in (("sensitivity", fitted.sensitivity), ("specificity", fitted.specificity)):
        print(f"  {name:24} {interval_text(interval)}")
    print(f"  {'Brier score':24} {fitted.brier_after:.3f} (before: {fitted.brier_before:.3f}, on all scans)")
    sensitivity, specificity = fitted.on_fitted
    print(f"  {'threshold':24} {fitted.threshold:.3f}")
    print(f"On the scans fitted to, sensitivity {sensitivity:.3f} and specificity {specificity:.3f}.")
