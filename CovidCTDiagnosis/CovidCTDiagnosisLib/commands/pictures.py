"""``covid-ct picture`` and ``plates``: a study drawn over its CT."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..folders import require_parent, require_writable
from .common import add_command


def add_picture(commands: Any) -> None:
    """``covid-ct picture``."""
    command = add_command(commands, "picture", _picture, "Draw a study over its CT: a contact sheet in three planes.")
    command.add_argument("study", type=Path, help="study folder")
    command.add_argument("scan", type=Path, help="the CT that the study was made from")
    command.add_argument("--series", help="which DICOM series of the folder: number or SeriesInstanceUID")
    command.add_argument("--output", type=Path, required=True, help="PNG file to write")


def _picture(options: argparse.Namespace) -> None:
    from ..ct import read_scan

    check_picture(options.output, options.study)
    make = picture_maker()
    ct = read_scan(options.scan, options.series)
    _require_its_ct(options.study, ct)
    make(options.study, ct, options.output)
    print(f"Picture: {options.output}")


def add_plates(commands: Any) -> None:
    """``covid-ct plates``."""
    command = add_command(
        commands,
        "plates",
        _plates,
        "Draw the slices of a study that carry the most relevance: the CT, its lungs and its lesions with the "
        "relevance of either.",
    )
    command.add_argument("study", type=Path, help="study folder")
    command.add_argument("scan", type=Path, nargs="?", help="the CT that was analyzed (without it, masks alone)")
    command.add_argument("--series", help="which DICOM series of the folder: number or SeriesInstanceUID")
    command.add_argument("--output", type=Path, required=True, help=".png or .pdf; without an ending, both")


def _plates(options: argparse.Namespace) -> None:
    from ..ct import read_scan

    if options.series is not None and options.scan is None:
        raise UsageError("--series names a series of a CT, and none is given.", "Give the CT that was analyzed.")
    outputs = _plate_files(options.output)
    for output in outputs:
        _check_beside(output, options.study)
    picture_maker()
    from ..scene.plates import plate

    ct = read_scan(options.scan, options.series) if options.scan else None
    if ct is not None:
        _require_its_ct(options.study, ct)
    plate(options.study, ct, outputs)
    print(f"Plate: {' and '.join(map(str, outputs))}")


def _require_its_ct(study: Path, ct: Any) -> None:
    """Refuse other voxels on the grid of those that were analyzed (InputError); who draws refuses other grids."""
    from ..ct.orientation import on_grid_of
    from ..ct.write import digest
    from ..study import read_study

    read = read_study(study)
    placed = on_grid_of(ct, read.grid)  # another file of the CT may store it in another order
    if placed is not None and digest(placed) != read.analysis["input"]["sha256"]:
        raise InputError(f"The study {study} is of another CT than this.", "Give the CT that was analyzed.")


def _plate_files(output: Path) -> list[Path]:
    require_parent(output)
    if not output.name:
        raise UsageError(f"{output} is a folder.", "Give a .png or .pdf file, or no ending for both.")
    if not output.suffix:
        return [output.with_suffix(".png"), output.with_suffix(".pdf")]
    if output.suffix.lower() not in (".png", ".pdf"):
        raise UsageError(f"{output} cannot be a plate.", "Give a .png or .pdf file, or no ending for both.")
    return [output]


def check_picture(picture: Path, study: Path) -> None:
    """Refuse what cannot become a PNG file, or would lie in the study, with a UsageError."""
    if picture.suffix.lower() != ".png" or picture.is_dir() or not picture.resolve().parent.is_dir():
        raise UsageError(f"{picture} cannot be a picture.", "Give a .png file in a folder that exists.")
    require_writable(picture.resolve().parent)
    _check_beside(picture, study)


def _check_beside(picture: Path, study: Path) -> None:
    """A study folder that holds anything else is not written to again."""
    if picture.resolve().is_relative_to(study.resolve()):
        raise UsageError(f"{picture} would lie in the study folder.", "Choose a place outside of it.")


def picture_maker() -> Callable[[Path, Any, Path], None]:
    """The function that draws contact sheets; asked for before the long work starts.

    Raises:
        UsageError: the packages that draw are not installed.
    """
    try:
        from ..scene.contact_sheet import contact_sheet
    except ImportError as error:
        raise UsageError(
            f"Pictures need slicer-core, which cannot be loaded ({error}).",
            "Install it: pip install '.[picture]' in the folder of this program.",
        ) from error
    return contact_sheet
