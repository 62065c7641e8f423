"""Reading a CT from a DICOM folder or an image file, or saying in one sentence why it cannot be used."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, UsageError
from .checks import check_axes, check_grid, check_hounsfield, describe_spacing, not_at_right_angles, not_numbers
from .dicom import choose, files_below, find_series, may_be_dicom, read_series, series_of
from .files import (
    COPY_AGAIN,
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    compact,
    head_of,
    is_spacing,
    itk_name,
    no_spacing,
    only_pictures,
    quiet,
    rows,
    unreadable,
)
from .orientation import ROUNDING, skewness, straightened
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
        found = find_series(files_below(path), path.name)
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
    _require_sound_nifti(path) if _is_nifti(path) else _require_spacing(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        with quiet():
            reader.ReadImageInformation()
            _require_scalar_volume(reader, path.name)
            image = reader.Execute()
    except RuntimeError as error:
        raise (not_at_right_angles() if "orthonormal" in str(error) else unreadable(path.name, error)) from error
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


def _says_orientation(path: Path) -> bool:
    """Whether the file says how the patient lies; the readers take LPS axes where it does not."""
    if _is_nifti(path):
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as file:
            return any(file.read(348)[252:256])  # qform_code, sform_code
    header = head_of(path, 1 << 16)
    if header.startswith(b"NRRD"):
        return re.search(rb"^space(?: dimension)?:", header, re.MULTILINE) is not None
    return re.search(rb"^\s*(?:TransformMatrix|Rotation|Orientation)\s*=", header, re.MULTILINE) is not None


def _is_image_file(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _is_compressed(path: Path) -> bool:
    return head_of(path).startswith(b"\x1f\x8b")


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _require_scalar_volume(reader: sitk.ImageFileReader, name: str) -> None:
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{name} has several values per voxel (a colour or vector image).", "Give the CT itself.")
    if len(size) < 3:
        raise InputError(f"{name} is a single slice.", "Give the whole series.")
    if len(size) > 4 or (len(size) == 4 and size[3] > 1):
        raise InputError(f"{name} is a series of volumes (4-D), not one CT.", "Save one of its volumes.")


def _require_sound_nifti(path: Path) -> None:
    """Look for what the NIfTI reader hides: it reads missing data and NaN as 0, a missing spacing as 1."""
    damaged = InputError(f"{path.name} cannot be read: it is damaged or incomplete.", COPY_AGAIN)
    try:
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as file:
            header = file.read(348)
            if header[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
                raise InputError(f"{path.name} is NIfTI-2, which cannot be read.", "Save it as NIfTI-1.")
            order = "<" if header.startswith(b"\x5c\x01\x00\x00") else ">"
            if len(header) < 348 or struct.unpack_from(order + "i", header)[0] != 348:
                raise damaged
            dimensions, *sizes = struct.unpack_from(order + "8h", header, 40)
            datatype, bits = struct.unpack_from(order + "2h", header, 70)
            steps = struct.unpack_from(order + "3f", header, 80)
            offset = struct.unpack_from(order + "f", header, 108)[0]
            if not all(is_spacing(step) for step in steps[:dimensions]):
                raise no_spacing(path.name)
            if dimensions >= 3:
                _require_agreeing_axes(path.name, header, order, np.array(steps))
            file.seek(max(348, int(offset)))
            floating = {16: np.dtype(order + "f4"), 64: np.dtype(order + "f8")}.get(datatype)
            missing = math.prod(sizes[:dimensions]) * bits // 8
            while missing > 0 and (chunk := file.read(min(missing, 1 << 20))):
                missing -= len(chunk)
                if floating and not np.isfinite(np.frombuffer(chunk, floating, len(chunk) // floating.itemsize)).all():
                    raise not_numbers()
            file.read()  # to the end, where the checksum of a compressed file is
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise damaged from error
    if missing > 0:
        raise damaged


SFORM_OF_PATIENT = (1, 2)
"""Codes of an sform in the patient's own space, in mm; the others fit him to a template."""
SPACING_AGREES = 0.01
"""Up to this share lengths of an sform's axes may differ from the spacing beside it, which may be rounded."""


def _require_agreeing_axes(name: str, header: bytes, order: str, spacing: np.ndarray) -> None:
    """The NIfTI reader drops an sform's shear, as of a tilted gantry, and its scale, where there is a qform too."""
    (code,) = struct.unpack_from(order + "h", header, 254)
    if code not in SFORM_OF_PATIENT:
        return
    axes = np.array(struct.unpack_from(order + "12f", header, 280)).reshape(3, 4)[:, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.any():
        return  # there is none
    if not skewness(axes / np.where(lengths > 0, lengths, 1)) <= ROUNDING:
        raise not_at_right_angles()
    if not np.allclose(lengths, spacing, rtol=SPACING_AGREES):
        raise InputError(
            f"{name} has two spacings that differ: {describe_spacing(spacing)} and {describe_spacing(lengths)}.",
            "Convert the scan again from the original DICOM series.",
        )


def _require_spacing(path: Path) -> None:
    """The NRRD and MetaImage readers take 1 mm for a missing spacing, and drop a minus sign."""
    header = head_of(path, 1 << 16)
    if header.startswith(b"NRRD"):
        header = header.replace(b"\r\n", b"\n").split(b"\n\n")[0]
        found = re.search(rb"^(?:spacings|space directions):=?(.*)$", header, re.MULTILINE)
        vectors = re.findall(rb"\(([^)]*)\)", found[1]) if found else []
        steps = [math.hypot(*_numbers(vector)) for vector in vectors] or _numbers(found[1] if found else b"")
    else:
        header = header.split(b"ElementDataFile")[0]
        found = re.search(rb"^\s*Element(?:Spacing|Size)\s*=(.*)$", header, re.MULTILINE)
        steps = _numbers(found[1] if found else b"")
    if not steps or not all(is_spacing(step) for step in steps):
        raise no_spacing(path.name)


def _numbers(text: bytes) -> list[float]:
    """NaN for a word that is no number; NRRD's ``none`` stands for an axis without one."""
    return [_number(word) for word in re.split(rb"[\s,]+", text.strip()) if word not in (b"", b"none")]


def _number(word: bytes) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
