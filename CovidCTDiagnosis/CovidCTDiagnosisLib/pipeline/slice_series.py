"""The COVID-19 probability of a series of slice images, by the networks that serve a CT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..ct.slice_images import grey_to_hu
from ..errors import InputError
from .diagnosis import ClassifierInput, Diagnosis, classifier_input, diagnose
from .memory import memory_errors
from .models import Models
from .slice_segmentation import SliceOptions, check_sizes, find_turns
from .slices import NOMINAL_PIXEL_MM, segment_slices, stack_masks, stack_slices

NETWORKS = ("lungs", "lesions", "involvement", "classifier")


def diagnose_images(
    images: Sequence[np.ndarray],
    models: Models,
    options: SliceOptions,
    report: Callable[[float], None] = lambda fraction: None,
) -> Diagnosis:
    """Diagnose the slices of one scan as the classifier has learned it: each segmented on its own.

    Args:
        images: 8-bit grey, (rows, columns) each; any order, sizes may differ.
        models: ``NETWORKS`` and the calibration of the bundle.
        options: how the images are read; all lie the same way.
        report: gets the fraction of the work done.

    Raises:
        InputError: an image is too small, or no lungs are found.
        ResourceError: out of memory.
    """
    longest_side = models.preprocessing("classifier")["longest_side"]
    with memory_errors("There is not enough memory for these images.", "Close other programs or give smaller images."):
        told: list[str] = []
        inputs = models.on_card_or_cpu(
            lambda m: images_input(images, m, longest_side, options, lambda f: report(0.95 * f), told.append),
            told.append,
        )
        found = models.on_card_or_cpu(
            lambda m: diagnose(inputs, m, lambda fraction: report(0.95 + 0.05 * fraction)), told.append
        )
        return replace(found, appearance_warnings=tuple(dict.fromkeys((*told, *found.appearance_warnings))))


def images_input(
    images: Sequence[np.ndarray],
    models: Models,
    longest_side: int,
    options: SliceOptions,
    report: Callable[[float], None] = lambda fraction: None,
    warn: Callable[[str], None] = lambda text: None,
) -> ClassifierInput:
    """What the classifier sees of a scan's slice images; for arguments and errors see ``diagnose_images``."""
    check_sizes(images, max(models.preprocessing("lesions")["step_mm"][1:]), options.pixel_mm)
    slices = [grey_to_hu(image, options.window) for image in images]
    turns = find_turns(slices, True, options.orientation, warn)
    upright = [np.rot90(s, turn) for s, turn in zip(slices, turns, strict=True)]
    return series_input(upright, models, longest_side, options.slice_mm, options.pixel_mm, report)


def series_input(
    upright: Sequence[np.ndarray],
    models: Models,
    longest_side: int,
    slice_mm: float,
    pixel_mm: float = NOMINAL_PIXEL_MM,
    report: Callable[[float], None] = lambda fraction: None,
) -> ClassifierInput:
    """What the classifier sees of a series: every slice that is given, whatever its increment.

    Args:
        upright: HU, (J, I) each.
        models: networks ``lungs``, ``lesions`` and ``involvement``.
        longest_side: see ``classifier_input``.
        slice_mm: increment.
        pixel_mm: pixel size.
        report: gets the fraction of the work done.

    Raises:
        InputError: no lungs are found.
    """
    lungs, lesions = map(stack_masks, segment_slices(upright, models, slice_mm, pixel_mm, report))
    if not lungs.any():
        raise InputError("No lungs were found in the images.", "Give axial chest CT slices in a lung window.")
    volume = stack_slices(upright, slice_mm, pixel_mm)
    return classifier_input(volume, lungs, lesions, slice_mm=slice_mm, longest_side=longest_side)
