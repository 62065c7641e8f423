"""Write the masks of slice images, one PNG per image with its name, size and orientation.

=============  ==================================================
lungs/         0, 255
infection/     0, 255
classes/       0, 1 ground-glass opacity, 2 consolidation
slices.json    how the images were read, and by which bundle
=============  ==================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from CovidCTDiagnosisLib.ct.slice_images import write_png
from CovidCTDiagnosisLib.errors import UsageError
from CovidCTDiagnosisLib.folders import check_target, is_left_by_file_manager, replaced_folder

DOCUMENT = "slices.json"
LUNGS, INFECTION, CLASSES = "lungs", "infection", "classes"
KINDS = (LUNGS, INFECTION, CLASSES)

_KIND = "folder of slice masks"
_REMEDY = f"Choose another folder for the {_KIND}."


def check_masks_output(folder: Path, images: Path) -> bool:
    """Make sure that masks can be written to `folder`, before the long work starts.

    Older masks there are fine: they are replaced as a whole, at the end.

    Args:
        folder: where to.
        images: folder of the images, which must not lie in it.

    Returns:
        Whether there are older masks.

    Raises:
        UsageError: `folder` holds something other than slice masks, holds the images, or cannot be made.
    """
    if images.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"The folder {folder} holds the images themselves.", _REMEDY)
    check_target(folder, DOCUMENT, _KIND, own={DOCUMENT, *KINDS})
    there = [path for kind in KINDS for path in (folder / kind).glob("*") if not is_left_by_file_manager(path.name)]
    strange = [path for path in there if path.suffix != ".png"]
    if strange:
        raise UsageError(f"The folder {folder} also holds {strange[0].name}, which is no slice mask.", _REMEDY)
    return bool(there)


def write_masks(
    folder: Path, names: list[str], lungs: list[np.ndarray], lesions: list[np.ndarray], document: Mapping[str, Any]
) -> None:
    """Write masks, whole or not at all; older ones are kept until the new ones are complete.

    Args:
        folder: where to; its parent must exist.
        names: of the images, without suffix.
        lungs: bool (rows, columns) each.
        lesions: uint8 (rows, columns) each, 1 ground-glass opacity, 2 consolidation.
        document: the content of slices.json.

    Raises:
        UsageError: `folder` cannot be written.
        ResourceError: the disk is full.
    """
    with replaced_folder(folder) as partial:
        for kind in KINDS:
            (partial / kind).mkdir()
        for name, lung, lesion in zip(names, lungs, lesions, strict=True):
            write_png(_black_and_white(lung), partial / LUNGS / f"{name}.png")
            write_png(_black_and_white(lesion > 0), partial / INFECTION / f"{name}.png")
            write_png(lesion, partial / CLASSES / f"{name}.png")
        (partial / DOCUMENT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _black_and_white(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.uint8(255), np.uint8(0))
