"""Scans that are spoilt on purpose, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.evaluation.spoilt_scans import (
    SPOILT,
    Caught,
    _spoilt,
    diagnose_beyond_the_lungs,
    novelty_lines,
    spoil_and_diagnose,
)
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.sources import Series

AS_THEY_ARE = next(iter(SPOILT))


def test_every_kind_changes_the_picture_but_the_first() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    for kind in SPOILT:
        spoilt = _spoilt(kind, grey, np.random.default_rng(1))
        assert spoilt.dtype == np.uint8 and spoilt.shape == grey.shape
        assert np.array_equal(spoilt, grey) == (kind == AS_THEY_ARE)
    assert np.array_equal(_spoilt("inverted", grey, np.random.default_rng(1)), 255 - grey)
    assert len(np.unique(_spoilt("soft-tissue window", grey, np.random.default_rng(1)))) < 120


def test_scans_without_lungs_are_refused(tiny_bundle: Path, chest_phantom: Callable[..., Volume]) -> None:
    chest = chest_phantom(spacing=(3.0, 3.0, 5.0))
    series = [Series("p", [hu[None] for hu in chest.voxels[28:34:2]], 0)]
    models = Models(open_bundle(tiny_bundle), torch.device("cpu"))
    same, inverted = spoil_and_diagnose(series, models, (AS_THEY_ARE, "inverted"))
    assert (same.refused, same.scans) == (0, 1)
    assert inverted.kind == "inverted" and inverted.refused + inverted.warned <= inverted.scans


@pytest.mark.parametrize("count", [0, 7])
def test_the_table_has_a_line_a_kind(count: int) -> None:
    lines = [*novelty_lines([Caught("noise", 1, count, 20)])]
    low, share, high = {0: ("0.009", "0.050", "0.236"), 7: ("0.219", "0.400", "0.613")}[count]
    assert lines[1].split() == ["noise", "1", str(count), "20", share, f"[{low},", f"{high}]"]


def test_abdomen_and_neck_get_no_answer_without_a_warning() -> None:
    """Of the real sample CT, by the shipped bundle."""
    found = [*diagnose_beyond_the_lungs(Models(open_bundle(), torch.device("cpu")))]
    assert [(caught.kind, caught.refused + caught.warned, caught.scans) for caught in found] == [
        ("abdomen of a CT", 1, 1),
        ("neck of a CT", 1, 1),
    ]
