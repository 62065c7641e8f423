"""Relevance of the COVID-19 score (or another), back on the CT's grid with its mass kept (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..ct.regrid import share_back
from ..ct.volume import Volume
from ..relevance import explain
from ..relevance.composite import ALPHA, BETA, GATE, TARGET, Target
from .diagnosis import SLICES_AT_ONCE, ClassifierInput
from .models import Models
from .relevance_places import relevance_places


@dataclass(frozen=True)
class Relevance:
    """Signed relevance per input branch, and what the study says of it.

    Attributes:
        target: the output that was explained.
        maps: ``ct`` and ``lesions``, float32 (K, J, I) on the axial grid; whoever needs memory may take them out.
        totals: sum of either map.
        score: that was propagated.
        places: of either branch, see ``relevance_places``.
        ledger: one entry per layer.
    """

    target: Target
    maps: dict[str, np.ndarray]
    totals: dict[str, float]
    score: float
    places: dict[str, dict[str, float | None]]
    ledger: list[dict[str, Any]]


def explain_diagnosis(
    inputs: ClassifierInput,
    axial: Volume,
    lungs: np.ndarray,
    lesions: np.ndarray,
    models: Models,
    report: Callable[[float], None],
    target: Target = TARGET,
) -> Relevance:
    """Propagate a score to both inputs and share it over the CT's voxels inside the lungs.

    Args:
        inputs: what the classifier saw.
        axial: the CT.
        lungs: uint8 (K, J, I) on its grid, 1 right, 2 left.
        lesions: uint8 (K, J, I) on its grid, not 0 in lesions.
        models: gives the network ``classifier``.
        report: gets the fraction of the work done.
        target: whose score: that for COVID-19, that against it, or the difference of the two.
    """
    explanation = explain(
        models.network("classifier"),
        *(x.to(models.device) for x in (inputs.ct, inputs.lesions, inputs.inside)),
        target=target,
        chunk=SLICES_AT_ONCE,
        progress=lambda done, planned: report(0.8 * done / planned),
    )
    support = lungs > 0
    maps = {
        name: share_back(m[:, 0].cpu().numpy(), inputs.grid, axial.shape, axial.spacing[::-1], support)
        for name, m in (("ct", explanation.ct), ("lesions", explanation.lesions))
    }
    totals = {name: float(m.sum(dtype=np.float64)) for name, m in maps.items()}
    places = {name: relevance_places(m, lungs, lesions) for name, m in maps.items()}
    return Relevance(target, maps, totals, explanation.score, places, [_entry(asdict(e)) for e in explanation.ledger])


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {"layer": entry.pop("layer"), "in": entry.pop("incoming"), "out": entry.pop("outgoing"), **entry}


def _positive_sums(voxels: np.ndarray, axis: int) -> np.ndarray:
    """Sum of what is above zero in every slice across an axis."""
    slices = np.moveaxis(voxels, axis, 0)
    return np.array([plane[plane > 0].sum(dtype=np.float64) for plane in slices])


def describe_relevance(relevance: Relevance, ct: Volume, images: dict[str, Volume]) -> dict[str, Any]:
    """The study's account: totals, parameters, ledger, and the CT's slices in order of positive relevance.

    Slices are counted along the axis of the CT's own grid that runs nearest to the patient's long axis.
    """
    names = ("relevance_ct", "relevance_lesions")
    positive = [_positive_sums(images[name].voxels, ct.long_axis) for name in names]
    order = np.argsort(-(positive[0] + positive[1]), kind="stable")
    return {
        "target": relevance.target,
        "total_ct": relevance.totals["ct"],
        "total_lesions": relevance.totals["lesions"],
        "score": relevance.score,
        "rule": {
            "name": "composite: LRP-0, alpha-beta, winner-take-all, zB",
            "alpha": ALPHA,
            "beta": BETA,
            "gate": GATE,
        },
        "slices": [
            {
                "index": int(k),
                "relevance_ct": float(positive[0][k]),
                "relevance_lesions": float(positive[1][k]),
            }
            for k in order
            if positive[0][k] + positive[1][k] > 0
        ],
        "places": relevance.places,
        "ledger": relevance.ledger,
    }
