"""Folders of 8-bit slice images: reading grey as HU, writing masks."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..folders import is_left_by_file_manager
from .files import PICTURE_SUFFIXES
from .windows import LUNG_WINDOW, Window, unscale

COLOUR_TOLERANCE, COLOURED_SHARE = 12, 0.01
"""Grey levels by which the colours of a grey JPEG may differ, and the share of pixels (a marker, burnt-in text) that
may differ by more."""
MASK_LEVELS = 3
"""A picture of no more grey levels, but more than one, is a mask."""
NEARLY_BLACK, NEARLY_WHITE, SOFT_MASK_SHARE = 20, 235, 0.9
"""So is one of which this share and more is darker or brighter, some of it either: as JPEG, or with soft edges. Not
where most pictures of a folder are so: they are slices in a narrow window then."""
MOST_TOLD = 5
"""Pictures left out whose fault is told."""

_REMEDY = "Export the slices as 8-bit grey PNG, JPEG, BMP or TIFF images."


def find_slice_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names (2 before 10).

    Raises:
        InputError: there is no such folder, or it has no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", "Give a folder of slice images.")
    paths = [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.name[0] != "." and p.is_file()]
    if not paths:
        raise InputError(f"The folder {folder} has no images.", _REMEDY)
    return sorted(paths, key=_natural)


def find_series(folder: Path) -> list[Path]:
    """The folders of a folder in natural order of their names; each holds the slices of one scan.

    Raises:
        InputError: there is no such folder, or it holds no folders.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", "Give a folder of series folders.")
    held = (p for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and not is_left_by_file_manager(p.name))
    folders = sorted(held, key=_natural)
    if not folders:
        raise InputError(
            f"The folder {folder} holds no folders of slices.", "Give the folder above the series, one folder each."
        )
    return folders


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts digits by value, the rest as text."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.stem)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def read_slice_image(path: Path) -> np.ndarray:
    """One image as stored (an EXIF orientation is not applied), uint8 (rows, columns).

    Raises:
        InputError: it cannot be read, has several pages, or is not 8-bit grey (or grey stored as colours).
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path.name} has several pages.", "Save each slice as an image of its own.")
            return _grey(image, path.name)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damage makes Pillow's readers fail in many ways
        raise InputError(f"{path.name} cannot be read as an image.", _REMEDY) from error


class SliceImages(NamedTuple):
    """What could be read of a folder.

    Attributes:
        paths, images: of each slice, in natural order.
        warnings: sentences on what was left out and why.
    """

    paths: list[Path]
    images: list[np.ndarray]
    warnings: list[str]


def read_slice_folder(folder: Path, smallest_side: int = 1) -> SliceImages:
    """The slices of a folder, one per name: without masks that lie beside them, and without what cannot be used.

    Args:
        folder: of images.
        smallest_side: pixels; smaller images (icons, previews) are left out.

    Raises:
        InputError: as `find_slice_images`, or nothing can be used: then what the first one lacks.
    """
    read: list[tuple[Path, np.ndarray]] = []
    errors = []
    for path in find_slice_images(folder):
        try:
            read.append((path, read_slice_image(path)))
        except InputError as error:
            errors.append(error)
    masks = _masks(read)
    found = SliceImages([], [], [])
    for path, image in read:
        if path.name in masks:
            continue
        try:
            _check_use(path, image.shape, smallest_side, found.paths)
        except InputError as error:
            errors.append(error)
            continue
        found.paths.append(path)
        found.images.append(image)
    if not found.images:
        raise errors[0] if errors else InputError(f"The folder {folder} holds masks only.", _REMEDY)
    if errors:
        told = [error.message for error in errors[:MOST_TOLD]]
        more = [f"{len(errors) - MOST_TOLD} more."] if len(errors) > MOST_TOLD else []
        found.warnings.append(" ".join(["Left out:", *told, *more]))
    if masks:
        others = f" and {len(masks) - 1} more" if len(masks) > 1 else ""
        found.warnings.append(f"Left out: {masks[0]}{others}, probably masks (too few grey levels).")
    return found


def _check_use(path: Path, shape: tuple[int, ...], smallest_side: int, others: list[Path]) -> None:
    """Raise InputError if the image is too small, or one of its name is there."""
    if min(shape) < smallest_side:
        raise InputError(
            f"{path.name} has only {shape[1]} x {shape[0]} pixels.",
            f"Give whole axial slices, at least {smallest_side} pixels a side.",
        )
    # As disks tell names apart that do not heed case.
    same = next((other for other in others if _plain(other.stem) == _plain(path.stem)), None)
    if same is not None:
        raise InputError(f"{path.name} has the same name as {same.name}.", "Rename or remove one of them.")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _masks(images: list[tuple[Path, np.ndarray]]) -> list[str]:
    """Names of those that are probably masks."""
    sharp = [path.name for path, image in images if is_mask(image)]
    soft = [path.name for path, image in images if path.name not in sharp and is_soft_mask(image)]
    return [*sharp, *soft] if 2 * len(soft) <= len(images) - len(sharp) else sharp


def is_mask(image: np.ndarray) -> bool:
    """Whether an image, uint8 (rows, columns), has hardly any grey levels, but is not of one grey."""
    return 1 < len(np.unique(image)) <= MASK_LEVELS


def is_soft_mask(image: np.ndarray) -> bool:
    """Whether nearly all of an image, uint8 (rows, columns), is black or white, as a mask's is with soft edges."""
    black, white = float((image < NEARLY_BLACK).mean()), float((image > NEARLY_WHITE).mean())
    return min(black, white) > 0 and black + white >= SOFT_MASK_SHARE


def _grey(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "1":
        return np.array(image.convert("L"))
    if image.mode in ("L", "LA"):
        return np.array(image.getchannel("L"))
    if image.mode not in ("P", "PA", "RGB", "RGBA"):
        raise InputError(f"{name} is not an 8-bit grey image (its mode is {image.mode}).", _REMEDY)
    colours = np.asarray(image.convert("RGB")).astype(np.int16)
    if (np.ptp(colours, axis=2) > COLOUR_TOLERANCE).mean() > COLOURED_SHARE:
        raise InputError(f"{name} is a colour image.", _REMEDY)
    return np.rint(colours.mean(axis=2)).astype(np.uint8)


def grey_to_hu(grey: np.ndarray, window: Window = LUNG_WINDOW) -> np.ndarray:
    """uint8 of any shape as int16 HU: grey 0..255 spans the window."""
    return np.rint(unscale(grey / np.float32(255), window)).astype(np.int16)


def hu_to_grey(hu: np.ndarray, window: Window = LUNG_WINDOW) -> np.ndarray:
    """The way back, uint8: what a viewer exports with this window."""
    low, high = window
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def write_png(grey: np.ndarray, path: Path) -> None:
    """A uint8 (rows, columns) image or mask as 8-bit grey PNG."""
    Image.fromarray(np.ascontiguousarray(grey)).save(path)
