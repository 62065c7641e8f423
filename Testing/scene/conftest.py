"""A MRML scene like Slicer's own, and a small study of an oblique, anisotropic CT."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from CovidCTDiagnosisLib.ct.volume import Volume

SPACING = (1.4, 1.6, 5.0)
SHAPE = (36, 80, 90)  # (K, J, I)
# Where the middle of the grid lies in the patient, RAS mm.
MIDDLE_RAS = np.array([12.0, -34.0, -210.0])


def direction(left_handed: bool) -> np.ndarray:
    """Columns are i, j, k in LPS: turned by 11 degrees about S and 7 degrees about L; optionally feet first."""
    a, b = np.deg2rad([11.0, 7.0])
    about_s = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_l = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_s @ about_l @ np.diag([1.0, 1.0, -1.0 if left_handed else 1.0])


def grid(left_handed: bool) -> Volume:
    """An empty CT (-1000 HU) around `MIDDLE_RAS`."""
    turn = direction(left_handed)
    middle_ijk = (np.array(SHAPE[::-1]) - 1) / 2
    origin = MIDDLE_RAS * [-1, -1, 1] - turn @ (middle_ijk * SPACING)
    rows = tuple(tuple(map(float, row)) for row in turn)
    return Volume(np.full(SHAPE, -1000, np.int16), SPACING, tuple(map(float, origin)), rows)


def ras_of_voxels(volume: Volume) -> np.ndarray:
    """Voxel centres, RAS mm, (3, K, J, I)."""
    k, j, i = np.indices(volume.shape)
    lps = np.tensordot(volume.affine[:3], np.stack([i, j, k, np.ones_like(i)]), 1)
    return lps * np.array([-1, -1, 1]).reshape(3, 1, 1, 1)


def ball(volume: Volume, center_ras: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """The voxels within a ball, (K, J, I)."""
    center = np.reshape(center_ras, (3, 1, 1, 1))
    return np.linalg.norm(ras_of_voxels(volume) - center, axis=0) <= radius_mm


RIGHT_LUNG, LEFT_LUNG = (42.0, -34.0, -210.0), (-18.0, -34.0, -210.0)
OPACITY, CONSOLIDATION = (45.0, -44.0, -200.0), (-20.0, -24.0, -222.0)
HEAT = OPACITY


@dataclass(frozen=True)
class Phantom:
    """A CT with two lungs, an opacity in the right one, a consolidation in the left one, and its study."""

    ct: Volume
    folder: Path
    images: dict[str, np.ndarray]

    def write(self, **images: np.ndarray) -> Phantom:
        """The same study with other images."""
        changed = replace(self, images=self.images | images)
        for name, voxels in changed.images.items():
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing(self.ct.spacing)
            image.SetOrigin(self.ct.origin)
            image.SetDirection(np.ravel(self.ct.direction).tolist())
            sitk.WriteImage(image, str(self.folder / f"{name}.nii.gz"))
        return changed


@pytest.fixture(params=[False, True], ids=["right-handed", "left-handed"])
def phantom(request: pytest.FixtureRequest, tmp_path: Path) -> Phantom:
    ct = grid(request.param)
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[ball(ct, RIGHT_LUNG, 27)] = 1
    lungs[ball(ct, LEFT_LUNG, 27)] = 2
    lesions = np.zeros(SHAPE, np.uint8)
    lesions[ball(ct, OPACITY, 10)] = 1
    lesions[ball(ct, CONSOLIDATION, 10)] = 2
    distance = np.linalg.norm(ras_of_voxels(ct) - np.reshape(HEAT, (3, 1, 1, 1)), axis=0)
    relevance = (np.exp(-((distance / 12) ** 2)) - 0.1) * (lungs > 0) * 1e-6
    voxels = np.full(SHAPE, 40, np.int16)
    voxels[lungs > 0] = -850
    voxels[lesions > 0] = -300
    folder = tmp_path / "study"
    folder.mkdir()
    lung = {"volume_ml": 80.0, "mean_hu": -800.0, "involvement_percent": 5.0}
    (folder / "analysis.json").write_text(
        json.dumps(
            {
                "schema_version": "1.0",
                "input": {
                    "name": "phantom.nii.gz",
                    "size": list(ct.shape[::-1]),
                    "spacing_mm": list(ct.spacing),
                    "origin_mm": list(ct.origin),
                    "direction": [number for row in ct.direction for number in row],
                    "sha256": "0" * 64,
                },
                "bundle": {"name": "none", "version": "0.0.1", "files": {}},
                "device": {"type": "cpu", "name": "none", "threads": 1},
                "versions": {"python": "3", "torch": "2", "numpy": "2"},
                "timings_s": {},
                "peak_memory_mb": 1.0,
                "created": "2026-01-01T00:00:00Z",
                "diagnosis": {
                    "probability": 0.87,
                    "threshold": 0.5,
                    "label": "COVID-19",
                    "score": 1.0,
                    "scores": [-1.0, 1.0],
                },
                "relevance": {
                    "target": "covid",
                    "total_ct": 1.0,
                    "total_lesions": -2.0,
                    "score": 1.0,
                    "rule": {},
                    "slices": [],
                    "ledger": [],
                },
                "measurements": {
                    "lungs": {"right": lung, "left": lung, "both": lung},
                    "lesions": [
                        {"class": "any", "side": "both", "volume_ml": 8.0, "percent_of_lung": 5.0, "mean_hu": -400.0}
                    ],
                },
                "settings": {},
                "warnings": [],
            }
        )
    )
    images = {
        "lungs": lungs,
        "lesions": lesions,
        "relevance_ct": relevance.astype(np.float32),
        "relevance_lesions": (-2 * relevance).astype(np.float32),
    }
    return Phantom(ct.with_voxels(voxels), folder, {}).write(**images)


@pytest.fixture
def scene(new_scene: Callable[[], slicer.vtkMRMLScene]) -> slicer.vtkMRMLScene:
    return new_scene()


@pytest.fixture
def application_logic(scene: slicer.vtkMRMLScene) -> slicer.vtkMRMLApplicationLogic:
    """What Slicer's displayable managers ask for slice logics; there are none yet."""
    logic = slicer.vtkMRMLApplicationLogic()
    logic.SetMRMLScene(scene)
    return logic
