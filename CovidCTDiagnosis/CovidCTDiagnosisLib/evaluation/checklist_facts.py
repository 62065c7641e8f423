"""What a table of predictions and a bundle say of items of the checklist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import __version__
from ..bundle import Bundle
from ..training.record import OWN_SOURCES, PAPER, PHOTOGRAPHS
from .checklist import AUTHORS
from .confusion import Confusion
from .metrics import interval_text
from .predictions import Prediction, Predictions

Facts = dict[int | str, str]
"""Text by CLAIM's number of the item, or the number of STARD where CLAIM has none."""


def facts_of_predictions(predictions: Predictions, confusion: Confusion, threshold: float) -> Facts:
    """What a table says.

    Args:
        predictions: the table.
        confusion: of the scans that are judged.
        threshold: COVID-19 from this probability on.
    """
    scans = predictions.tested.scans
    covid = sum(s.covid for s in scans)
    given = len(predictions.scans) + len(predictions.undiagnosed)
    warned = sum(s.warned for s in scans)
    facts: Facts = {
        13: f"{len(predictions.undiagnosed)} scans without a probability, left out",
        19: f"{len(scans)} scans, {covid} COVID-19; how the number was chosen: {AUTHORS}",
        21: _disjoint(predictions.scans),
        33: f"{given} scans given, {len(predictions.scans)} diagnosed, {len(scans)} of them judged here",
        35: _counts(confusion),
        "12a": f"a probability of {threshold:g} or more; whether chosen beforehand: {AUTHORS}",
        "15": "every scan with a probability is called"
        + (f"; {warned} with a warning not to rely on it count like the others" if warned else ""),
    }
    splits = Counter(s.split for s in predictions.scans if s.split)
    if splits:
        facts[20] = ", ".join(f"{name}: {count}" for name, count in sorted(splits.items()))
    centres = {s.centre for s in scans if s.centre}
    if centres:
        facts[7] = f"{len(centres)} centre{'s' if len(centres) > 1 else ''}: {', '.join(sorted(centres))}"
    if any(s.co_rads is not None for s in scans):
        facts[34] = f"CO-RADS by status: on this page; all else: {AUTHORS}"
    sick = [s.involvement_percent for s in scans if s.covid and s.involvement_percent is not None]
    if sick:
        low, middle, high = np.percentile(sick, [25, 50, 75])
        facts["21a"] = f"percentage of involvement, median {middle:.1f} (quartiles {low:.1f} and {high:.1f})"
    return {key: text for key, text in facts.items() if text}


def _disjoint(scans: Sequence[Prediction]) -> str:
    """At which level splits share nothing, as far as the table tells."""
    if len({s.split for s in scans}) < 2:
        return ""
    if not all(s.patient for s in scans):
        named = "the patients of some only" if any(s.patient for s in scans) else "no patients"
        return f"scans, as far as the table tells: it names {named}"
    return f"patients: {len({s.patient for s in scans})} in {len(scans)} scans, none in two splits"


def facts_of_bundle(bundle: Bundle) -> Facts:
    """What a bundle says."""
    training = {name: network["training"] for name, network in bundle.networks.items()}
    facts: Facts = {
        7: "; ".join(f"{n} learned from {t['sources']}" for n, t in training.items() if "sources" in t),
        9: "CT to HU, window [-1000, 400], lungs masked, in-plane bounding box; see the model card",
        14: "of this table: " + AUTHORS + "; of what the bundle learned from: see its model card",
        22: f"{bundle.name} {bundle.version}: {', '.join(sorted(bundle.networks))}; see its model card",
        23: f"covid-ct-diagnosis {__version__} wrote this page; {_made_with(bundle)}",
        24: "; ".join(f"{n}: {_begun(n, t)}" for n, t in training.items() if "seed" in t),
        25: "; ".join(f"{n}: {_length(t)}, seed {t.get('seed')}" for n, t in training.items() if "seed" in t),
        26: "; ".join(f"{n}: {_chosen(n, t)}" for n, t in training.items() if "seed" in t),
        27: "; ".join(f"{n}: mean of {count} networks" for n, count in _ensembles(bundle)) or "none",
        30: f"scans spoilt on purpose (evaluate diagnosis --spoil): see the model card; on these data: {AUTHORS}",
        31: "layer-wise relevance propagation, written with every study",
        38: "see the model card; research use only",
        "13a": "the program sees the images alone",
    }
    return {key: text for key, text in facts.items() if text}


def _made_with(bundle: Bundle) -> str:
    """The packages that the weights were made with."""
    return "the bundle was last written with " + ", ".join(f"{name} {n}" for name, n in bundle.written_with.items())


def _ensembles(bundle: Bundle) -> list[tuple[str, int]]:
    """Those of its networks that are several."""
    members = {name: network["architecture"].get("members", 1) for name, network in bundle.networks.items()}
    return [(name, count) for name, count in members.items() if count > 1]


def _begun(network: str, training: dict[str, Any]) -> str:
    """What a network's weights were before it learned."""
    if training.get("fine_tuned") and not training.keys() & {"fine_tuned_steps", "fine_tuned_epochs"}:
        return "those of the bundle before"
    if PHOTOGRAPHS in training.get("sources", ""):
        return "the contracting path's from photographs (ImageNet), the rest random"
    return "the CVAE's encoder, the rest random" if network == "classifier" else "random"


def _chosen(network: str, training: dict[str, Any]) -> str:
    """Which weights of a training were taken."""
    paper = training.get("recipe") == PAPER
    own = str(training.get("sources", "")).startswith(OWN_SOURCES) and "recipe" not in training
    # Older bundles do not say whether a training was stopped early.
    if training.get("early_stopping", own or (paper and network == "classifier")):
        kept = "scans for validation" if paper else "cases kept for early stopping"
        return f"smallest loss on the {kept}"
    if paper:
        return "the last weights"
    return "averaged weights after a fixed number of steps"


def _counts(confusion: Confusion) -> str:
    kinds = ("true_positive", "false_positive", "true_negative", "false_negative")
    counts = ", ".join(f"{getattr(confusion, kind)} {kind.replace('_', ' ')}s" for kind in kinds)
    rates = (interval_text(confusion.sensitivity), interval_text(confusion.specificity))
    return f"{counts}; sensitivity {rates[0]}, specificity {rates[1]}"


def _length(training: dict[str, Any]) -> str:
    """How long a network has learned, as its bundle records it."""
    steps = " + ".join(str(n) for n in training.get("steps", []) if n)
    first = f"{training['epochs']} epochs" if "epochs" in training else f"{steps} steps"
    units = (("fine_tuned_steps", " steps" if "epochs" in training else ""), ("fine_tuned_epochs", " epochs"))
    more = "".join(f", then {training[key]} more{unit}" for key, unit in units if key in training)
    return first + more
