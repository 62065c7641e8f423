"""What a NIfTI header says, and what its reader hides: missing data, a missing spacing, axes that contradict."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from .checks import describe_spacing, not_at_right_angles, not_numbers
from .files import COPY_AGAIN, head_of, is_spacing, no_spacing
from .orientation import ROUNDING, skewness

SFORM_OF_PATIENT = (1, 2)
"""Codes of an sform in the patient's own space, in mm; the others fit him to a template."""
SPACING_AGREES = 0.01
"""Up to this share lengths of an sform's axes may differ from the spacing beside it, which may be rounded."""


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def is_compressed(path: Path) -> bool:
    """By its first bytes, whatever its name is."""
    return head_of(path).startswith(b"\x1f\x8b")


def _opened(path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path) if is_compressed(path) else path.open("rb")


def _byte_order(header: bytes) -> str:
    """As ``struct`` names it."""
    return "<" if header.startswith(b"\x5c\x01\x00\x00") else ">"


def says_orientation(path: Path) -> bool:
    """Whether the file says how the patient lies, and only once."""
    with _opened(path) as file:
        header = file.read(348)
    return any(header[252:256]) and not _turned_over(header)  # qform_code, sform_code


def require_sound_nifti(path: Path) -> None:
    """Look for what the NIfTI reader hides: it reads missing data and NaN as 0, a missing spacing as 1.

    Raises:
        InputError: there is such a fault, or the file is NIfTI-2.
    """
    damaged = InputError(f"{path.name} cannot be read: it is damaged or incomplete.", COPY_AGAIN)
    try:
        with _opened(path) as file:
            header = file.read(348)
            if header[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
                raise InputError(f"{path.name} is NIfTI-2, which cannot be read.", "Save it as NIfTI-1.")
            order = _byte_order(header)
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


def _turned_over(header: bytes) -> bool:
    """Whether a NIfTI header has two places for its voxels, qform and sform, whose axes run in opposite directions.

    Programs differ in which of the two they take, so that right and left may be exchanged. That the two are turned a
    little against each other is usual where a scan was registered.
    """
    order = _byte_order(header)
    qform_code, sform_code = struct.unpack_from(order + "2h", header, 252)
    if qform_code <= 0 or sform_code not in SFORM_OF_PATIENT:
        return False
    from scipy.spatial.transform import Rotation  # slow to import, and seldom wanted

    b, c, d = struct.unpack_from(order + "3f", header, 256)
    a = math.sqrt(max(1 - b * b - c * c - d * d, 0))
    handedness = -1 if struct.unpack_from(order + "f", header, 76)[0] < 0 else 1
    qform = Rotation.from_quat((b, c, d, a)).as_matrix() * (1, 1, handedness)
    sform = np.array(struct.unpack_from(order + "12f", header, 280)).reshape(3, 4)[:, :3]
    return bool(((qform * sform).sum(0) < 0).any())
