"""DICOM series: finding them, choosing one, and reading it."""

from __future__ import annotations

import filecmp
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CovidCTError, InputError, UsageError
from .checks import MIN_SLICES, count_of, describe_spacing
from .dicom_grid import EXPORT_ALL, regular_grid
from .dicom_header import SliceHeader, may_be_dicom, read_header, read_pixels
from .files import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    files_below,
    head_of,
    only_pictures,
    readable,
    rows,
    unreadable,
)
from .volume import Volume

_CHEST = re.compile(r"chest|thora|t[oó]rax|torace|toraks|lung|pulmo|poumon|polmon|brust", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"\b(head|brain|skull|cran|neuro|sinus|kopf|sch[äa]del|neck|hals|abd|pelvi|liver|kidney|spine|knee|hip)",
    re.IGNORECASE,
)
MOST_TOLD = 8
"""Series named in one sentence."""


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
    return [found.info for found in find_series(files_below(folder, broken_links=True), folder.name)]


@dataclass(frozen=True)
class Series:
    """A series: what may be shown of it, and its images in no particular order."""

    info: SeriesInfo
    slices: list[SliceHeader]


def find_series(files: Iterable[Path], name: str) -> list[Series]:
    """All image series among the files of folder `name`, in a fixed order, numbered from 1.

    Raises:
        InputError: no files, no DICOM images, a damaged CT image, or one beside others that was cut off or is a link
            that leads nowhere.
    """
    groups: dict[tuple[str, bool], dict[tuple[str, bytes], SliceHeader]] = {}
    suffixes, kinds, cut_off, lost = set(), set(), {}, {}
    for path in files:
        suffixes.add(path.suffix.lower())
        if not path.exists():
            lost[_kind_of(path)] = path
            continue
        found = read_header(path) if may_be_dicom(path) else None
        if found is None and _looks_cut_off(path):
            cut_off[_kind_of(path)] = path
        if found:
            kinds.add(_kind_of(path))
            # A scout may share the series of the scan.
            images = groups.setdefault((found.series_uid, found.localizer), {})
            first = images.setdefault(found.key, found)
            if first is not found and not _is_copy(found, first):
                uid, position = found.key
                images[f"{uid} {path}", position] = found
    for kind in sorted(kinds & lost.keys() if groups else lost):
        name = readable(lost[kind].name)
        raise InputError(f"{name} is a link that leads nowhere.", "Fetch the files, or remove the link.")
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


def _is_copy(image: SliceHeader, other: SliceHeader) -> bool:
    """Whether two images of one UID and place are alike: anonymisers have given two reconstructions the same UIDs."""
    if image.modality != "CT" or filecmp.cmp(image.path, other.path, shallow=False):
        return True
    try:
        return image.size == other.size and np.array_equal(read_pixels(image.path), read_pixels(other.path))
    except CovidCTError:
        return True  # there is a whole one, or what is damaged will be told


def _series_order(images: dict[tuple[str, bytes], SliceHeader]) -> int:
    number = next(iter(images.values())).series_number
    return int(number) if number.lstrip("+-").isdigit() else sys.maxsize


def _describe(number: int, slices: list[SliceHeader]) -> SeriesInfo:
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


def _obstacle(slices: list[SliceHeader]) -> str:
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
    # Scanners send one scan in both forms, and only the old one can be read.
    candidates = [one for one in candidates if one.slices[0].size[2] == 1] or candidates
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
    told = [f"{one.info} is {one.info.obstacle}" for one in found]
    more = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    forced = any(one.info.modality == "CT" and one.info.slices >= MIN_SLICES for one in found)
    raise InputError(
        f"None of the {len(found)} DICOM series is an axial chest CT: {'; '.join(told[:MOST_TOLD])}{more}.",
        "Give a chest CT, or force a series with --series NUMBER." if forced else "Give a chest CT.",
    )


def series_of(path: Path, series: str | None) -> Series:
    """The series that one file belongs to, or the named one, among the files beside it.

    Raises:
        InputError: the file holds no image.
    """
    header = read_header(path)
    if header is None:
        raise InputError(f"{path.name} is a DICOM file without an image.", "Give the folder of the CT series.")
    found = find_series((file for file in sorted(path.parent.iterdir()) if file.is_file()), path.parent.name)
    if series is not None:
        return choose(found, series)
    return next(one for one in found if any(image.key == header.key for image in one.slices))


def _kind_of(path: Path) -> tuple[Path, str]:
    """Folder and name without its numbers, by which the files of a series differ."""
    return path.parent, re.sub(r"\d+", "0", path.name)


def _looks_cut_off(path: Path) -> bool:
    """Whether this is what a full disk or a copy that was stopped leaves of an image: next to nothing, or zeros."""
    head = head_of(path)
    return len(head) < 132 or not head.strip(b"\0")


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
            EXPORT_ALL,
        )
    rescaled = sum(image.rescaled for image in slices)
    if 0 < rescaled < len(slices):
        raise InputError(
            f"{len(slices) - rescaled} of {len(slices)} slices do not say how their values become HU, the others do.",
            EXPORT_ALL,
        )
    slices, spacing, direction = regular_grid(slices)
    voxels = np.stack([read_pixels(image.path) for image in slices])
    assert slices[0].position is not None
    x, y, z = slices[0].position.tolist()
    return Volume(voxels=voxels, spacing=spacing, origin=(x, y, z), direction=rows(direction))


def _spacing(slices: list[SliceHeader]) -> tuple[float, float, float] | None:
    """Spacing for the list of series; the slices may be irregular."""
    first = slices[0]
    if first.pixel_spacing is None or first.orientation is None or len(slices) < 2:
        return None
    along = sorted(float(image.position @ first.normal) for image in slices if image.position is not None)
    if len(along) < 2:
        return None
    return float(first.pixel_spacing[1]), float(first.pixel_spacing[0]), float(np.median(np.diff(along)))
