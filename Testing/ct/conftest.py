"""Writes DICOM series as a scanner would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from CovidCTDiagnosisLib.ct import Volume


def _write_series(
    folder: Path,
    volume: Volume,
    *,
    uid: str = "1.2.826.0.1.3680043.2.1125.1",
    tags: dict[str, str] | None = None,
    skip: tuple[int, ...] = (),
    shear_mm: float = 0.0,
    name: Callable[[int], str] = "{:04d}.dcm".format,
) -> list[Path]:
    """One file per slice, in volume order; `shear_mm` shifts each slice along j against the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.asarray(volume.direction)
    paths = []
    for k in range(volume.shape[0]):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(volume.voxels[k : k + 1])
        image.SetSpacing(volume.spacing)
        position = (volume.affine @ [0, 0, k, 1])[:3] + k * shear_mm * direction[:, 1]
        headers = {
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "CT",
            "0008|103e": "Chest 5mm",
            "0010|0010": "Doe^Jane",
            "0020|000d": "1.2.826.0.1.3680043.2.1125",
            "0020|000e": uid,
            "0020|0011": "2",
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for value in direction[:, :2].T.ravel()),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in (headers | (tags or {})).items():
            image.SetMetaData(key, value)
        path = folder / name(k)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(path))
        writer.Execute(image)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def write_series() -> Callable[..., list[Path]]:
    return _write_series


@pytest.fixture(scope="session")
def small_chest(chest_phantom: Callable[..., Volume]) -> Volume:
    """A chest phantom of 32 x 44 x 60 voxels."""
    return chest_phantom(spacing=(6.0, 6.0, 10.0))
