"""Is this a chest CT? Cheap tests on grid and voxels, sure enough to refuse before any network runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .orientation import ROUNDING, skewness, to_axial
from .volume import Volume

MIN_SLICES = 5
SPACING_MM = (0.1, 20.0)
AIR_HU = (
    -1100.0,
    -500.0,
)  # room air, gas and aerated lung; below lies only padding outside the field of view
SOFT_TISSUE_HU = (-200.0, 200.0)
GAS_HU = -970.0  # gas in bowel or sinuses lies below, the median of a lung above, even with emphysema
MIN_WIDTH_MM, USUAL_WIDTH_MM = 120.0, 200.0
MIN_LUNG_ML = 100.0
MIN_REGION_ML = 50.0
MIN_EXTENT_MM = 100.0
THICK_SLICE_MM = 5.0
COARSE_MM = 4.0
BORDER_HU, CUT_CM2 = (-920.0, -500.0), 20.0
"""What is as dense as lung, and no foam of the table; and so much of it at a scan's right and left side that lungs are
cut."""
_WINDOWED = "Give the original DICOM series, or a file that was converted from it without windowing."
_NOT_CHEST = "Choose a CT that shows the chest."


def check_grid(volume: Volume) -> None:
    """Refuse a grid that no CT has.

    Raises:
        InputError: fewer than 5 slices along an axis, spacing outside 0.1 to 20 mm, or skewed axes.
    """
    if min(volume.shape) < MIN_SLICES:
        raise InputError(
            f"The image has {count_of(min(volume.shape), 'slice')}; a chest CT has at least {MIN_SLICES}.",
            "Give the whole series.",
        )
    if not all(SPACING_MM[0] <= step <= SPACING_MM[1] for step in volume.spacing):
        raise InputError(
            f"The voxel spacing of {describe_spacing(volume.spacing)} cannot be right.",
            "Convert the scan again from the original DICOM series.",
        )
    check_axes(volume)


def check_axes(volume: Volume) -> None:
    """Raise InputError for skewed axes, or a place that is no number."""
    if not np.isfinite(volume.origin).all():
        raise InputError("The file does not say where the image lies: its origin is no number.", "Convert it again.")
    if not skewness(np.asarray(volume.direction)) <= ROUNDING:
        raise not_at_right_angles()


def check_hounsfield(volume: Volume) -> None:
    """Refuse voxels that are not Hounsfield units.

    Raises:
        InputError: NaN or infinite voxels, one single value, a segmentation, 8-bit grey values, stored values
            without rescale, or no air and soft tissue where HU would put them.
    """
    voxels = volume.voxels
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise not_numbers()
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        raise InputError("All voxels have the same value.", "Check that the right file was chosen.")
    # Neighbours along i stay neighbours: a segmentation is told by them.
    sample = voxels[:: max(1, volume.shape[0] // 64), :: max(1, volume.shape[1] // 128)]
    if low >= 0 and _is_label_map(sample):
        raise InputError("The image is a segmentation (label map), not a CT.", "Give the CT it was drawn on.")
    if low >= 0 and high <= 255:
        raise InputError("The image has grey values from 0 to 255, not Hounsfield units.", _WINDOWED)
    if low >= 0:
        raise InputError(
            f"The image has no air: its values run from {low:g} to {high:g}, "
            "so the rescale to Hounsfield units is missing.",
            _WINDOWED,
        )
    if _share(sample, AIR_HU) < 0.005 or _share(sample, SOFT_TISSUE_HU) < 0.02:
        raise InputError(
            f"The values of the image ({low:g} to {high:g}) are not Hounsfield units of a body in air.",
            _WINDOWED,
        )


def check_chest_ct(volume: Volume) -> list[str]:
    """Refuse what is surely not a chest CT; warn about what makes the findings less certain.

    Looks at voxels averaged to about 4 mm, so it costs a fraction of a second. A scan that passes may still
    be refused later, where the lung network finds no lungs.

    Args:
        volume: HU, any orientation.

    Returns:
        Warnings, one sentence each.

    Raises:
        InputError: see `check_grid` and `check_hounsfield`; a field of view too small for a chest; no lungs
            (aerated regions inside the body that are not mere gas); lungs only at one end of a long scan.
    """
    check_grid(volume)
    check_hounsfield(volume)
    axial = to_axial(volume)
    width, depth, extent = (n * step for n, step in zip(axial.shape[::-1], axial.spacing, strict=True))
    if min(width, depth) < MIN_WIDTH_MM:
        raise InputError(f"The field of view of {width:.0f} x {depth:.0f} mm is too small for a chest.", _NOT_CHEST)
    coarse = _coarse(axial)
    lungs = _lung_like(coarse)
    lung_ml = np.count_nonzero(lungs) * coarse.voxel_ml
    if lung_ml < MIN_LUNG_ML:
        raise InputError("The image shows no lungs: there is no aerated lung inside the body.", _NOT_CHEST)
    span = _lung_span(lungs, coarse.spacing[2])
    if span.length < MIN_EXTENT_MM and (
        (span.cut_above and span.below > 1.5 * MIN_EXTENT_MM) or (span.cut_below and span.above > 1.5 * MIN_EXTENT_MM)
    ):
        part = "abdomen" if span.cut_above else "head or neck"
        raise InputError(f"The scan shows the {part}, and only {span.length:.0f} mm of the lungs.", _NOT_CHEST)
    warnings = []
    if not volume.orientation_known:
        warnings.append("The file does not say how the patient lies: right and left may be exchanged.")
    if max(volume.spacing) > THICK_SLICE_MM + 0.05:  # as it is said
        warnings.append(
            f"The slices are {max(volume.spacing):.1f} mm apart: small lesions may be missed "
            f"({THICK_SLICE_MM:.0f} mm or less is better)."
        )
    if width < USUAL_WIDTH_MM:
        warnings.append(
            f"The field of view is only {width:.0f} mm wide: if it shows one lung alone, that may be taken for the "
            "other side's."
        )
    if extent < MIN_EXTENT_MM:
        warnings.append(f"The scan covers only {extent:.0f} mm along the body: part of the chest is missing.")
    if _border_cm2(coarse) > CUT_CM2:
        warnings.append("The lungs are cut off at the side of the scan: volumes are too small.")
    if span.cut_below:
        warnings.append("The lungs are cut off at the lower end of the scan: volumes are too small.")
    if span.cut_above:
        warnings.append("The lungs are cut off at the upper end of the scan: volumes are too small.")
    return warnings


def describe_spacing(spacing: Iterable[float]) -> str:
    """Spacing for a sentence, such as "0.70 x 0.70 x 2.50 mm"."""
    return " x ".join(f"{step:.2f}" for step in spacing) + " mm"


def count_of(number: int, noun: str) -> str:
    """A number and its noun, such as "1 slice" or "2 slices"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def not_at_right_angles() -> InputError:
    """The error for skewed axes, as of a tilted gantry."""
    return InputError("The axes of the image are not at right angles.", "Resample it to a straight grid.")


def not_numbers() -> InputError:
    """The error for NaN or infinite voxels, which are never replaced: nobody knows what was there."""
    return InputError(
        "The image has voxels that are not numbers (NaN or infinite).",
        "Convert the scan again from the original DICOM series.",
    )


class _Span(NamedTuple):
    """Where the lungs lie along k: mm of scan below, with, and above them, and whether an end cuts them."""

    below: float
    length: float
    above: float
    cut_below: bool
    cut_above: bool


def _lung_span(lungs: np.ndarray, step: float) -> _Span:
    area = lungs.sum(axis=(1, 2))
    inside = np.flatnonzero(area)
    first, last = int(inside[0]), int(inside[-1])
    cut = area > 0.2 * area.max()
    return _Span(
        below=first * step,
        length=(last - first + 1) * step,
        above=(len(area) - 1 - last) * step,
        cut_below=bool(cut[0]),
        cut_above=bool(cut[-1]),
    )


def _border_cm2(coarse: Volume) -> float:
    """Area of lung at the right and left side of the scan: large regions as dense as lung, and no thin ones as skin."""
    from scipy import ndimage

    low, high = BORDER_HU
    # Beyond the border it goes on as at the border: else all that touches it would be thin.
    dense = np.pad((coarse.voxels > low) & (coarse.voxels < high), ((0, 0), (2, 2), (2, 2)), mode="edge")
    thick = ndimage.binary_opening(dense, np.ones((1, 5, 5), bool))[:, 2:-2, 2:-2]
    regions, _ = ndimage.label(thick)
    large = np.bincount(regions.ravel()) * coarse.voxel_ml >= MIN_REGION_ML
    large[0] = False
    _, step_j, step_k = coarse.spacing
    return float(np.count_nonzero(large[regions][:, :, [0, -1]]) * step_j * step_k / 100)


def _lung_like(coarse: Volume) -> np.ndarray:
    """Aerated regions (K, J, I) inside the body, of at least 50 ml, that are not mere gas."""
    from scipy import ndimage

    hu = coarse.voxels
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    body = _largest_component(hu > AIR_HU[1])
    pockets, _ = ndimage.label(~body, in_plane)
    outside = np.unique(np.concatenate([pockets[:, [0, -1]].ravel(), pockets[:, :, [0, -1]].ravel()]))
    if np.mean(hu < GAS_HU) < 0.05:
        # No room air at all: the image is cropped to the chest, and what its edge cuts may be lung.
        outside = outside[:0]
    inside = (hu < AIR_HU[1]) & ~body & ~np.isin(pockets, outside)
    regions, count = ndimage.label(inside)
    index = np.arange(1, count + 1)
    if not count:
        return inside
    volumes_ml = np.bincount(regions.ravel(), minlength=count + 1)[1:] * coarse.voxel_ml
    medians = np.asarray(ndimage.median(hu, regions, index))
    return np.isin(regions, index[(volumes_ml >= MIN_REGION_ML) & (medians > GAS_HU)])


def _largest_component(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if not count:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _coarse(volume: Volume) -> Volume:
    """The volume averaged over blocks about 4 mm wide (every other row and column: enough, and quicker)."""
    block = [
        min(max(1, round(COARSE_MM / step)), n) for step, n in zip(volume.spacing[::-1], volume.shape, strict=True)
    ]
    k, j, i = (n // b for n, b in zip(volume.shape, block, strict=True))
    voxels = volume.voxels[: k * block[0], : j * block[1], : i * block[2]]
    blocks = voxels.reshape(k, block[0], j, block[1], i, block[2])[:, :, :, ::2, :, ::2]
    x, y, z = volume.spacing
    return Volume(
        voxels=blocks.mean(axis=(1, 3, 5), dtype=np.float32),
        spacing=(x * block[2], y * block[1], z * block[0]),
        origin=volume.origin,
        direction=volume.direction,
    )


def _is_label_map(sample: np.ndarray) -> bool:
    """Whole numbers that repeat from voxel to voxel, also between the lowest and the highest."""
    if sample.dtype.kind == "f" and not np.array_equal(sample, np.rint(sample)):
        return False
    left, right = sample[..., :-1], sample[..., 1:]
    between = (left > sample.min()) & (left < sample.max())
    return not between.any() or float((left == right)[between].mean()) > 0.7


def _share(sample: np.ndarray, bounds: tuple[float, float]) -> float:
    return float(((sample >= bounds[0]) & (sample <= bounds[1])).mean())
