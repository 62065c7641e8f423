"""What an explanation costs beside the classifier's forward pass, and beside zennit on the same network and input."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UsageError
from ..networks import VolumeClassifier
from ..pipeline.compute import channels_last
from ..pipeline.diagnosis import SLICES_AT_ONCE, ClassifierInput
from ..relevance import explain
from .zennit_peer import import_zennit, zennit_maps

RUNS = 5
PAPER_RATIO = 27.65 / 3.55
"""Of Table 5: "FLOPs" of the explanation over those of the classification."""


class Cost(NamedTuple):
    """Median wall seconds, and multiply-accumulates."""

    seconds: float
    macs: int


def relevance_costs(classifier: VolumeClassifier, inputs: ClassifierInput) -> dict[str, Cost]:
    """Costs of ``forward``, ``relevance`` (with its own forward pass) and, where it is installed, ``zennit``.

    Args:
        classifier: on the CPU; its layout in memory becomes that in use.
        inputs: one volume.
    """
    classifier = channels_last(classifier)
    ct, lesions = (x.to(memory_format=torch.channels_last) for x in (inputs.ct, inputs.lesions))
    inside = inputs.inside.to(ct)

    def forward() -> None:
        chunks = zip(ct.split(SLICES_AT_ONCE), lesions.split(SLICES_AT_ONCE), strict=True)
        with torch.inference_mode():
            classifier.scores(torch.cat([classifier.slice_features(c, m) for c, m in chunks]))

    def relevance() -> None:
        explain(classifier, ct, lesions, inside, chunk=SLICES_AT_ONCE)

    jobs: dict[str, Callable[[], object]] = {"forward": forward, "relevance": relevance}
    if _has_zennit():
        jobs["zennit"] = lambda: zennit_maps(classifier, ct, lesions)
    # In turn, so that a disturbance meets all alike.
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(RUNS):
        for name, job in jobs.items():
            begun = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - begun)
    return {name: Cost(statistics.median(seconds[name]), _macs(job)) for name, job in jobs.items()}


def _macs(job: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops() // 2


def _has_zennit() -> bool:
    try:
        import_zennit()
    except UsageError:
        return False
    return True


def relevance_table(costs: dict[str, Cost]) -> list[str]:
    """Lines of text: each cost, and how many forward passes it is."""
    names = {"forward": "forward pass", "relevance": "with relevance", "zennit": "with zennit"}
    lines = [f"{'classifier':16}{'seconds':>9}{'x':>7}{'GMAC':>9}{'x':>7}"]
    base = costs["forward"]
    for name, cost in costs.items():
        time_ratio, work_ratio = cost.seconds / base.seconds, cost.macs / base.macs
        lines.append(f"{names[name]:16}{cost.seconds:9.2f}{time_ratio:7.1f}{cost.macs / 1e9:9.1f}{work_ratio:7.1f}")
    lines.append(f"{'paper':16}{'':16}{'':9}{PAPER_RATIO:7.1f}")
    if "zennit" not in costs:
        lines.append("zennit is not installed: pip install --no-deps zennit")
    return lines
