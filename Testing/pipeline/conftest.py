"""A chest phantom with known lesions, and its analysis by the tiny bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from CovidCTDiagnosisLib.bundle import Bundle, open_bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.pipeline import Analysis, analyze

Vector = tuple[float, float, float]

CENTRE: Vector = (12.5, -140.0, 730.0)
SOLID: Vector = (CENTRE[0] - 70, CENTRE[1], CENTRE[2] + 25)
GLASS: Vector = (CENTRE[0] + 70, CENTRE[1] + 10, CENTRE[2] + 30)
RADIUS_MM = 18.0


class Sick(NamedTuple):
    """A phantom with a consolidation (30 HU) in the right lung and ground glass (-450 HU) in the left."""

    ct: Volume
    solid: np.ndarray
    glass: np.ndarray


def ball(volume: Volume, centre: Vector, radius: float) -> np.ndarray:
    """Voxels within a distance (mm) of a point in LPS."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")
    affine = volume.affine
    offset = np.tensordot(affine[:3, :3], np.stack([i, j, k]), 1)
    offset += (affine[:3, 3] - np.array(centre))[:, None, None, None]
    return (offset**2).sum(0) < radius**2


@pytest.fixture(scope="session")
def sick_phantom(chest_phantom: Callable[..., Volume]) -> Callable[..., Sick]:
    """`sick_phantom(...)` takes what `chest_phantom` takes."""

    def make(**options: object) -> Sick:
        healthy = chest_phantom(centre=CENTRE, **{"spacing": (4.0, 4.0, 5.0), **options})
        solid, glass = (ball(healthy, centre, RADIUS_MM) for centre in (SOLID, GLASS))
        voxels = healthy.voxels.copy()
        voxels[solid], voxels[glass] = 30, -450
        return Sick(healthy.with_voxels(voxels), solid, glass)

    return make


@pytest.fixture(scope="session")
def bundle(tiny_bundle: object) -> Bundle:
    return open_bundle(tiny_bundle)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def sick(sick_phantom: Callable[..., Sick]) -> Sick:
    return sick_phantom()


@pytest.fixture(scope="session")
def sick_analysis(sick: Sick, bundle: Bundle) -> Analysis:
    return analyze(sick.ct, bundle, name="sick", device="cpu")
