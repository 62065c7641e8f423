"""Cross-validation of the segmentation networks over the expert slices.

Neighbouring slice numbers stay in one fold, as they may be one patient. Pre-training sees no expert slice and is
shared by all folds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from torch import nn

from ..bundle import Bundle, NetworkRecord, revise_bundle
from ..ct import fetch_sample
from .lesions import LesionCases, LesionNetwork, lesion_cases, train_lesions
from .loop import Hardware, Steps
from .lungs import LungCases, lung_cases, train_lungs
from .plans import PLANS, RECIPE, VOLUMETRIC
from .sources import Case, data_fingerprint

FOLDS = 5

SegmentingNetwork = Literal["lungs"] | LesionNetwork

SEGMENTING_NETWORKS: tuple[SegmentingNetwork, ...] = ("lungs", "involvement", "lesions")
MASKING_NETWORKS: tuple[SegmentingNetwork, ...] = ("lungs", "involvement")
"""Those that draw lungs and lesions, and tell consolidation from ground-glass opacity."""

Cases = TypeVar("Cases", LungCases, LesionCases)


def recipe_fingerprint(networks: Sequence[SegmentingNetwork], steps: Steps | None = None) -> str:
    """Tells apart how these networks are made and trained."""
    plans = [(network, tuple(steps or PLANS[network].steps), PLANS[network].architecture) for network in networks]
    return hashlib.sha256(f"{RECIPE} {plans}".encode()).hexdigest()[:8]


def held_out(cases: list[Case], fold: int) -> list[Case]:
    """The expert slices of a fold (0 to 4): a contiguous fifth in order of number."""
    first, last = (round(n * len(cases) / FOLDS) for n in (fold, fold + 1))
    return cases[first:last]


@dataclass(frozen=True)
class Folds:
    """Bundles that have not seen a fold's slices, trained where they are not there yet (hours on a CPU).

    Attributes:
        data: training data folder.
        folder: where runs and bundles are kept; a run that was stopped goes on.
        bundle: gives the other networks.
        machine_masks: whether slices with machine-made masks are learned from.
        steps: of each network, or the shipped bundle's.
        seed: of everything random.
        hardware: what to train on; runs in another precision are kept apart.
        networks: those that are trained; the others come from the bundle and have seen these slices.
    """

    data: Path
    folder: Path
    bundle: Bundle
    machine_masks: bool = True
    steps: Steps | None = None
    seed: int = 0
    hardware: Hardware | None = None
    networks: tuple[SegmentingNetwork, ...] = SEGMENTING_NETWORKS

    @cached_property
    def lungs(self) -> LungCases:
        """All cases of the lung network; reading them takes a minute."""
        return lung_cases(self.data, fetch_sample("chest-dicom"), self.machine_masks)

    @cached_property
    def lesions(self) -> LesionCases:
        """All cases of the lesion networks; reading them takes a minute."""
        return lesion_cases(self.data, fetch_sample("chest-dicom"), self.machine_masks)

    @cached_property
    def _data_fingerprint(self) -> str:
        return data_fingerprint(self.data)

    @property
    def _kind(self) -> Path:
        return self.folder / ("with-machine-masks" if self.machine_masks else "without-machine-masks")

    def trained(self, fold: int) -> Bundle:
        """The bundle of a fold, whose ``networks`` never saw the fold's slices."""
        records: dict[str, NetworkRecord] = {network: self._record(network, fold) for network in self.networks}
        some = "" if self.networks == SEGMENTING_NETWORKS else f"-{'-'.join(self.networks)}"
        target = self._kind / f"fold-{fold}{some}"
        target.parent.mkdir(parents=True, exist_ok=True)
        return revise_bundle(self.bundle.folder, target, networks=records)

    def _record(self, network: SegmentingNetwork, fold: int) -> NetworkRecord:
        plan = PLANS[network]
        steps = self.steps or plan.steps
        kept = {case.name for case in held_out(self.lesions.expert, fold)}
        runs = self._kind / f"runs-{self._data_fingerprint}"
        hardware = self.hardware or Hardware()
        if network in VOLUMETRIC:
            hardware = hardware.for_volumes()
        recipe = f"{network}-{'-'.join(map(str, steps))}-{self.seed}-{recipe_fingerprint((network,), steps)}"
        if hardware.precision:
            recipe += f"-{hardware.precision}"
        first, second = runs / f"{recipe}-pretrained", runs / f"{recipe}-fold-{fold}"
        trained: nn.Module
        if network == "lungs":
            trained = train_lungs(_without(self.lungs, kept), first, second, steps, self.seed, hardware)
        else:
            trained = train_lesions(network, _without(self.lesions, kept), first, second, steps, self.seed, hardware)
        learned = {"held_out": sorted(kept), "machine_masks": self.machine_masks, "steps": list(steps)}
        return NetworkRecord(plan.architecture, plan.preprocessing, trained.state_dict(), learned)


def _without(cases: Cases, kept: set[str]) -> Cases:
    return replace(cases, expert=[case for case in cases.expert if case.name not in kept])
