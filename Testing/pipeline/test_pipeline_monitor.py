"""Progress never goes back, stages are timed, a run can be stopped."""

from __future__ import annotations

import time

import pytest
from CovidCTDiagnosisLib.errors import Cancelled
from CovidCTDiagnosisLib.pipeline import Event, Monitor
from CovidCTDiagnosisLib.pipeline.monitor import STAGES
from hypothesis import given
from hypothesis import strategies as st


def test_the_stages_share_the_whole() -> None:
    assert sum(STAGES.values()) == pytest.approx(1)
    assert list(STAGES) == ["reading", "lungs", "lesions", "diagnosis", "relevance", "writing"]


@given(st.lists(st.lists(st.floats(0, 1.5), max_size=6), min_size=6, max_size=6))
def test_progress_never_goes_back_whatever_the_stages_report(fractions: list[list[float]]) -> None:
    events: list[Event] = []
    monitor = Monitor(emit=events.append)
    for name, reports in zip(STAGES, fractions, strict=True):
        with monitor.stage(name, name.title()):
            for fraction in reports:
                monitor.report(fraction)
    progress = [e["progress"] for e in events]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 1
    assert [s for n, s in enumerate(e["stage"] for e in events) if n == 0 or s != events[n - 1]["stage"]] == [*STAGES]
    assert {(e["event"], e["message"]) for e in events} == {("stage", name.title()) for name in STAGES}


def test_a_stage_moves_through_its_own_share() -> None:
    events: list[Event] = []
    monitor = Monitor(emit=events.append)
    with monitor.stage("lesions", "Lesions"):
        monitor.report(0.5)
    assert [e["progress"] for e in events] == pytest.approx([0.3, 0.55, 0.8])


def test_many_small_reports_are_not_all_told() -> None:
    events: list[Event] = []
    monitor = Monitor(emit=events.append)
    with monitor.stage("diagnosis", "Diagnosis"):
        for n in range(10_000):
            monitor.report(n / 10_000)
    assert 10 < len(events) < 100


def test_stages_are_timed() -> None:
    monitor = Monitor()
    with monitor.stage("lungs", ""):
        time.sleep(0.05)
    with monitor.stage("lesions", ""):
        pass
    assert list(monitor.timings_s) == ["lungs", "lesions"]
    assert 0.05 <= monitor.timings_s["lungs"] < 1 and monitor.timings_s["lesions"] < 0.05


def test_a_cancelled_run_stops_at_the_next_report_and_says_nothing_more() -> None:
    events: list[Event] = []
    asked = False
    monitor = Monitor(emit=events.append, cancelled=lambda: asked)
    with pytest.raises(Cancelled), monitor.stage("lungs", ""):
        monitor.report(0.5)
        asked = True
        before = len(events)
        monitor.report(0.6)
    assert len(events) == before and "lungs" not in monitor.timings_s


def test_warnings_are_told_once_and_kept() -> None:
    events: list[Event] = []
    monitor = Monitor(emit=events.append)
    monitor.warn("Thick slices.")
    monitor.warn("Thick slices.")
    assert events == [{"event": "warning", "message": "Thick slices."}] and monitor.warnings == ["Thick slices."]
