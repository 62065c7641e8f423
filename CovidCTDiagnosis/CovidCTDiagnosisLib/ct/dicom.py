"""DICOM series: finding them, choosing one, and its exact grid from the headers."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, UsageError
from .checks import MIN_SLICES, count_of, describe_spacing
from .files import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    compact,
    head_of,
    is_spacing,
    itk_name,
    no_spacing,
    only_pictures,
    quiet,
    readable,
    rows,
    unreadable,
)
from .orientation import ROUNDING, skewness, straightened
from .volume import Volume

_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"  # also the stem of enhanced and legacy converted CT
_CHEST = re.compile(r"chest|thora|torax|tórax|lung|pulmo|brust", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"\b(head|brain|skull|cran|neuro|sinus|kopf|sch[äa]del|neck|hals|abd|pelvi|liver|kidney|spine|knee|hip)",
    re.IGNORECASE,
)
# Slices must lie on a regular straight grid: along its normal within this share of the slice distance, ...
_STEP_TOLERANCE = 0.1
# ... and sideways (gantry tilt) within this share of a pixel.
_SHIFT_TOLERANCE = 0.5
_EXPORT_ALL = "Export the whole series again from the archive."


@dataclass(frozen=True)
class SeriesInfo:
    """What may be shown of a DICOM series: nothing here comes from the patient module.

    Attributes:
        number: its place in the list, from 1; `--series` accepts it.
        uid: SeriesInstanceUID; `--series` accepts it too.
        modality: such as "CT".
        series_number: the scanner's number, as text; may be empty.
        description: the scanner's description; may be empty.
        slices: number of images.
        spacing: mm along columns, rows and slices; None where the headers do not tell.
        obstacle: why the series is not taken for an axial chest CT; empty if it may be one.
    """

    number: int
    uid: str
    modality: str
    series_number: str
    description: str
    slices: int
    spacing: tuple[float, float, float] | None
    obstacle: str

    def __str__(self) -> str:
        size = count_of(self.slices, "slice")
        if self.spacing:
            size += f" of {describe_spacing(self.spacing)}"
        label = f"series {self.series_number} {self.description!r}".replace("  ", " ")
        return f"[{self.number}] {self.modality}, {size}, {label}"


def list_series(folder: Path) -> list[SeriesInfo]:
    """The DICOM image series in a folder and below, ordered by the scanner's series number.

    Raises:
        InputError: no such folder, no DICOM images in it, or a damaged CT image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder.name or folder} is not a folder.", "Give a folder with DICOM files.")
    return [found.info for found in find_series(files_below(folder), folder.name)]


_PATIENT_ID = "0010|0020"


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its subfolders, linked ones too, in a fixed order."""
    found: list[Path] = []
    seen: set[Path] = set()
    for name, below, names in os.walk(folder, followlinks=True):
        here = Path(name)
        if here.resolve() in seen:
            below.clear()  # a link that leads back
            continue
        seen.add(here.resolve())
        found += [here / file for file in names]
    return (path for path in sorted(found) if path.is_file())


def may_be_dicom(path: Path) -> bool:
    """By its mark at byte 128; old files lack it and start with group 8."""
    head = head_of(path)
    return head[128:132] == b"DICM" or head[:2] == b"\x08\x00"


def _kind_of(path: Path) -> tuple[Path, str]:
    """Folder and name without its numbers, by which the files of a series differ."""
    return path.parent, re.sub(r"\d+", "0", path.name)


def _looks_cut_off(path: Path) -> bool:
    """Whether this is what a full disk or a copy that was stopped leaves of an image: next to nothing, or zeros."""
    head = head_of(path)
    return len(head) < 132 or not head.strip(b"\0")


@dataclass(frozen=True)
class _Slice:
    """One image's header, as far as reading needs it, in mm and LPS; None where it says nothing."""

    path: Path
    uid: str
    series_uid: str
    series_number: str
    modality: str
    description: str
    body_part: str
    localizer: bool
    size: tuple[int, ...]
    samples: int
    pixel_spacing: np.ndarray | None  # between rows, between columns
    position: np.ndarray | None
    orientation: np.ndarray | None  # along a row, then along a column

    @property
    def normal(self) -> np.ndarray:
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True)
class Series:
    """A series: what may be shown of it, and its images in no particular order."""

    info: SeriesInfo
    slices: list[_Slice]


def find_series(files: Iterable[Path], name: str) -> list[Series]:
    """All image series among the files of folder `name`, in a fixed order, numbered from 1.

    Raises:
        InputError: no files, no DICOM images, a damaged CT image, or one that was cut off beside others.
    """
    groups: dict[tuple[str, bool], dict[str, _Slice]] = {}
    suffixes, kinds, cut_off = set(), set(), {}
    for path in files:
        suffixes.add(path.suffix.lower())
        found = _read_header(path) if may_be_dicom(path) else None
        if found is None and _looks_cut_off(path):
            cut_off[_kind_of(path)] = path
        if found:
            kinds.add(_kind_of(path))
            # A scout may share the series of the scan; a copy of an image has the same UID.
            groups.setdefault((found.series_uid, found.localizer), {}).setdefault(found.uid, found)
    for kind in sorted(kinds & cut_off.keys()):
        raise unreadable(cut_off[kind].name)
    if not suffixes:
        raise InputError(f"The folder {name} is empty.", "Check the path.")
    if not groups and suffixes.intersection(PICTURE_SUFFIXES):
        raise only_pictures(f"The folder {name} holds pictures")
    if not groups:
        raise InputError(
            f"The folder {name} holds no DICOM images.",
            f"Give a folder with a DICOM series, or a file that ends in {', '.join(IMAGE_SUFFIXES)}.",
        )
    ordered = sorted(groups.items(), key=lambda item: (_series_order(item[1]), item[0]))
    series = [list(images.values()) for _, images in ordered]
    return [Series(_describe(number, slices), slices) for number, slices in enumerate(series, start=1)]


def _series_order(images: dict[str, _Slice]) -> int:
    number = next(iter(images.values())).series_number
    return int(number) if number.lstrip("+-").isdigit() else sys.maxsize


def _describe(number: int, slices: list[_Slice]) -> SeriesInfo:
    first = slices[0]
    return SeriesInfo(
        number=number,
        uid=first.series_uid,
        modality=first.modality,
        series_number=first.series_number,
        description=first.description,
        slices=len(slices),
        spacing=_spacing(slices),
        obstacle=_obstacle(slices),
    )


def _obstacle(slices: list[_Slice]) -> str:
    first = slices[0]
    text = f"{first.body_part} {first.description}"
    if first.modality != "CT":
        return f"not a CT (its modality is {first.modality or 'missing'})"
    if first.samples != 1:
        return "a colour image"
    if first.localizer:
        return "a localizer (scout)"
    if len(slices) < MIN_SLICES and first.size[2] < MIN_SLICES:
        return f"only {count_of(len(slices), 'slice')}"
    if first.orientation is not None and abs(first.normal[2]) < 0.7:
        return "not axial"
    if _ELSEWHERE.search(text) and not _CHEST.search(text):
        return f"of another part of the body ({text.strip()})"
    return ""


def choose(found: list[Series], series: str | None) -> Series:
    """The series the user named, or the only one that may be an axial chest CT.

    Raises:
        UsageError: no series has that name, or several may be meant.
        InputError: none may be an axial chest CT.
    """
    if series is not None:
        matching = [one for one in found if series in (one.info.uid, str(one.info.number))]
        if not matching:
            listing = "; ".join(str(one.info) for one in found)
            raise UsageError(f"There is no series {series}; the folder has {listing}.", "Give a listed number.")
        return max(matching, key=lambda one: one.info.slices)
    candidates = [one for one in found if not one.info.obstacle]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listing = "; ".join(str(one.info) for one in candidates)
        finest = max(candidates, key=lambda one: one.info.slices)
        raise UsageError(
            f"{len(candidates)} series could be the chest CT: {listing}.",
            f"Choose one with --series NUMBER ({finest.info.number} has the most slices).",
        )
    if len(found) == 1:
        raise InputError(
            f"The DICOM series is {found[0].info.obstacle}.",
            "Give an axial chest CT, or force this series with --series 1."
            if found[0].info.modality == "CT"
            else "Give an axial chest CT.",
        )
    reasons = "; ".join(f"{one.info} is {one.info.obstacle}" for one in found)
    raise InputError(f"None of the {len(found)} DICOM series is an axial chest CT: {reasons}.", "Give a chest CT.")


def series_of(path: Path, series: str | None) -> Series:
    """The series that one file belongs to, or the named one, among the files beside it.

    Raises:
        InputError: the file holds no image.
    """
    header = _read_header(path)
    if header is None:
        raise InputError(f"{path.name} is a DICOM file without an image.", "Give the folder of the CT series.")
    found = find_series((file for file in sorted(path.parent.iterdir()) if file.is_file()), path.parent.name)
    if series is not None:
        return choose(found, series)
    return next(one for one in found if any(image.uid == header.uid for image in one.slices))


def read_series(series: Series) -> Volume:
    """Read a series slice by slice, ordered along its normal.

    The grid is worked out from the headers, exactly: the readers of whole series only warn where slices are
    missing, and do not see a gantry tilt.

    Raises:
        InputError: not a CT, not grey single-frame slices, too few, damaged, or not on one regular grid.
    """
    slices = series.slices
    first = slices[0]
    if first.modality != "CT":
        raise InputError(f"The DICOM series is {series.info.obstacle}.", "Give a chest CT.")
    if any(image.samples != 1 for image in slices):
        raise InputError("The DICOM series is a colour image.", "Give the CT series itself.")
    if any(image.size[2] != 1 for image in slices):
        raise InputError(
            "The DICOM series is a multi-frame (enhanced) image, which is not supported.",
            "Export it as single-frame DICOM, or convert it to NIfTI.",
        )
    if len(slices) < MIN_SLICES:
        raise InputError(
            f"The DICOM series has {count_of(len(slices), 'slice')}; a chest CT has at least {MIN_SLICES}.",
            _EXPORT_ALL,
        )
    slices, spacing, direction = _regular_grid(slices)
    voxels = np.stack([_read_pixels(image.path) for image in slices])
    assert slices[0].position is not None
    x, y, z = slices[0].position.tolist()
    return Volume(voxels=voxels, spacing=spacing, origin=(x, y, z), direction=rows(direction))


def _regular_grid(slices: list[_Slice]) -> tuple[list[_Slice], tuple[float, float, float], np.ndarray]:
    """The slices in order along their normal, spacing (i, j, k), and directions as columns.

    Raises:
        InputError: the slices do not lie on one regular straight grid.
    """
    first = slices[0]
    if first.pixel_spacing is None or not all(is_spacing(step) for step in first.pixel_spacing):
        raise no_spacing("The DICOM series")
    if first.orientation is None or any(image.position is None for image in slices):
        raise InputError("The DICOM series does not say where its slices lie in the patient.", _EXPORT_ALL)
    if any(_differs(image, first) for image in slices):
        raise InputError(
            "The slices of the DICOM series differ in size, spacing or orientation.",
            "Split it into its series.",
        )
    direction = straightened(np.column_stack([first.orientation[:3], first.orientation[3:], first.normal]))
    if skewness(direction) > ROUNDING:
        raise InputError("The orientation in the DICOM headers is not valid.", _EXPORT_ALL)
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
    grid = along[0] + step * np.arange(len(slices))
    if np.abs(along - grid).max() > _STEP_TOLERANCE * step:
        usual, widest = float(np.median(steps)), int(np.argmax(steps))
        raise InputError(
            f"Slices of the DICOM series are missing or irregular: they are {usual:.2f} mm apart, "
            f"but {steps[widest]:.2f} mm after slice {widest + 1} of {len(slices)}.",
            _EXPORT_ALL,
        )
    shift = positions - positions[0] - np.outer(along - along[0], normal)
    sideways = float(np.linalg.norm(shift, axis=1).max())
    if sideways > _SHIFT_TOLERANCE * first.pixel_spacing.min():
        angle = math.degrees(math.atan2(sideways, along[-1] - along[0]))
        raise InputError(
            f"The slices are shifted sideways by up to {sideways:.1f} mm: "
            f"the gantry was tilted by {angle:.1f} degrees.",
            "Correct the gantry tilt first, for example in 3D Slicer's DICOM import.",
        )
    between_rows, between_columns = first.pixel_spacing.tolist()
    return [slices[index] for index in order], (between_columns, between_rows, step), direction


def _differs(image: _Slice, first: _Slice) -> bool:
    assert first.pixel_spacing is not None and first.orientation is not None
    return (
        image.size != first.size
        or image.pixel_spacing is None
        or image.orientation is None
        or not np.allclose(image.pixel_spacing, first.pixel_spacing, rtol=1e-3)
        or not np.allclose(image.orientation, first.orientation, atol=1e-3)
    )


def _spacing(slices: list[_Slice]) -> tuple[float, float, float] | None:
    """Spacing for the list of series; the slices may be irregular."""
    first = slices[0]
    if first.pixel_spacing is None or first.orientation is None or len(slices) < 2:
        return None
    along = sorted(float(image.position @ first.normal) for image in slices if image.position is not None)
    if len(along) < 2:
        return None
    return float(first.pixel_spacing[1]), float(first.pixel_spacing[0]), float(np.median(np.diff(along)))


def _read_header(path: Path) -> _Slice | None:
    """The header of a DICOM image; None for DICOM without an image (a directory, a report, ...).

    Raises:
        InputError: the file is a CT image, or does not say what it is, and cannot be read.
    """
    reader = _dicom_reader(path)
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        head = head_of(path)
        if head[128:132] != b"DICM" or _is_other_object(head):
            return None
        raise unreadable(path.name, error) from error
    keys = set(reader.GetMetaDataKeys())

    def text(key: str) -> str:
        # Headers in undeclared character sets arrive with bytes that no terminal can print.
        value = reader.GetMetaData(key) if key in keys else ""
        return "".join(c if c.isprintable() else "?" for c in readable(value).replace("\0", "")).strip()

    return _Slice(
        path=path,
        uid=text("0008|0018") or str(path),
        series_uid=text("0020|000e"),
        series_number=text("0020|0011"),
        modality=text("0008|0060"),
        description=text("0008|103e"),
        body_part=text("0018|0015"),
        localizer="LOCALIZER" in text("0008|0008").upper(),
        size=reader.GetSize(),
        samples=reader.GetNumberOfComponents(),
        pixel_spacing=_vector(text("0028|0030"), 2),
        position=_vector(text("0020|0032"), 3),
        orientation=_vector(text("0020|0037"), 6),
    )


def patient_id(folder: Path) -> str:
    """PatientID of the first DICOM image of a folder, empty where there is none; it must not leave this machine."""
    path = next((p for p in files_below(folder) if may_be_dicom(p)), None)
    if path is None:
        return ""
    reader = _dicom_reader(path)
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError:
        return ""
    return reader.GetMetaData(_PATIENT_ID).strip() if _PATIENT_ID in reader.GetMetaDataKeys() else ""


def _read_pixels(path: Path) -> np.ndarray:
    """One slice in HU (J, I): stored values times slope plus intercept, int16 or float32."""
    try:
        with quiet():
            image = _dicom_reader(path).Execute()
    except RuntimeError as error:
        raise unreadable(path.name, error) from error
    return compact(sitk.GetArrayFromImage(image)[0])


def _dicom_reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(path))
    return reader


def _is_other_object(head: bytes) -> bool:
    """Whether the file meta information names a class of objects other than CT images."""
    found = re.search(rb"\x02\x00\x02\x00UI..([\d.]+)", head, re.DOTALL)
    return found is not None and not found[1].decode().startswith(_CT_STORAGE)


def _vector(text: str, length: int) -> np.ndarray | None:
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return values if len(values) == length and np.isfinite(values).all() else None
