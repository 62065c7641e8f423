"""The regular straight grid that the slices of a DICOM series lie on, worked out from their headers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from ..errors import InputError
from .dicom_header import SliceHeader
from .files import is_spacing, no_spacing
from .orientation import ROUNDING, skewness, straightened

# Slices must lie on a regular straight grid: along its normal within this share of the slice distance, ...
STEP_TOLERANCE = 0.1
# ... and sideways (gantry tilt) within this share of a pixel.
SHIFT_TOLERANCE = 0.5
# Share of the steps between slices at which the acquisition changes where two are mixed.
TURNS_TAKEN = 0.8
EXPORT_ALL = "Export the whole series again from the archive."


def regular_grid(slices: list[SliceHeader]) -> tuple[list[SliceHeader], tuple[float, float, float], np.ndarray]:
    """The slices in order along their normal, spacing (i, j, k), and directions as columns.

    Raises:
        InputError: the slices do not lie on one regular straight grid.
    """
    first = slices[0]
    if first.pixel_spacing is None or not all(is_spacing(step) for step in first.pixel_spacing):
        raise no_spacing("The DICOM series")
    if first.orientation is None or any(image.position is None for image in slices):
        raise InputError("The DICOM series does not say where its slices lie in the patient.", EXPORT_ALL)
    if any(_differs(image, first) for image in slices):
        raise InputError(
            "The slices of the DICOM series differ in size, spacing or orientation.",
            "Split it into its series.",
        )
    direction = straightened(np.column_stack([first.orientation[:3], first.orientation[3:], first.normal]))
    if skewness(direction) > ROUNDING:
        raise InputError("The orientation in the DICOM headers is not valid.", EXPORT_ALL)
    normal = direction[:, 2]
    positions = np.array([image.position for image in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    along = positions @ normal
    steps = np.diff(along)
    step = float(along[-1] - along[0]) / (len(slices) - 1)
    if (steps < 0.01).any():
        raise InputError(
            "The DICOM series has several images at the same place (4-D, or phases mixed).",
            "Export one phase as a series of its own.",
        )
    if _alternate([slices[index].acquisition for index in order]):
        raise InputError(
            "The DICOM series has two acquisitions mixed, slice by slice.",
            "Export one acquisition as a series of its own.",
        )
    grid = along[0] + step * np.arange(len(slices))
    if np.abs(along - grid).max() > STEP_TOLERANCE * step:
        usual, widest = float(np.median(steps)), int(np.argmax(steps))
        raise InputError(
            f"Slices of the DICOM series are missing or irregular: they are {usual:.2f} mm apart, "
            f"but {steps[widest]:.2f} mm after slice {widest + 1} of {len(slices)}.",
            EXPORT_ALL,
        )
    shift = positions - positions[0] - np.outer(along - along[0], normal)
    sideways = float(np.linalg.norm(shift, axis=1).max())
    if sideways > SHIFT_TOLERANCE * first.pixel_spacing.min():
        angle = math.degrees(math.atan2(sideways, along[-1] - along[0]))
        raise InputError(
            f"The slices are shifted sideways by up to {sideways:.1f} mm: "
            f"the gantry was tilted by {angle:.1f} degrees.",
            "Correct the gantry tilt first, for example in 3D Slicer's DICOM import.",
        )
    between_rows, between_columns = first.pixel_spacing.tolist()
    return [slices[index] for index in order], (between_columns, between_rows, step), direction


def _differs(image: SliceHeader, first: SliceHeader) -> bool:
    assert first.pixel_spacing is not None and first.orientation is not None
    return (
        image.size != first.size
        or image.pixel_spacing is None
        or image.orientation is None
        or not np.allclose(image.pixel_spacing, first.pixel_spacing, rtol=1e-3)
        or not np.allclose(image.orientation, first.orientation, atol=1e-3)
    )


def _alternate(acquisitions: list[str]) -> bool:
    """Whether few acquisitions take turns along the body: each alone is a CT, together they are none.

    One after the other, or a number for each slice, is as scanners count.
    """
    changes = sum(a != b for a, b in pairwise(acquisitions))
    return changes > TURNS_TAKEN * len(acquisitions) and len(set(acquisitions)) < len(acquisitions) / 4
