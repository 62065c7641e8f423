"""``covid-ct train``: run one recipe and put its network into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ..bundle import (
    Bundle,
    NetworkRecord,
    changed_version,
    open_begun_bundle,
    open_bundle,
    revise_bundle,
    section,
    with_section,
    write_bundle,
)
from ..errors import UsageError
from ..networks import VolumeClassifier
from ..pipeline.memory import tune_allocator
from . import diagnosis
from .calibration import SENSITIVITY, calibrate, score_differences
from .diagnosis import SCHEMES, SHORT
from .examples import Example
from .loop import BEST, Hardware, Steps, is_helper
from .novelty import average_maps, fit_appearance, fit_novelty, left_to_distance
from .own_data import NEEDED, is_own_data
from .plans import BUILT_ON, PLANS, VOLUMETRIC, Job, built_on
from .record import OWN_SOURCES
from .scan_table import is_scan_table
from .sources import require_data

USUAL_WINDOWS = (0.0, 0.5, 1.0)
"""Shares of ``in_window`` that are nothing unusual: the classifier has learned from such pictures."""

NAME, FIRST_VERSION = "covid-ct", "0.1.0"
HEADING, CHANGE = "Trained again", "retrained"
"""Of the model card's section on networks that are no longer those of the bundle's version, and in its version."""
SETTINGS = {"diagnosis": {"slope": 1.0, "offset": 0.0, "threshold": 0.5}}
_NO_WARRANTY = """They come without any warranty, and are not for the diagnosis or treatment of patients. The
program's own licence (Apache-2.0) does not cover them.
"""
NEW_CARD = "# covid-ct\n\nFor research, not for diagnosis. Describe here what these weights learned from.\n"
RESEARCH_TERMS = f"""Terms of these weights

They were trained on image sets whose terms allow research only (see docs/README.md): they may be used for research, not
for commercial purposes. {_NO_WARRANTY}"""
OWN_TERMS = f"""Terms of these weights

They were trained on data of whoever made this bundle, who says here who may use them. {_NO_WARRANTY}"""


def train(
    network: str,
    data: Path,
    output: Path,
    *,
    bundle: Path | None = None,
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
        bundle: gives a bundle that is to be made all other networks. None: the one shipped, for a network that builds
            on others or on its own weights; else a new bundle has this network alone.
        run: folder for checkpoints (beside the bundle by default); a run that was stopped there goes on.
        steps: optimiser steps, or the plan's; a network that is pre-trained takes as many for that.
        seed: of everything random.
        fine_tune: start from the bundle's own weights of this network.
        hardware: what to train on.
        scheme: of ``SCHEMES``, for cvae and classifier.
        sensitivity: that the classifier's threshold must reach on the scans for validation; None is the usual one.

    Raises:
        InputError: the data lack a part, or a scan or label map cannot be used.
        UsageError: ``output`` is neither a bundle nor to become one, or is one although ``bundle`` is given; the bundle
            lacks a network that this one builds on; the network does not learn from such data or in this scheme.
        BundleError: a bundle is damaged.
        ResourceError: out of memory or disk.
    """
    require_data(data)
    _check_kind(network, data, scheme, steps)
    if sensitivity is not None and network != "classifier":
        raise UsageError(f"{network} has no threshold for a sensitivity.", "Leave out --sensitivity.")
    tune_allocator()
    hardware = hardware or Hardware()
    job = Job(
        network,
        data,
        base=_base(output, bundle, built_on(network, fine_tune)),
        runs=run or _runs(output),
        cache=_runs(output),
        steps=_chosen_steps(PLANS[network].steps, steps, fine_tune, is_own_data(data)),
        seed=seed,
        fine_tune=fine_tune,
        hardware=hardware.for_volumes() if network in VOLUMETRIC else hardware,
        scheme=scheme,
    )
    trained = job.train()
    if is_helper():
        return  # the process that started this one writes the bundle
    record = NetworkRecord(job.architecture, job.plan.preprocessing, trained.state_dict(), _training(job))
    records, found = {network: record}, None
    if isinstance(trained, VolumeClassifier):
        aimed = SENSITIVITY if sensitivity is None else sensitivity
        records["novelty"], found = _fit_to_answers(job, trained, record.training["sources"], aimed)
    before = _fingerprint(output, network)
    _put(output, job, records, found)
    if _fingerprint(output, network) != before:
        _tell_what_is_stale(output, network)
    _tell_what_was_replaced_meanwhile(output, job)


def _base(output: Path, bundle: Path | None, wanted: tuple[str, ...]) -> Bundle | None:
    """The bundle that a network is put into: ``output``, or what it becomes a copy of; None for a new one."""
    begun = open_begun_bundle(output)
    if begun and bundle:
        raise UsageError(
            f"{output} is a bundle already, into which the network is put.", "Leave out --bundle, or --output another."
        )
    base = begun or (open_bundle(bundle) if bundle or wanted else None)
    missing = [n for n in wanted if base and n not in base.networks]
    if base and missing:
        raise UsageError(
            f"The bundle {bundle or base.folder} has no {' and no '.join(missing)} yet.",
            f"Train it first: covid-ct train {missing[0]}.",
        )
    if base and not begun and not is_helper():
        print(f"{output} starts as a copy of the bundle {base.name} {base.version}.")
    return base


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


def _chosen_steps(planned: Steps, wanted: int | None, fine_tune: bool, own: bool) -> Steps:
    """A hospital's own data is learned from in one stage, as long as the shipped network in two."""
    if planned.pretraining and not fine_tune and not own:
        return planned if wanted is None else Steps(wanted, wanted)
    usual = sum(planned) if own else planned.learning
    return Steps(0, usual if wanted is None else wanted)


def _runs(output: Path) -> Path:
    return output.parent / f"{output.name}-runs"


def _training(job: Job) -> dict[str, Any]:
    """What the bundle records of how a network has learned; of one that is fine-tuned, beside what it says already."""
    facts = {"seed": job.seed, "fine_tuned": job.fine_tune, "early_stopping": (job.run / BEST).exists()}
    sources = OWN_SOURCES if job.uses_own_data else job.plan.sources
    if not job.fine_tune:
        return {"sources": sources + job.plan.begun, **_length(job), **facts}
    former = job.bundle.networks[job.network]["training"]
    sources = f"{former.get('sources', 'unknown')}; then {sources}"
    counted = any(key.startswith("fine_tuned_") for key in former)
    if "sources" not in former or (former.get("fine_tuned") and not counted):
        return {"sources": sources, **_length(job), **facts}  # how long it has learned in all is not known
    epochs = job.learning_scheme.epochs
    key, count = ("fine_tuned_steps", job.steps.learning) if epochs is None else ("fine_tuned_epochs", epochs)
    recipe = {} if job.network in NEEDED else {"recipe": job.scheme}
    return {**former, "sources": sources, **recipe, **facts, key: former.get(key, 0) + count}


def _length(job: Job) -> dict[str, Any]:
    """How long a network has learned."""
    if job.network in NEEDED:
        return {"steps": list(job.steps)}
    epochs = job.learning_scheme.epochs
    return {"recipe": job.scheme, **({"steps": list(job.steps)} if epochs is None else {"epochs": epochs})}


def _put(output: Path, job: Job, records: dict[str, NetworkRecord], found: dict[str, Any] | None) -> None:
    """Into the bundle as it is now, as others may have put networks into it meanwhile.

    Args:
        output: bundle.
        job: what was trained.
        records: its network, and what else belongs to it.
        found: settings that belong to a classifier, in place of an older one's; None for other networks.
    """
    base = open_begun_bundle(output) or job.base
    output.parent.mkdir(parents=True, exist_ok=True)
    if base:
        kept = {name: value for name, value in base.settings.items() if name != "appearance"}
        settings = None if found is None else kept | found
        told = _told(base, job, records[job.network])
        # Where two trainings begin one bundle, the first to end may have had less to begin with.
        missing = [] if job.base is None else [n for n in job.base.networks if n not in base.networks]
        carried = {n: _record(job.bundle, n) for n in missing}
        revise_bundle(base.folder, output, networks=carried | records, settings=settings, **told)
        return
    write_bundle(
        output,
        name=NAME,
        version=FIRST_VERSION,
        networks=records,
        settings=SETTINGS,
        model_card=NEW_CARD,
        license_text=OWN_TERMS if job.uses_own_data else RESEARCH_TERMS,
    )


def _record(bundle: Bundle, network: str) -> NetworkRecord:
    """A bundle's network, to be put into another one."""
    said = bundle.network(network)
    return NetworkRecord(said["architecture"], said["preprocessing"], bundle.weights(network), said["training"])


def _fit_to_answers(
    job: Job, classifier: VolumeClassifier, sources: str, sensitivity: float
) -> tuple[NetworkRecord, dict[str, Any]]:
    """What belongs to a classifier: the distance from its training scans, and settings for calibration and appearance.

    Calibrated on the scans for validation; what is usual is learned of these and of those for training.
    """
    validation = job.examples("validation")
    known = [*job.examples("train"), *validation]
    shown = [diagnosis.in_window(example, share) for example in known for share in USUAL_WINDOWS]
    appearance = fit_appearance([example.appearance for example in shown], min(len(e.ct) for e in known))
    patients = [*job.patients("train"), *job.patients("validation")]
    averages, false_alarms = average_maps(classifier, shown), left_to_distance(len(known))
    usual = fit_novelty(
        averages,
        false_alarms,
        len(USUAL_WINDOWS),
        patients if all(patients) else None,
        [example.covid for example in known],
    )
    facts = {"sources": sources, "scans": len(known)}
    settings = {"diagnosis": calibrate(classifier, validation, sensitivity)}
    _tell_threshold(settings["diagnosis"], classifier, validation)
    if appearance:
        settings["appearance"] = appearance._asdict()
    return NetworkRecord({}, {}, usual.state_dict(), facts), settings


def _tell_threshold(fitted: dict[str, Any], classifier: VolumeClassifier, validation: list[Example]) -> None:
    """What the threshold means on the scans that it was chosen on."""
    logit = fitted["slope"] * score_differences(classifier, validation) + fitted["offset"]
    called, covid = expit(logit) >= fitted["threshold"], np.array([e.covid for e in validation])
    print(
        f"Threshold {fitted['threshold']:.3f}: of the scans for validation it calls {called[covid == 1].sum()} of "
        f"{covid.sum()} COVID-19 and {called[covid == 0].sum()} of {(1 - covid).sum()} others."
    )
    if called.all():
        print("At this threshold all are called: choose another --sensitivity, or label more scans for validation.")


def _fingerprint(output: Path, network: str) -> str:
    """Of the bundle's network, or empty."""
    bundle = open_begun_bundle(output)
    return bundle.fingerprint((network,)) if bundle and network in bundle.networks else ""


def _tell_what_is_stale(output: Path, network: str) -> None:
    """Networks of the bundle that learned from what another one made of the scans before."""
    networks = open_bundle(output).networks
    if network == "lesions" and networks.get("involvement", {}).get("architecture", {}).get("outputs", 1) > 1:
        return  # 2DS draws the masks alone, and the classifier is not told the classes
    stale = [n for n, on in BUILT_ON.items() if network in on and n in networks]
    if stale:
        print(f"The bundle's {' and '.join(stale)} learned beside another {network}: train {_them(stale)} again.")


def _tell_what_was_replaced_meanwhile(output: Path, job: Job) -> None:
    """Networks that another training has put into the bundle since this one began to build on them."""
    on = BUILT_ON.get(job.network, ())
    replaced = [n for n in on if _fingerprint(output, n) != job.bundle.fingerprint((n,))]
    if replaced:
        print(f"Replaced in the bundle while this ran: {' and '.join(replaced)}. Train {job.network} again.")


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "both, in this order,"


def _told(bundle: Bundle, job: Job, record: NetworkRecord) -> dict[str, Any]:
    """Terms of a bundle that a network is put into; version and model card where the network is replaced."""
    terms = {} if job.uses_own_data or bundle.license_text != OWN_TERMS else {"license_text": RESEARCH_TERMS}
    network = job.network
    if network not in bundle.networks:
        return terms
    line = f"- `{network}`, on: {record.training['sources']}."
    lines = [*(n for n in section(bundle.model_card, HEADING).splitlines() if n.startswith("- ")), line]
    others = [n for n in lines if not n.startswith(f"- `{network}`")]
    text = "What stands above of these networks, and every number, is of the weights before.\n\n"
    return terms | {
        "version": changed_version(bundle.version, CHANGE),
        "model_card": with_section(bundle.model_card, HEADING, text + "\n".join([*others, line])),
    }
