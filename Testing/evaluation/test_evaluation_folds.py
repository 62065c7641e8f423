"""Networks of the folds: none learns from the slices that it is scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.training import folds as module
from CovidCTDiagnosisLib.training.folds import FOLDS, SEGMENTING_NETWORKS, Folds, held_out
from CovidCTDiagnosisLib.training.lesions import LesionCases
from CovidCTDiagnosisLib.training.lungs import LungCases
from CovidCTDiagnosisLib.training.sources import read_lesion_slices


@pytest.mark.parametrize("fold", range(FOLDS))
def test_a_folds_networks_have_never_seen_its_slices(
    fold: int, small_data: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts, bundle = read_lesion_slices(small_data), open_bundle(tiny_bundle)
    seen: dict[str, set[str]] = {}

    class Trained:
        def __init__(self, network: str) -> None:
            self.network = network

        def state_dict(self) -> dict[str, Any]:
            return bundle.weights(self.network)

    def train_lungs(cases: LungCases, *_: Any) -> Trained:
        seen["lungs"] = {case.name for case in cases.expert}
        return Trained("lungs")

    def train_lesions(network: str, cases: LesionCases, *_: Any) -> Trained:
        seen[network] = {case.name for case in cases.expert}
        return Trained(network)

    monkeypatch.setattr(module, "fetch_sample", lambda name: tmp_path)
    monkeypatch.setattr(module, "lung_cases", lambda *_: LungCases([], expert=experts))
    monkeypatch.setattr(module, "lesion_cases", lambda *_: LesionCases(expert=experts))
    monkeypatch.setattr(module, "train_lungs", train_lungs)
    monkeypatch.setattr(module, "train_lesions", train_lesions)
    made = Folds(small_data, tmp_path, bundle, networks=SEGMENTING_NETWORKS).trained(fold)
    kept = {case.name for case in held_out(experts, fold)}
    assert kept and seen == dict.fromkeys(SEGMENTING_NETWORKS, {case.name for case in experts} - kept)
    for network in SEGMENTING_NETWORKS:
        assert made.networks[network]["training"]["held_out"] == sorted(kept)
