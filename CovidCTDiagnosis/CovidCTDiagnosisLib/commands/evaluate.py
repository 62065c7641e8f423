"""``covid-ct evaluate``: what a bundle is worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .common import add_bundle, add_command, add_device, add_precision, add_recipe, check_at_least, training_packages

FOLD_KINDS = {"with": (True,), "without": (False,), "both": (True, False)}


def add_evaluate(commands: Any) -> None:
    """``covid-ct evaluate``."""
    text = "Measure a bundle on data that it has not learned from, or judge a table of predictions."
    command = commands.add_parser("evaluate", help=text, description=text)
    parts = command.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_evaluate_segmentation(parts)
    _add_evaluate_planted(parts)
    _add_evaluate_diagnosis(parts)
    _add_evaluate_ablation(parts)
    _add_evaluate_explanations(parts)
    _add_evaluate_report(parts)


def _add_evaluate_segmentation(parts: Any) -> None:
    command = add_command(parts, "segmentation", _evaluate_segmentation, "Lungs and lesions against experts; a table.")
    command.add_argument("--data", type=Path, help="data folder (without it only the sample CT is measured)")
    command.add_argument("--output", type=Path, help="folder for results and a page with figures")
    command.add_argument(
        "--folds",
        nargs="?",
        const="both",
        choices=FOLD_KINDS,
        help="score lesions by cross-validation, by networks that learn with machine-made masks, without, or both "
        "(default): trains what is not in OUTPUT/folds yet, which takes hours",
    )
    command.add_argument(
        "--lesion-source",
        choices=("involvement", "both"),
        default="involvement",
        help="who draws the lesion mask of the folds: 2DS (default), or both lesion networks, and then the U-Net is "
        "trained for each fold too",
    )
    add_precision(command)
    add_bundle(command)
    add_device(command)


def _evaluate_segmentation(options: argparse.Namespace) -> None:
    with training_packages():
        from ..evaluation.segmentation import evaluate_segmentation

    folds = FOLD_KINDS.get(options.folds, ())
    evaluate_segmentation(
        options.data,
        options.output,
        folds,
        options.bundle,
        options.device,
        options.precision,
        options.lesion_source,
    )


def _add_evaluate_planted(parts: Any) -> None:
    text = "Lesions of each class planted in the sample CT, and what they are called; a table."
    command = add_command(parts, "planted", _evaluate_planted, text)
    command.add_argument("--data", type=Path, help="data folder with expert slices, whose lesions are named too")
    add_bundle(command)
    add_device(command)


def _evaluate_planted(options: argparse.Namespace) -> None:
    with training_packages():
        from ..evaluation.planted import evaluate_planted

    evaluate_planted(options.bundle, options.device, options.data)


def _add_evaluate_diagnosis(parts: Any) -> None:
    command = add_command(
        parts, "diagnosis", _evaluate_diagnosis, "Diagnose held-out scans and compare with the truth."
    )
    command.add_argument("--data", type=Path, required=True, help="data folder with slice series, or table of scans")
    command.add_argument("--output", type=Path, help="also write the predictions (CSV), for evaluate report")
    command.add_argument(
        "--all-splits",
        action="store_true",
        help="the table also gets the scans for training and validation, for the report's figure of involvement",
    )
    command.add_argument("--pictures", type=Path, help="also draw each held-out scan (PNG), for evaluate report")
    command.add_argument(
        "--run",
        dest="run_folder",
        type=Path,
        help="folder that keeps the segmented scans; stopped, it goes on from them",
    )
    command.add_argument(
        "--spoil",
        action="store_true",
        help="also invert, window, blur the held-out series, and take abdomen and neck: how many are refused "
        "or told not to be relied on",
    )
    add_bundle(command)
    add_device(command)


def _evaluate_diagnosis(options: argparse.Namespace) -> None:
    with training_packages():
        from ..evaluation.diagnosis import evaluate_diagnosis

    evaluate_diagnosis(
        options.data,
        options.bundle,
        options.device,
        output=options.output,
        spoil=options.spoil,
        all_splits=options.all_splits,
        pictures=options.pictures,
        run=options.run_folder,
    )


def _add_evaluate_ablation(parts: Any) -> None:
    command = add_command(
        parts,
        "ablation",
        _evaluate_ablation,
        "What each part of the classifier is worth: grouped cross-validation of the proposed model, of models without "
        "its parts and of baselines (hours; goes on where it was stopped).",
    )
    command.add_argument("--data", type=Path, required=True, help="data folder with slice series")
    command.add_argument("--output", type=Path, required=True, help="folder for results and checkpoints")
    command.add_argument("--steps", type=int, default=300, help="optimiser steps of every network (default: 300)")
    command.add_argument("--cvae-steps", type=int, help="optimiser steps of pre-training (default: as many as --steps)")
    command.add_argument("--seed", type=int, default=0, help="of first weights and batches (default: 0)")
    command.add_argument("--folds", type=int, default=5, help="how many of the five folds (default: all)")
    add_recipe(command)
    add_precision(command)
    add_bundle(command)
    add_device(command)


def _evaluate_ablation(options: argparse.Namespace) -> None:
    with training_packages():
        from ..evaluation.ablation import evaluate_ablation

    check_at_least(1, steps=options.steps, cvae_steps=options.cvae_steps)
    check_at_least(0, seed=options.seed)
    if not 1 <= options.folds <= 5:
        raise UsageError(f"There are five folds, not {options.folds}.", "Give --folds 1 to 5.")
    evaluate_ablation(
        options.data,
        options.output,
        options.bundle,
        options.device,
        steps=options.steps,
        precision=options.precision,
        folds=options.folds,
        cvae_steps=options.cvae_steps,
        scheme=options.recipe,
        seed=options.seed,
    )


def _add_evaluate_explanations(parts: Any) -> None:
    command = add_command(
        parts,
        "explanations",
        _evaluate_explanations,
        "What the heatmaps are worth: relevance in an expert's lesions, pixel flipping, random weights, noise; beside "
        "gradient x input and chance.",
    )
    command.add_argument("--data", type=Path, required=True, help="data folder with expert slices and slice series")
    command.add_argument("--output", type=Path, help="folder for results and a page with figures")
    add_bundle(command)
    add_device(command)


def _evaluate_explanations(options: argparse.Namespace) -> None:
    with training_packages():
        from ..evaluation.explanations import evaluate_explanations

    evaluate_explanations(options.data, options.output, options.bundle, options.device)


def _add_evaluate_report(parts: Any) -> None:
    command = add_command(
        parts,
        "report",
        _evaluate_report,
        "One page with figures, tables and a checklist from a table of predictions and the truth (CSV: series or scan, "
        "probability, covid 1 or 0; optional co_rads, centre, split, patient, involvement_percent).",
    )
    command.add_argument("predictions", type=Path, help="CSV file")
    command.add_argument("--output", type=Path, required=True, help="HTML file to write")
    command.add_argument("--threshold", type=float, help="COVID-19 from this probability on (default: the bundle's)")
    command.add_argument("--pictures", type=Path, help="folder of PNG files named as the scans, for the examples")
    add_bundle(command)


def _evaluate_report(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle

    with training_packages():
        from ..evaluation.predictions import read_predictions
        from ..evaluation.report import write_report

    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UsageError(f"{options.threshold:g} is no probability.", "Give a threshold from 0 to 1.")
    bundle = open_bundle(options.bundle)
    threshold = bundle.settings["diagnosis"]["threshold"] if options.threshold is None else options.threshold
    predictions = read_predictions(options.predictions)
    # Predictions of a bundle that is not here may be judged, at a threshold that is given.
    elsewhere = options.threshold is not None and not options.bundle
    told = not elsewhere and predictions.made_by(bundle)
    if options.threshold is None and not told:
        predictions.require_called_at(threshold)
    # Facts of a bundle belong into the checklist only if it is said to have made the predictions.
    maker = bundle if options.bundle or told else None
    write_report(predictions, threshold, options.output, maker, options.pictures)
