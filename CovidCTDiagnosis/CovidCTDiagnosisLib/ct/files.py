"""What reading DICOM and reading image files have in common."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import CovidCTError, InputError, ResourceError

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
COPY_AGAIN = "Copy it again from its source, or export it anew."


def head_of(path: Path, length: int = 1024) -> bytes:
    """The first bytes of a file.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened.", "Check that you may read it.") from error


def readable(text: str) -> str:
    """A file's name, or what names one, in characters that can be written: names and headers may hold any bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def itk_name(path: Path, error: type[CovidCTError] = InputError) -> str:
    """A path as ITK takes it: a name that is not UTF-8, as old archives have, would end the whole program there.

    Raises:
        InputError: it is such a name; or the error wanted.
    """
    name = str(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise error(f"The name {readable(name)} has bytes that are no UTF-8.", "Rename it.") from None
    return name


def unreadable(name: str, error: RuntimeError | None = None) -> CovidCTError:
    """The error for a file that cannot be read, by ITK if it said why."""
    said = str(error).lower()
    if "memory" in said and "alloc" in said:
        return ResourceError(f"There is not enough memory to read {name}.", "Close other programs.")
    return InputError(f"{name} is damaged or incomplete.", COPY_AGAIN)


def rows(matrix: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    """A 3 x 3 matrix as `Volume.direction` holds it."""
    return tuple((float(row[0]), float(row[1]), float(row[2])) for row in matrix)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what ITK, GDCM and MetaIO print on standard error off the user's screen.

    They write to the file descriptor itself, and not all of them have a switch. The whole process is quiet
    meanwhile, other threads too.
    """
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def is_spacing(step: float) -> bool:
    """Whether a header's number can be a distance between voxels."""
    return math.isfinite(step) and step > 0


def no_spacing(name: str) -> InputError:
    """The error for an image without usable spacing."""
    return InputError(
        f"{name} does not say how far apart its voxels are (spacing missing, zero or negative).",
        "Convert the scan again from the original DICOM series.",
    )


def only_pictures(what: str) -> InputError:
    """The error for pictures where a CT is needed; ``what`` begins the sentence."""
    return InputError(
        f"{what}, and pictures have neither Hounsfield units nor a place in the patient.",
        "Give the CT itself; for folders of slice pictures there are covid-ct segment-slices and diagnose-series.",
    )


def compact(voxels: np.ndarray) -> np.ndarray:
    """int16 where whole numbers fit into it, otherwise float32."""
    if voxels.dtype.kind in "iu":
        limits = np.iinfo(np.int16)
        if limits.min <= voxels.min() and voxels.max() <= limits.max:
            return voxels.astype(np.int16, copy=False)
    return voxels.astype(np.float32, copy=False)
