"""The CPU takes over from a graphics card without enough memory, whatever runs there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import open_bundle, revise_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.errors import BundleError
from CovidCTDiagnosisLib.pipeline.diagnosis import Diagnosis, classifier_input, diagnose
from CovidCTDiagnosisLib.pipeline.lesions import usual_source
from CovidCTDiagnosisLib.pipeline.models import Models

CPU = torch.device("cpu")


def test_the_cpu_diagnoses_where_the_card_is_full(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    ct = Volume(rng.integers(-900, -300, (24, 40, 60)).astype(np.int16), (2.0, 2.0, 3.0))
    lungs = np.ones(ct.shape, np.uint8)
    inputs = classifier_input(ct, lungs, lungs, slice_mm=3, longest_side=48)
    card = Models(open_bundle(tiny_bundle), torch.device("meta"))
    tried, warnings = list[torch.device](), list[str]()

    def diagnose_if_it_fits(models: Models) -> Diagnosis:
        tried.append(models.device)
        if models.device != CPU:
            raise torch.OutOfMemoryError
        return diagnose(inputs, models, lambda fraction: None)

    found = card.on_card_or_cpu(diagnose_if_it_fits, warnings.append)
    assert tried == [torch.device("meta"), CPU]
    assert found == diagnose(inputs, Models(card.bundle, CPU), lambda fraction: None)
    assert len(warnings) == 1 and warnings[0].startswith("The graphics card has not enough memory: the CPU is used")


def test_who_draws_is_known_without_a_network_on_the_card(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "network", None)
    assert usual_source(Models(open_bundle(tiny_bundle), torch.device("meta"))) == "both"
    assert usual_source(Models(open_bundle(), torch.device("meta"))) == "involvement"


def test_a_network_that_is_not_there_is_named(tiny_bundle: Path) -> None:
    models = Models(replace(open_bundle(tiny_bundle), networks={}), CPU)
    for ask in (models.network, models.preprocessing):
        with pytest.raises(BundleError, match="has no network lungs"):
            ask("lungs")


@pytest.mark.parametrize("device, error", [("cpu", MemoryError), ("meta", ZeroDivisionError), ("meta", RuntimeError)])
def test_other_errors_and_a_full_computer_reach_the_caller(
    tiny_bundle: Path, device: str, error: type[Exception]
) -> None:
    tried, warnings = list[Models](), list[str]()

    def fail(models: Models) -> None:
        tried.append(models)
        raise error

    with pytest.raises(error):
        Models(open_bundle(tiny_bundle), torch.device(device)).on_card_or_cpu(fail, warnings.append)
    assert len(tried) == 1 and not warnings


def test_only_the_classifier_needs_the_calibration(tiny_bundle: Path, tmp_path: Path) -> None:
    models = Models(revise_bundle(tiny_bundle, tmp_path / "raw", settings={}), CPU)
    models.require("lungs", "lesions", "involvement")
    with pytest.raises(BundleError, match="has no calibration of the diagnosis"):
        models.require("lungs", "classifier")
    with pytest.raises(BundleError, match="has no network novelty"):
        models.require("novelty")
