"""One analysis, watched: seconds, multiply-accumulates and peak memory of each stage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch.utils.flop_counter import FlopCounterMode

from ..bundle import Bundle
from ..ct import read_scan
from ..pipeline import Event, Monitor, analyze
from ..pipeline.memory import peak_memory_mb


@dataclass
class StageProfile:
    """What a stage took; memory is the whole process's largest resident size during it."""

    seconds: float = 0.0
    macs: int = 0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Profile:
    """All stages, and the whole process's peak memory (MB, 10^6 bytes)."""

    stages: dict[str, StageProfile]
    peak_mb: float


class _MemoryWatch(threading.Thread):
    """Samples the resident size into the current stage."""

    def __init__(self, stages: dict[str, StageProfile]) -> None:
        super().__init__(daemon=True)
        self.stages, self.current, self.stopped = stages, "", threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self.stopped.wait(0.02):
            stage = self.stages.get(self.current)
            if stage is not None:
                stage.peak_mb = max(stage.peak_mb, process.memory_info().rss / 1e6)


def profile_analysis(scan: Path, bundle: Bundle, device: str) -> Profile:
    """Analyze a CT twice and watch; nothing is written.

    The first time gives seconds and memory. The second counts multiply-accumulates: half of what torch's own
    counter calls FLOPs, all convolutions and matrix products, those of relevance propagation too. The
    counter costs time and memory itself, so it has a run of its own.
    """
    stages: dict[str, StageProfile] = {}
    watch = _MemoryWatch(stages)

    def enter(event: Event) -> None:
        if event["event"] == "stage":
            stages.setdefault(event["stage"], StageProfile())
            watch.current = event["stage"]

    watch.start()
    timings = _analyze(scan, bundle, device, enter)
    watch.stopped.set()
    watch.join()
    for name, seconds in timings.items():
        stages[name].seconds = seconds
    peak_mb = peak_memory_mb()
    _count_macs(stages, scan, bundle, device)
    return Profile(stages, peak_mb)


def _count_macs(stages: dict[str, StageProfile], scan: Path, bundle: Bundle, device: str) -> None:
    counter = FlopCounterMode(display=False)
    current, before = "", 0

    def enter(event: Event) -> None:
        nonlocal current, before
        if event["event"] != "stage":
            return
        if event["stage"] != current:
            current, before = event["stage"], counter.get_total_flops()
        stages[current].macs = (counter.get_total_flops() - before) // 2

    with counter:
        _analyze(scan, bundle, device, enter)


def _analyze(scan: Path, bundle: Bundle, device: str, emit: Callable[[Event], None]) -> dict[str, float]:
    """Wall seconds of each stage."""
    monitor = Monitor(emit=emit)
    with monitor.stage("reading", "Reading the CT"):
        ct = read_scan(scan)
    analyze(ct, bundle, name=scan.name, device=device, monitor=monitor)
    return monitor.timings_s
