"""What the command line prints for people to read."""

from __future__ import annotations

import pytest
from CovidCTDiagnosisLib.console import print_findings


def test_printed_numbers_stand_below_their_side(capsys: pytest.CaptureFixture[str]) -> None:
    ml = {"right": 3000.0, "left": 2000.0, "both": 5000.0}
    lungs = {side: {"volume_ml": v, "mean_hu": -v / 10, "involvement_percent": v / 100} for side, v in ml.items()}
    lesions = [{"class": "consolidation", "side": side, "volume_ml": v / 1000} for side, v in reversed(ml.items())]
    document = {
        "diagnosis": {"probability": 0.7, "threshold": 0.5, "label": "COVID-19"},
        "measurements": {"lungs": lungs, "lesions": lesions},
        "input": {"name": "a", "size": [9, 9, 9], "spacing_mm": [1.0, 1.0, 1.0]},
        "relevance": {"slices": []},
        "timings_s": {},
    }
    print_findings(document, "study", False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["right", "left", "both"] in rows
    for row in (
        ["lung", "volume", "3000.0", "2000.0", "5000.0", "ml"],
        ["mean", "density", "-300.0", "-200.0", "-500.0", "HU"],
        ["involvement", "30.0", "20.0", "50.0", "%"],
        ["consolidation", "3.0", "2.0", "5.0", "ml"],
    ):
        assert row in rows
