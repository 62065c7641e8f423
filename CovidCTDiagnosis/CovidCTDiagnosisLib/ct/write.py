"""Writing a volume to an image file, and its fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ResourceError
from .files import itk_name
from .volume import Volume


def to_itk(volume: Volume) -> sitk.Image:
    """A volume as an image of SimpleITK; booleans become uint8."""
    voxels = volume.voxels.astype(np.uint8) if volume.voxels.dtype == bool else volume.voxels
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(np.asarray(volume.direction, float).ravel().tolist())
    return image


def write_image(volume: Volume, path: Path) -> None:
    """Write voxels and grid, compressed; the suffix chooses the format (.nii.gz, .nrrd, .mha, ...).

    Voxel type, origin, spacing and direction are kept (NIfTI stores them as 32-bit floats: to about 1e-5 mm
    in a patient); booleans become uint8.

    Raises:
        InputError: the name is not UTF-8.
        ResourceError: the file cannot be written.
    """
    try:
        # Level 1: masks and relevance are mostly zeros, higher levels cost seconds and save little.
        sitk.WriteImage(to_itk(volume), itk_name(path), useCompression=True, compressionLevel=1)
    except RuntimeError as error:
        raise ResourceError(
            f"{path.name} cannot be written.", "Check that the folder exists and that the disk is not full."
        ) from error


def digest(volume: Volume) -> str:
    """SHA-256 (hex) of the voxels, as little-endian bytes in C order, followed by type, shape and grid."""
    little = volume.voxels.dtype.newbyteorder("<")
    sha = hashlib.sha256()
    for plane in volume.voxels:
        sha.update(np.ascontiguousarray(plane, dtype=little).data)
    sha.update(f"{little.str} {volume.shape}".encode())
    grid = [*volume.spacing, *volume.origin, *np.ravel(volume.direction)]
    sha.update((np.asarray(grid, "<f8") + 0.0).tobytes())  # + 0.0 makes -0.0 and 0.0 the same
    return sha.hexdigest()
