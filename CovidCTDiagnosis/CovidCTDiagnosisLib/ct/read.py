"""Reading a CT from a DICOM folder or an image file, or saying in one sentence why it cannot be used."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import CovidCTError, InputError, UsageError
from .checks import check_axes, check_grid, check_hounsfield, not_at_right_angles
from .compressed_data import require_sound_data
from .dicom import choose, find_series, read_series, series_of
from .dicom_header import may_be_dicom
from .files import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    compact,
    files_below,
    is_spacing,
    itk_name,
    no_spacing,
    only_pictures,
    quiet,
    rows,
    unreadable,
)
from .nifti_header import is_compressed, is_nifti, require_sound_nifti, says_orientation
from .orientation import straightened
from .text_header import read_text_header
from .volume import Volume


def read_scan(path: Path, series: str | None = None) -> Volume:
    """Read a CT on its own grid.

    In a DICOM folder (searched recursively; other files are ignored) the series that may be an axial chest CT
    is taken: modality CT, at least 5 slices, no localizer, nearly axial, grey values, and no other body part
    named in its description. If several remain, the user has to choose. Slices are ordered by position.

    Args:
        path: a DICOM folder, one file of a DICOM series, or a NIfTI, NRRD or MetaImage file.
        series: SeriesInstanceUID, or number in `list_series`, of the DICOM series to read.

    Returns:
        Voxels (K, J, I) in HU, int16 or float32.

    Raises:
        UsageError: several series may be meant, or `series` names none.
        InputError: nothing readable, damaged files, no CT, missing or irregular slices (more than 10 % of the
            slice distance off a regular grid), gantry tilt (slices shifted sideways by more than half a
            pixel: refused, as a sheared grid would need interpolation), no spacing, more or fewer than three
            dimensions, or voxels that are not HU (see `check_hounsfield`).
    """
    if not path.exists():
        raise InputError(f"{path.name or path} does not exist.", "Check the path.")
    if path.is_dir():
        found = find_series(files_below(path, broken_links=True), path.name)
        volume = read_series(choose(found, series))
    elif _is_image_file(path):
        if series is not None:
            raise UsageError(f"{path.name} is not DICOM and has no series.", "Leave out --series.")
        volume = read_image(path)
    elif may_be_dicom(path):
        volume = read_series(series_of(path, series))
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        raise only_pictures(f"{path.name} is a picture")
    else:
        raise InputError(
            f"{path.name} is neither DICOM nor NIfTI, NRRD or MetaImage.",
            f"Give a DICOM folder or a file that ends in {', '.join(IMAGE_SUFFIXES)}.",
        )
    check_grid(volume)
    check_hounsfield(volume)
    return volume


def read_image(path: Path) -> Volume:
    """Read any 3-D NIfTI, NRRD or MetaImage file on its own grid, a CT as well as a mask.

    Returns:
        Voxels (K, J, I): int16 where whole numbers fit, otherwise float32.

    Raises:
        InputError: the file is damaged or truncated, has no usable spacing, is not three-dimensional, has several
            values per voxel, or axes that are not at right angles.
        ResourceError: there is not enough memory.
    """
    if is_nifti(path):
        require_sound_nifti(path)
    else:
        _require_spacing(path)
        require_sound_data(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        with quiet():
            reader.ReadImageInformation()
            _require_scalar_volume(reader, path.name)
            image = reader.Execute()
    except RuntimeError as error:
        raise _not_read(path, error) from error
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    x, y, z = image.GetSpacing()
    volume = Volume(
        voxels=compact(sitk.GetArrayFromImage(image)),
        spacing=(x, y, z),
        origin=image.GetOrigin(),
        direction=rows(straightened(np.reshape(image.GetDirection(), (3, 3)))),
        orientation_known=_says_orientation(path),
    )
    check_axes(volume)
    return volume


def _not_read(path: Path, error: RuntimeError) -> CovidCTError:
    """The error for a file that ITK could not read."""
    if "orthonormal" in str(error):
        return not_at_right_angles()
    ending = ".nii.gz" if is_nifti(path) and is_compressed(path) else ".nii"
    if is_nifti(path) and not path.name.endswith((ending, ending.upper())):
        # It is sound, or would have been refused before.
        return InputError(f"{path.name} is a NIfTI file whose name should end in {ending}.", "Rename it.")
    return unreadable(path.name, error)


def _says_orientation(path: Path) -> bool:
    """Whether the file says how the patient lies, and once; the readers take LPS axes where it does not."""
    if is_nifti(path):
        return says_orientation(path)
    header = read_text_header(path)
    if header.is_nrrd:
        # Other spaces than a patient's own do not say which side is which.
        return re.match(r"left-|right-|[LR][AP]S", header.fields.get("space", ""), re.IGNORECASE) is not None
    return not header.fields.keys().isdisjoint(("TransformMatrix", "Rotation", "Orientation"))


def _is_image_file(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _require_scalar_volume(reader: sitk.ImageFileReader, name: str) -> None:
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{name} has several values per voxel (a colour or vector image).", "Give the CT itself.")
    if len(size) < 3:
        raise InputError(f"{name} is a single slice.", "Give the whole series.")
    if len(size) > 4 or (len(size) == 4 and size[3] > 1):
        raise InputError(f"{name} is a series of volumes (4-D), not one CT.", "Save one of its volumes.")


def _require_spacing(path: Path) -> None:
    """The NRRD and MetaImage readers take 1 mm for a missing spacing, and drop a minus sign."""
    fields = read_text_header(path).fields
    vectors = re.findall(r"\(([^)]*)\)", fields.get("spacedirections", ""))
    stated = ("spacings", "spacedirections", "ElementSpacing", "ElementSize")
    steps = [math.hypot(*_numbers(vector)) for vector in vectors] or _numbers(
        next((fields[name] for name in stated if name in fields), "")
    )
    if not steps or not all(is_spacing(step) for step in steps):
        raise no_spacing(path.name)


def _numbers(text: str) -> list[float]:
    """NaN for a word that is no number; NRRD's ``none`` stands for an axis without one."""
    return [_number(word) for word in re.split(r"[\s,]+", text.strip()) if word not in ("", "none")]


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
