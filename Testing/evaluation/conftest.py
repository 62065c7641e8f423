"""A data folder and a sample CT of small size, in the form of the real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct import SAMPLES, Volume, write_image
from CovidCTDiagnosisLib.ct.windows import LUNG_WINDOW, scale
from CovidCTDiagnosisLib.pipeline.lung_sides import LEFT, RIGHT
from PIL import Image

SLICES = (0, 1, 2, 4, 5, 7, 8, 9, 11, 12)
"""Numbers of the expert slices: some are missing, as in the real set."""


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8).T).save(path)  # the real files lie on their side


@pytest.fixture(scope="session")
def small_data(chest_phantom: Callable[..., Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Expert slices of the phantom, cropped to its body, with a bright square that grows from slice to slice.

    Odd slices have ground-glass only, even ones a core of consolidation.
    """
    folder = tmp_path_factory.mktemp("data")
    chest = chest_phantom(spacing=(1.4, 1.4, 8.0))
    for n, number in enumerate(SLICES):
        grey = 255 * scale(chest.voxels[14 + n], LUNG_WINDOW)
        classes = np.zeros(grey.shape, np.uint8)
        size = 15 + 3 * n
        classes[80 : 80 + size, 60 : 60 + size] = 1
        if number % 2 == 0:
            classes[84 : 76 + size, 64 : 56 + size] = 2
        grey[classes == 1], grey[classes == 2] = 130, 195
        _save(folder / "lesion_slices" / "images" / f"{number}.png", grey)
        _save(folder / "lesion_slices" / "infection" / f"{number}.png", 255 * (classes > 0))
        _save(folder / "lesion_slices" / "classes" / f"{number}.png", classes)
    return folder


@pytest.fixture
def small_sample(
    chest_phantom: Callable[..., Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Volume, np.ndarray]:
    """The phantom as the cached NIfTI sample, with its aerated lungs as lobes; returns it and its sided lungs."""
    chest = chest_phantom(spacing=(4.0, 4.0, 5.0))
    lobes = np.where((chest.voxels > -930) & (chest.voxels < -700), 10, 0)
    lobes[..., : lobes.shape[2] // 2] += 2 * (lobes[..., : lobes.shape[2] // 2] > 0)
    sample = SAMPLES["chest-nifti"]
    folder = tmp_path / "cache" / "samples" / f"chest-nifti-{sample.version}"
    folder.mkdir(parents=True)
    write_image(chest, folder / sample.scan)
    write_image(chest.with_voxels(lobes.astype(np.uint8)), folder / sample.truth)
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in (sample.scan, sample.truth)]
    (folder / "sha256sums.txt").write_text("".join(sums), encoding="ascii")
    monkeypatch.setenv("COVID_CT_CACHE", str(tmp_path / "cache"))
    return chest, np.select([lobes == 12, lobes == 10], [RIGHT, LEFT], 0).astype(np.uint8)
