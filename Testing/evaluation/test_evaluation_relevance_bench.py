"""The cost of an explanation: counted exactly, on the network and input that zennit gets too."""

from __future__ import annotations

import pytest
import torch
from CovidCTDiagnosisLib.ct.regrid import WorkingGrid
from CovidCTDiagnosisLib.evaluation.relevance_bench import Cost, relevance_costs, relevance_table
from CovidCTDiagnosisLib.networks import VolumeClassifier
from CovidCTDiagnosisLib.pipeline.diagnosis import ClassifierInput


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    inside = torch.zeros(20, 1, 96, 128, dtype=torch.bool)
    inside[..., 8:88, 8:56] = inside[..., 8:88, 72:120] = True
    ct = torch.rand(inside.shape) * inside
    grid = WorkingGrid((0.0, 0.0, 0.0), (3.0, 2.0, 2.0), (20, 96, 128))
    return relevance_costs(VolumeClassifier().eval(), ClassifierInput(ct, (ct > 0.8).float(), inside, grid))


def test_an_explanation_costs_at_most_five_forward_passes_in_work(costs: dict[str, Cost]) -> None:
    assert 3 < costs["relevance"].macs / costs["forward"].macs <= 5
    assert costs["zennit"].macs / costs["forward"].macs > 8


def test_the_forward_pass_is_counted_exactly(costs: dict[str, Cost]) -> None:
    pixels, neurons = 96 * 128, 512
    branch = pixels * 16 * 25 + pixels // 4 * 32 * 16 * 9 + pixels // 16 * 64 * 32 * 9
    whole = 20 * (2 * branch + 64 * 38 * neurons + 2 * neurons * 64) + 2 * neurons * 64
    assert costs["forward"].macs == pytest.approx(whole, rel=0.01)


def test_the_table_shows_both_ratios_side_by_side() -> None:
    lines = relevance_table({"forward": Cost(0.5, 10**9), "relevance": Cost(2.0, 4 * 10**9), "zennit": Cost(5, 10**10)})
    assert lines[2].split() == ["with", "relevance", "2.00", "4.0", "4.0", "4.0"]
    assert lines[3].split() == ["with", "zennit", "5.00", "10.0", "10.0", "10.0"]
    assert lines[-1].split() == ["paper", "7.8"]
    assert "zennit is not installed" in relevance_table({"forward": Cost(0.5, 10**9)})[-1]
