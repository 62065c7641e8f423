"""Progress, warnings and cancel: what a running analysis tells, and how it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import Cancelled

Event = dict[str, Any]

STAGES: Mapping[str, float] = {
    "reading": 0.05,
    "lungs": 0.25,
    "lesions": 0.5,
    "diagnosis": 0.05,
    "relevance": 0.1,
    "writing": 0.05,
}
"""Of an analysis, each with its share of the whole, from timings on two CPU cores."""


@dataclass
class Monitor:
    """Turns work done into events, times the stages, and stops the run when asked.

    Attributes:
        emit: gets every event, a JSON-ready dict as in the command line's contract.
        cancelled: asked after every piece of work; True raises Cancelled.
        stages: in order, each with its share of the whole.
        timings_s: wall seconds of each finished stage.
        warnings: texts of all warnings so far.
    """

    emit: Callable[[Event], None] = lambda event: None
    cancelled: Callable[[], bool] = lambda: False
    stages: Mapping[str, float] = field(default_factory=lambda: STAGES)
    timings_s: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    progress: float = 0.0
    _stage: str = ""
    _span: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def stage(self, name: str, message: str) -> Iterator[None]:
        """One of ``stages``, from its share of the progress bar's start to its end."""
        names = list(self.stages)
        start = sum(self.stages[n] for n in names[: names.index(name)])
        self._stage, self._span = name, (start, start + self.stages[name])
        self._message = message
        begun = time.perf_counter()
        self.report(0.0)
        yield
        self.timings_s[name] = time.perf_counter() - begun
        self.report(1.0)

    def report(self, fraction: float) -> None:
        """This fraction of the current stage's planned work is done.

        Raises:
            Cancelled: the user asked to stop.
        """
        if self.cancelled():
            raise Cancelled()
        start, stop = self._span
        progress = round(start + (stop - start) * min(fraction, 1.0), 3)
        if progress > self.progress or fraction in (0.0, 1.0):
            self.progress = max(progress, self.progress)
            self.emit(
                {
                    "event": "stage",
                    "stage": self._stage,
                    "progress": self.progress,
                    "message": self._message,
                }
            )

    def part(self, start: float, share: float) -> Callable[[float], None]:
        """Reports fractions of a part of the current stage, which begins at ``start`` and is this share of it."""
        return lambda fraction: self.report(start + share * fraction)

    def warn(self, text: str) -> None:
        """A warning for the user, kept for the study too; one that was given already is not repeated."""
        if text in self.warnings:
            return
        self.warnings.append(text)
        self.emit({"event": "warning", "message": text})
