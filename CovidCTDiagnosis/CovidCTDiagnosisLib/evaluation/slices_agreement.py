"""A CT exported as 8-bit slices against the CT itself: the findings must be the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..ct.slice_images import find_slice_images, hu_to_grey, read_slice_image, write_png
from ..ct.volume import Volume
from ..pipeline.lesions import segment_lesions
from ..pipeline.lungs import segment_lungs
from ..pipeline.models import Models
from ..pipeline.slice_segmentation import SliceOptions, segment_images
from .metrics import dice


def agreement(ct: Volume, models: Models) -> dict[str, float]:
    """Dice between the findings in an axial CT and those in its slices, exported as 8-bit PNG images, apex first.

    The slices come with pixel size and increment, as ``--pixel-mm`` and ``--slice-mm`` give them; orientation,
    stack and order are found.

    Args:
        ct: HU, axial.
        models: networks ``lungs``, ``lesions`` and ``involvement``.

    Returns:
        ``lungs`` and ``lesions``.
    """
    own = segment_lesions(ct, segment_lungs(ct, models, _ignore).labels, models, _ignore)
    with tempfile.TemporaryDirectory() as name:
        export_slices(ct, Path(name))
        images = [read_slice_image(path) for path in find_slice_images(Path(name))]
    options = SliceOptions(pixel_mm=ct.spacing[0], slice_mm=ct.spacing[2])
    found = segment_images(images, models, options)
    return {
        "lungs": dice(np.stack(found.lungs)[::-1], own.lungs),
        "lesions": dice(np.stack(found.lesions)[::-1], own.labels),
    }


def export_slices(ct: Volume, folder: Path) -> None:
    """An axial CT as upright 8-bit PNG images, apex first, named 000.png and so on."""
    for number, hu in enumerate(ct.voxels[::-1]):
        write_png(hu_to_grey(hu), folder / f"{number:03d}.png")


def _ignore(fraction: float) -> None:
    """Nobody watches the progress."""
