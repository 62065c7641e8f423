"""``covid-ct train`` and ``calibrate``: bundles of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import (
    add_bundle,
    add_command,
    add_precision,
    add_recipe,
    check_at_least,
    check_sensitivity,
    training_packages,
)

NETWORKS = ("lungs", "involvement", "lesions", "cvae", "classifier")


def add_train(commands: Any) -> None:
    """``covid-ct train``."""
    command = add_command(
        commands,
        "train",
        _train,
        "Train one network and put it into a bundle. In order: lungs, involvement, lesions, cvae, classifier.",
    )
    command.add_argument("network", choices=NETWORKS)
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="training data folder; for cvae and classifier also a table of scans (CSV: scan, label, patient, split)",
    )
    command.add_argument("--output", type=Path, required=True, help="bundle to make or to put the network into")
    command.add_argument(
        "--bundle",
        type=Path,
        help="where OUTPUT does not exist yet, start as a copy of this bundle (default: of the one shipped for cvae, "
        "classifier and --fine-tune, else of none)",
    )
    command.add_argument("--run", dest="run_folder", type=Path, help="checkpoints (default: beside the bundle)")
    command.add_argument("--steps", type=int, help="optimiser steps (default: the shipped bundle's)")
    command.add_argument("--seed", type=int, default=0, help="of first weights and batches (default: 0)")
    add_recipe(command)
    command.add_argument(
        "--sensitivity",
        type=float,
        help="that the classifier's threshold must reach on the scans for validation (default: 0.9)",
    )
    command.add_argument("--fine-tune", action="store_true", help="start from the bundle's own weights")
    command.add_argument("--devices", type=int, help="graphics cards to use (default: all)")
    command.add_argument("--nodes", type=int, default=1, help="machines, each running this command (SLURM, torchrun)")
    add_precision(command)


def _train(options: argparse.Namespace) -> None:
    with training_packages():
        from ..training.loop import Hardware
        from ..training.train import train

    check_at_least(1, steps=options.steps, devices=options.devices, nodes=options.nodes)
    check_at_least(0, seed=options.seed)
    if options.sensitivity is not None:
        check_sensitivity(options.sensitivity)
    train(
        options.network,
        options.data,
        options.output,
        bundle=options.bundle,
        run=options.run_folder,
        steps=options.steps,
        seed=options.seed,
        fine_tune=options.fine_tune,
        hardware=Hardware(options.devices or "auto", options.nodes, options.precision),
        scheme=options.recipe,
        sensitivity=options.sensitivity,
    )


def add_calibrate(commands: Any) -> None:
    """``covid-ct calibrate``."""
    command = add_command(
        commands,
        "calibrate",
        _calibrate,
        "Adapt a bundle to a site: its probability to the site's share of COVID-19, its threshold to a sensitivity. "
        "Takes the bundle's predictions of the site's labelled scans (see evaluate report), 50 or more.",
    )
    command.add_argument("predictions", type=Path, help="CSV file")
    command.add_argument("--output", type=Path, required=True, help="bundle to write")
    command.add_argument("--sensitivity", type=float, default=0.9, help="to aim at (default: 0.9)")
    add_bundle(command)


def _calibrate(options: argparse.Namespace) -> None:
    from ..bundle import open_bundle

    with training_packages():
        from ..evaluation.predictions import read_predictions
        from ..evaluation.site_calibration import calibrate_site

    check_sensitivity(options.sensitivity)
    predictions = read_predictions(options.predictions)
    calibrate_site(predictions, open_bundle(options.bundle), options.output, options.sensitivity)
