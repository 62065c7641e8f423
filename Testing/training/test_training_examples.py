"""Scans as the classifier sees them, kept from one run to the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct.regrid import WorkingGrid
from CovidCTDiagnosisLib.errors import InputError, UsageError
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
    picture: bool = False
    error: Exception | None = None

    def classifier_input(self, models: Models, longest_side: int) -> ClassifierInput:
        if self.error:
            raise self.error
        ct = torch.full((1, 1, 4, 4), self.grey)
        return ClassifierInput(ct, ct * 0, ct > 0, WorkingGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1, 4, 4)))


def test_a_scan_that_has_changed_is_not_taken_from_the_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    scans = Even("a", 1.0), Even("a", 0.0), Even("b", 0.2)
    first, again, changed = (prepare_examples([scan], models, tmp_path)[0].ct for scan in scans)
    assert torch.equal(first, again) and not torch.equal(first, changed)


def test_all_scans_that_cannot_be_used_are_named_also_folders_of_several_series(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    several = UsageError("2 series could be the chest CT: 1; 2.", "Choose one with --series NUMBER.")
    scans = [
        Even("a", 1.0, "two-kernels", error=several),
        Even("b", 1.0, "good", picture=True),
        Even("c", 1.0, "empty", error=InputError("It shows no lungs.", "")),
    ]
    with pytest.raises(InputError, match=r"two-kernels: 2 series could.*\n  empty: It shows no lungs") as caught:
        prepare_examples(scans, models, tmp_path)
    assert "--series" not in caught.value.remedy and "give the one series" in caught.value.remedy
    (example,) = prepare_examples(scans[1:2], models, tmp_path)
    assert example.picture
