"""Scans as the classifier sees them, kept from one run to the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct.regrid import WorkingGrid
from CovidCTDiagnosisLib.pipeline.diagnosis import ClassifierInput
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.examples import prepare_examples


@dataclass(frozen=True)
class Even:
    """A scan of one grey value."""

    digest: str
    grey: float
    name: str = "scan"
    covid: int = 1

    def classifier_input(self, models: Models, longest_side: int) -> ClassifierInput:
        ct = torch.full((1, 1, 4, 4), self.grey)
        return ClassifierInput(ct, ct * 0, ct > 0, WorkingGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1, 4, 4)))


def test_a_scan_that_has_changed_is_not_taken_from_the_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    scans = Even("a", 1.0), Even("a", 0.0), Even("b", 0.2)
    first, again, changed = (prepare_examples([scan], models, tmp_path)[0].ct for scan in scans)
    assert torch.equal(first, again) and not torch.equal(first, changed)
