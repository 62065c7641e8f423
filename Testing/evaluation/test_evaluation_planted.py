"""`covid-ct evaluate planted`: each class is planted alone, and what it is called is counted where it was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.ct import Volume, to_axial
from CovidCTDiagnosisLib.evaluation import planted
from CovidCTDiagnosisLib.evaluation.planted import SEEDS, SHARE, call_expert_lesions, plant_and_segment
from CovidCTDiagnosisLib.networks import LESION_CLASSES
from CovidCTDiagnosisLib.pipeline.compute import choose_device
from CovidCTDiagnosisLib.pipeline.lesions import Lesions
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.training.planting import plant_lesions
from CovidCTDiagnosisLib.training.sources import read_lesion_slices


@pytest.fixture(scope="module")
def chest(chest_phantom: Callable[..., Volume]) -> Volume:
    return to_axial(chest_phantom(spacing=(4.0, 4.0, 5.0)))


@pytest.fixture(scope="module")
def lungs(chest: Volume) -> np.ndarray:
    inside = chest.voxels < -700
    inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    return (inside & (np.indices(inside.shape)[0] > 15)).astype(np.uint8)


@pytest.mark.parametrize("kind", range(1, len(LESION_CLASSES)))
def test_one_class_can_be_asked_for(chest: Volume, lungs: np.ndarray, kind: int) -> None:
    hu = chest.voxels.astype(np.float32)
    for seed in range(3):
        _, labels = plant_lesions(np.random.default_rng(seed), hu, lungs > 0, (5.0, 4.0, 4.0), SHARE, kind)
        assert set(np.unique(labels)) == {0, kind}


def test_what_is_found_of_each_class_is_counted_by_name(
    chest: Volume, lungs: np.ndarray, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmentation that finds the brightest half of the lungs' change and calls the upper half of it class 3."""
    seen: list[Volume] = []

    def segment(ct: Volume, given: np.ndarray, *_: object, widen: bool) -> Lesions:
        assert given is lungs and not widen
        seen.append(ct)
        labels = ((ct.voxels - chest.voxels > 100) & (lungs > 0)).astype(np.uint8)
        labels[len(labels) // 2 :] *= 3
        return Lesions(labels, lungs, *[np.zeros(0)] * 2, None)  # type: ignore[arg-type]

    monkeypatch.setattr(planted, "segment_lesions", segment)
    models = Models(open_bundle(tiny_bundle), choose_device("cpu"))
    found = list(plant_and_segment(chest, lungs, models))
    assert [f.kind for f in found] == [k for k in range(1, len(LESION_CLASSES)) for _ in SEEDS]
    for one, ct in zip(found, seen, strict=True):
        assert one.dice > 0.6 and sum(one.named) == pytest.approx(1)
        assert one.named[0] > 0 and one.named[2] > 0 and one.named[1] == one.named[3] == 0
        changed = ct.voxels != chest.voxels
        assert not changed[lungs == 0].any() and changed.any()


def test_crazy_paving_of_real_slices_is_called_so(training_data: Path) -> None:
    """By the shipped networks, in slice 15, a textbook picture of it, far more than in three others."""
    slices = [case for case in read_lesion_slices(training_data) if case.name.endswith(("/15", "/35", "/40", "/53"))]
    assert len(slices) == 4
    called = call_expert_lesions(slices, Models(open_bundle(), choose_device("cpu")))
    (name, most), (_, second), *_ = called.paved.items()
    assert name == "lesion_slices/15" and most > 2 * second
    assert all(sum(shares) == pytest.approx(1) for shares in called.named.values())
