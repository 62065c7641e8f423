"""What reading DICOM and reading image files have in common."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import CovidCTError, InputError, ResourceError
from ..folders import is_left_by_file_manager

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
COPY_AGAIN = "Copy it again from its source, or export it anew."


def files_below(folder: Path, broken_links: bool = False) -> Iterator[Path]:
    """All files in a folder and its subfolders, linked ones too, in a fixed order; not what file managers leave.

    Args:
        folder: to look through.
        broken_links: also links that lead nowhere, as in archives whose files were not fetched.
    """
    found: list[Path] = []
    seen: set[Path] = set()
    for name, below, names in os.walk(folder, followlinks=True):
        here = Path(name)
        if here.resolve() in seen:
            below.clear()  # a link that leads back
            continue
        seen.add(here.resolve())
        found += [here / file for file in names if not is_left_by_file_manager(file)]
    return (path for path in sorted(found) if path.is_file() or (broken_links and not path.exists()))


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
    meanwhile, other threads too, until the last of them is done.
    """
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()


class _Quiet:
    """Standard error, put away while anyone wants it quiet: two threads must not put away each other's silence."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._saved: int | None = None

    def enter(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted > 1:
                return
            sys.stderr.flush()
            try:
                self._saved = os.dup(2)
            except OSError:  # it is closed already
                return
            with Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), 2)

    def leave(self) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0 and self._saved is not None:
                os.dup2(self._saved, 2)
                os.close(self._saved)
                self._saved = None


_QUIET = _Quiet()


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


def as_int16(hu: np.ndarray) -> np.ndarray:
    """HU in whole numbers, what lies beyond int16 (padding, metal) at its ends."""
    limits = np.iinfo(np.int16)
    whole: np.ndarray = np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
    return whole


def compact(voxels: np.ndarray) -> np.ndarray:
    """int16 where whole numbers fit into it, otherwise float32."""
    if voxels.dtype.kind in "iu":
        limits = np.iinfo(np.int16)
        if limits.min <= voxels.min() and voxels.max() <= limits.max:
            return voxels.astype(np.int16, copy=False)
    return voxels.astype(np.float32, copy=False)
