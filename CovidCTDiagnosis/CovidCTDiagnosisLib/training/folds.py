"""Cross-validation of the lesion networks over the expert slices.

Neighbouring slice numbers stay in one fold, as they may be one patient. The lung network learns from no expert
slice, so every fold takes it from a ready bundle; pre-training sees no expert slice either and is shared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..bundle import Bundle, NetworkRecord, revise_bundle
from ..ct import fetch_sample
from .lesions import LesionCases, LesionNetwork, lesion_cases, train_lesions
from .loop import Steps
from .sources import Case
from .train import PLANS

FOLDS = 5

NETWORKS: tuple[LesionNetwork, ...] = ("involvement", "lesions")


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
        bundle: gives the lung network.
        machine_masks: whether slices with machine-made masks are learned from.
        steps: of each network, or the shipped bundle's.
        seed: of everything random.
    """

    data: Path
    folder: Path
    bundle: Bundle
    machine_masks: bool = True
    steps: Steps | None = None
    seed: int = 0

    @cached_property
    def cases(self) -> LesionCases:
        """All cases; reading them takes a minute."""
        return lesion_cases(self.data, fetch_sample("chest-dicom"), self.machine_masks)

    @property
    def _kind(self) -> Path:
        return self.folder / ("with-machine-masks" if self.machine_masks else "without-machine-masks")

    def trained(self, fold: int) -> Bundle:
        """The bundle of a fold, whose lesion networks never saw the fold's slices."""
        records: dict[str, NetworkRecord] = {}
        for network in NETWORKS:
            plan = PLANS[network]
            steps = self.steps or plan.steps
            kept = {case.name for case in held_out(self.cases.expert, fold)}
            cases = replace(self.cases, expert=[case for case in self.cases.expert if case.name not in kept])
            runs = self._kind / "runs"
            trained = train_lesions(
                network, cases, runs / f"{network}-pretrained", runs / f"{network}-fold-{fold}", steps, self.seed
            )
            records[network] = NetworkRecord(
                plan.architecture,
                plan.preprocessing,
                trained.state_dict(),
                {"held_out": sorted(kept), "machine_masks": self.machine_masks, "steps": list(steps)},
            )
        target = self._kind / f"fold-{fold}"
        target.parent.mkdir(parents=True, exist_ok=True)
        return revise_bundle(self.bundle.folder, target, networks=records)
