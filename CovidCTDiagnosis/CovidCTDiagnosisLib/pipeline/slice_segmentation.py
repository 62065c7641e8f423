"""A folder of 8-bit slice images through the networks: a stack as one CT, other images each on its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..ct.slice_images import grey_to_hu
from ..ct.volume import Volume
from ..ct.windows import LUNG_WINDOW, Window
from ..errors import InputError
from .lesions import segment_lesions
from .lungs import segment_lungs
from .memory import memory_errors
from .models import Models
from .monitor import Monitor
from .slice_orientation import TURNS, apex_is_last, common_turn, is_doubtful, log_likelihoods, shrink, turns_of
from .slices import NOMINAL_PIXEL_MM, NOMINAL_SLICE_MM, slice_lesions, slice_lungs

SMALLEST_SIDE, SMALLEST_WORKING_SIDE = 32, 12
"""Pixels of an image, and of the working grid: what shows less is no chest, or its pixel size is wrong."""
SMALLEST_STACK = 8
USUAL_SHARE = 0.9
"""Of pictures that have one size, from which on the others are odd ones among them."""
BLACK = 2
"""Grey of 0 to 255 that says nothing any more."""
NEIGHBOURS_MEDIAN, NEIGHBOURS_MOST = 0.5, 0.75
"""Neighbours differ less than this share of what any two slices differ by, at the median and at most."""

AUTO = "auto"
ORIENTATIONS = (AUTO, *TURNS)


@dataclass(frozen=True)
class SliceOptions:
    """How slice images are read.

    Attributes:
        window: HU of grey 0 and 255.
        pixel_mm: pixel size.
        slice_mm: increment of a stack.
        orientation: one of ``ORIENTATIONS``.
    """

    window: Window = LUNG_WINDOW
    pixel_mm: float = NOMINAL_PIXEL_MM
    slice_mm: float = NOMINAL_SLICE_MM
    orientation: str = AUTO


@dataclass(frozen=True)
class SliceMasks:
    """What was found in slice images, each mask as its image lies.

    Attributes:
        lungs: bool (rows, columns) each.
        lesions: uint8 (rows, columns) each, 1 ground-glass opacity, 2 consolidation.
        orientations: name in ``TURNS`` for each image.
        order: ``apex first`` or ``base first`` for a stack, empty for lone slices.
    """

    lungs: list[np.ndarray]
    lesions: list[np.ndarray]
    orientations: list[str]
    order: str = ""

    def document(self, options: SliceOptions, names: Sequence[str], bundle: Bundle) -> dict[str, Any]:
        """How images of these names were read and by which bundle, as JSON values."""
        return {
            "schema_version": 1,
            "images": [{"name": n, "orientation": o} for n, o in zip(names, self.orientations, strict=True)],
            "order": self.order,
            "options": asdict(options),
            "bundle": {"name": bundle.name, "version": bundle.version, "files": bundle.sha256},
        }


def segment_images(
    images: Sequence[np.ndarray], models: Models, options: SliceOptions, monitor: Monitor | None = None
) -> SliceMasks:
    """Lungs and lesions of slice images.

    Images of one size of which each continues the one before are a CT and go the way of ``analyze``; other
    images go alone.

    Args:
        images: 8-bit grey, (rows, columns) each, in order.
        models: the bundle's networks.
        options: how the images are read.
        monitor: gets progress, may cancel.

    Raises:
        InputError: an image is too small.
        ResourceError: out of memory.
        Cancelled: the monitor was asked to stop.
    """
    check_sizes(images, max(models.preprocessing("lesions")["step_mm"][1:]), options.pixel_mm)
    with memory_errors(
        "There is not enough memory for these images.", "Close other programs or give fewer images at once."
    ):
        return _segment_images(images, models, options, monitor or Monitor())


def check_sizes(images: Sequence[np.ndarray], step_mm: float, pixel_mm: float) -> None:
    """Refuse images, (rows, columns) each, that are too small for networks on a grid of this step.

    Raises:
        InputError: says which, and what to give instead.
    """
    for number, image in enumerate(images, start=1):
        rows, columns = image.shape
        if min(rows, columns) < SMALLEST_SIDE:
            raise InputError(
                f"Image {number} of {len(images)} has only {columns} x {rows} pixels.",
                f"Give whole axial slices, at least {SMALLEST_SIDE} pixels a side.",
            )
        if min(rows, columns) * pixel_mm < SMALLEST_WORKING_SIDE * step_mm:
            raise InputError(
                f"Image {number} of {len(images)} shows only {columns * pixel_mm:.3g} x {rows * pixel_mm:.3g} mm.",
                f"Give whole axial slices and their pixel size; it is taken to be {pixel_mm:g} mm.",
            )


def _segment_images(
    images: Sequence[np.ndarray], models: Models, options: SliceOptions, monitor: Monitor
) -> SliceMasks:
    slices = [grey_to_hu(image, options.window) for image in images]
    stacked = is_stack(slices)
    if not stacked:
        _warn_of_odd_ones(slices, monitor.warn)
    turns = find_turns(slices, stacked, options.orientation, monitor.warn)
    upright = [np.rot90(s, turn) for s, turn in zip(slices, turns, strict=True)]
    found = _segment_stack(upright, models, options, monitor) if stacked else None
    lungs, lesions, order = found or (*_segment_alone(upright, models, options, monitor), "")
    names = list(TURNS)
    own_lungs = [np.rot90(m, -turn) for m, turn in zip(lungs, turns, strict=True)]
    _warn_of_window(images, own_lungs, monitor.warn)
    return SliceMasks(
        own_lungs,
        [np.rot90(m, -turn) for m, turn in zip(lesions, turns, strict=True)],
        [names[list(TURNS.values()).index(turn)] for turn in turns],
        order,
    )


def _warn_of_odd_ones(slices: Sequence[np.ndarray], warn: Callable[[str], None]) -> None:
    """Say so where a few pictures, as a scout or a black one, keep the others from being taken for one CT."""
    odd = _odd_ones(slices)
    others = [s for number, s in enumerate(slices) if number not in odd]
    if odd and len(others) >= USUAL_SHARE * len(slices) and is_stack(others):
        warn(
            f"Each picture is taken on its own, as number {', '.join(str(number + 1) for number in sorted(odd))} of "
            f"{len(slices)} is unlike the others, which look like one CT: leave it out."
        )


def _odd_ones(slices: Sequence[np.ndarray]) -> set[int]:
    """Numbers, from 0, of pictures of another size than most, or that continue none beside them."""
    ((usual, _),) = Counter(s.shape for s in slices).most_common(1)
    alike = [number for number, s in enumerate(slices) if s.shape == usual]
    if len(alike) >= SMALLEST_STACK:
        neighbours, any_two = _distances([slices[number] for number in alike])
        far = neighbours >= NEIGHBOURS_MOST * any_two
        alone = np.append(True, far) & np.append(far, True)
        alike = [number for number, lone in zip(alike, alone, strict=True) if not lone]
    return set(range(len(slices))) - set(alike)


def _warn_of_window(images: Sequence[np.ndarray], lungs: Sequence[np.ndarray], warn: Callable[[str], None]) -> None:
    """Say so where no lungs are seen at all, or half of them is black in most pictures that show any."""
    black = [np.median(image[mask]) <= BLACK for image, mask in zip(images, lungs, strict=True) if mask.any()]
    if not black:
        warn("No lungs were found in any picture. Give axial slices of the chest in a lung window.")
    elif np.mean(black) > 0.5:
        warn(
            f"Lungs are black in {sum(black)} of {len(black)} pictures, as in a soft-tissue window: ground-glass "
            "opacity cannot be seen there. Give pictures in a lung window."
        )


def is_stack(slices: Sequence[np.ndarray]) -> bool:
    """Whether slices, (rows, columns) each, are those of one CT in order."""
    if len(slices) < SMALLEST_STACK or len({s.shape for s in slices}) > 1:
        return False
    neighbours, usual = _distances(slices)
    return bool(np.median(neighbours) < NEIGHBOURS_MEDIAN * usual and neighbours.max() < NEIGHBOURS_MOST * usual)


def _distances(slices: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """How far each slice is from the next one, and any two are from each other in the middle."""
    small = np.stack([shrink(s) for s in slices])
    neighbours: np.ndarray = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2))
    # Of all distances one shift at a time, so that memory stays small.
    shifts = range(1, len(small))
    any_two = np.concatenate([np.abs(small[n:] - small[:-n]).mean(axis=(1, 2)) for n in shifts])
    return neighbours, float(np.median(any_two))


def find_turns(
    slices: Sequence[np.ndarray], together: bool, orientation: str, warn: Callable[[str], None]
) -> list[int]:
    """Quarter turns that bring each slice upright.

    Args:
        slices: HU, (rows, columns) each.
        together: whether all lie the same way.
        orientation: one of ``ORIENTATIONS``.
        warn: told if the turn is a guess.
    """
    if orientation != AUTO:
        return [TURNS[orientation]] * len(slices)
    likelihoods = np.stack([log_likelihoods(s) for s in slices])
    if (together or len(slices) == 1) and is_doubtful(likelihoods):
        warn("How the patient lies in the pictures is a guess: say it with --orientation.")
    numbers = [common_turn(likelihoods)] * len(slices) if together else turns_of(likelihoods)
    return [list(TURNS.values())[n] for n in numbers]


def _segment_stack(
    upright: Sequence[np.ndarray], models: Models, options: SliceOptions, monitor: Monitor
) -> tuple[list[np.ndarray], list[np.ndarray], str] | None:
    """Lungs, lesions and order of a CT; None where its lungs are not found."""
    order = 1 if apex_is_last(upright) else -1
    volume = Volume(np.stack(upright[::order]), (options.pixel_mm, options.pixel_mm, options.slice_mm))
    try:
        with monitor.stage("lungs", "Segmenting the lungs"):
            lungs = models.on_card_or_cpu(
                lambda m: segment_lungs(volume, m, monitor.report, monitor.warn).labels, monitor.warn
            )
    except InputError:
        monitor.warn("No lungs were found in the stack of slices: each slice is segmented on its own.")
        return None
    with monitor.stage("lesions", "Segmenting lesions"):
        found = models.on_card_or_cpu(
            lambda m: segment_lesions(volume, lungs, m, monitor.report, merge=True, warn=monitor.warn), monitor.warn
        )
    return list(found.lungs[::order] > 0), list(found.labels[::order]), "base first" if order == 1 else "apex first"


def _segment_alone(
    upright: Sequence[np.ndarray], models: Models, options: SliceOptions, monitor: Monitor
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    spacing = (options.pixel_mm, options.pixel_mm, options.slice_mm)
    with monitor.stage("lungs", "Segmenting the lungs"):
        lungs = models.on_card_or_cpu(lambda m: slice_lungs(upright, spacing, m, monitor.report), monitor.warn)
    with monitor.stage("lesions", "Segmenting lesions"):
        return models.on_card_or_cpu(
            lambda m: slice_lesions(upright, lungs, spacing, m, monitor.report, merge=True), monitor.warn
        )
