"""Lungs that come as a ready mask instead of from the bundle's network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..ct.orientation import to_axial
from ..ct.regrid import WorkingGrid, bounding_region, from_grid, region_grid, to_grid
from ..ct.volume import Volume
from ..ct.write import to_itk
from ..errors import InputError
from .lung_sides import LEFT, RIGHT, midline, tell_sides

_SIDES_MM = 3.0
_MOST_CONTACT, _MOST_INSIDE = 0.4, 0.98
"""Shares: of a lung's surface that may touch the other lung, and below which of a mask that lies in the CT it is told.
"""
_LEAST_ML, _MOST_ML = 1.0, 12_000.0
_MOST_LABEL = np.iinfo(np.int16).max
_DENSE_HU, _EMPTY_HU = -200, -980
"""Mean HU of what can be lungs, consolidated or emphysematous, lies between these."""
_GIVE_LUNGS = "Give a segmentation of the lungs that was drawn on this CT."


def take_lungs(mask: Volume, ct: Volume, warn: Callable[[str], None] = lambda text: None) -> np.ndarray:
    """A ready lung mask on the CT's axial grid.

    Args:
        mask: labels; every label above 0 is lung. Labels 1 and 2 and no others are the right and the left lung,
            as in a study's own lungs, unless one lies in the other; otherwise the sides are told apart here. Any
            fraction above 0 is lung too.
        ct: HU. A mask on another grid is resampled onto the CT's by position, nearest neighbour.
        warn: told when the mask does not look like one of lungs.

    Returns:
        uint8 (K, J, I) on the grid of ``to_axial(ct)``: 1 right lung, 2 left lung.

    Raises:
        InputError: the mask is empty or holds next to nothing, has labels below 0, does not overlap the CT, or has
            another size than this and does not say where it lies.
    """
    if mask.voxels.min() < 0:
        raise InputError("The lung mask has values below 0: it is an image, not a segmentation.", _GIVE_LUNGS)
    if not mask.voxels.any():
        raise InputError("The lung mask is empty.", _GIVE_LUNGS)
    mask = mask.with_voxels(np.minimum(np.ceil(mask.voxels).astype(np.float32), _MOST_LABEL).astype(np.int16))
    labels = to_axial(_on_grid(mask, ct, warn)).voxels
    found = np.unique(labels[labels > 0]).tolist()
    if not found:
        raise InputError("The lung mask and the CT do not overlap.", _GIVE_LUNGS)
    axial = to_axial(ct)
    _check(labels, axial, warn)
    if found != [RIGHT, LEFT]:
        return side_lungs(labels > 0, axial)
    return _checked_sides(labels.astype(np.uint8), axial, warn)


def _on_grid(mask: Volume, ct: Volume, warn: Callable[[str], None]) -> Volume:
    """The mask on the CT's grid."""
    if mask.on_same_grid(ct):
        return mask
    if not mask.orientation_known:
        if mask.shape != ct.shape:
            raise InputError("The lung mask does not say where it lies in the patient.", _GIVE_LUNGS)
        warn("The lung mask given does not say where it lies: its voxels are taken to be those of the CT, one by one.")
        return ct.with_voxels(mask.voxels)
    found = resample_labels(mask, ct)
    ml, found_ml = _ml(mask), _ml(found)
    if found_ml and found_ml < _MOST_INSIDE * ml:
        warn(f"Of the lung mask given, {ml - found_ml:.0f} of {ml:.0f} ml lie outside the CT: check that it is of it.")
    return found


def _ml(labels: Volume) -> float:
    return np.count_nonzero(labels.voxels) * float(np.prod(labels.spacing)) / 1000


def _checked_sides(labels: np.ndarray, axial: Volume, warn: Callable[[str], None]) -> np.ndarray:
    """Labels 1 and 2 as they are; but where one lies in the other, as lesions in lungs, sides of our own."""
    if _contact(labels) > _MOST_CONTACT:
        warn("Labels 1 and 2 of the lung mask given lie in each other, as lesions in lungs: the sides are told anew.")
        return side_lungs(labels > 0, axial)
    right, left = (np.nonzero(labels == side)[2].mean() for side in (RIGHT, LEFT))
    if right > left:
        warn("In the lung mask given, label 1 (right) lies on the patient's left: check its sides.")
    return labels


def _contact(labels: np.ndarray) -> float:
    """Share of the smaller label's surface in its slices that touches the other label."""
    small, large = sorted((RIGHT, LEFT), key=lambda side: np.count_nonzero(labels == side))
    faces, touching = 0, 0
    for axis in (1, 2):
        ahead, behind = np.moveaxis(labels, axis, 0)[1:], np.moveaxis(labels, axis, 0)[:-1]
        for one, other in ((ahead, behind), (behind, ahead)):
            beside = other[one == small]
            faces += int(np.count_nonzero(beside != small))
            touching += int(np.count_nonzero(beside == large))
    return touching / max(faces, 1)


def _check(labels: np.ndarray, axial: Volume, warn: Callable[[str], None]) -> None:
    ml = _ml(axial.with_voxels(labels))
    if ml < _LEAST_ML:
        raise InputError(f"The lung mask holds {ml:.1f} ml of this CT only.", _GIVE_LUNGS)
    mean = float(axial.voxels[labels > 0].mean())
    if ml > _MOST_ML or not _EMPTY_HU < mean < _DENSE_HU:
        warn(f"The lung mask given holds {ml:.0f} ml of {mean:.0f} HU on average: check that it is one of lungs.")


def resample_labels(labels: Volume, like: Volume) -> Volume:
    """Labels on another volume's grid by position, nearest neighbour; 0 where they say nothing."""
    resampled = sitk.Resample(
        to_itk(labels), to_itk(like), sitk.Transform(), sitk.sitkNearestNeighbor, 0.0, sitk.sitkInt16
    )
    return like.with_voxels(sitk.GetArrayFromImage(resampled))


def side_lungs(mask: np.ndarray, axial: Volume) -> np.ndarray:
    """Right (1) and left (2) of a lung mask on an axial CT's grid, told apart on a coarser one.

    Args:
        mask: bool (K, J, I), not empty.
        axial: HU.

    Returns:
        uint8 (K, J, I), set where the mask is.
    """
    spacing = axial.spacing[::-1]
    region = bounding_region(mask)
    box = region_grid(region, spacing)
    grid = WorkingGrid.covering(box.start, box.stop, (_SIDES_MM, _SIDES_MM, _SIDES_MM))
    coarse = to_grid(mask, spacing, grid)
    sides = tell_sides(coarse >= min(0.5, float(coarse.max())), grid.step, midline(axial, grid))
    nearest = ndimage.distance_transform_edt(sides == 0, return_distances=False, return_indices=True)
    left = from_grid(sides[tuple(nearest)] == LEFT, grid, spacing, region) > 0.5
    result = np.zeros(mask.shape, np.uint8)
    result[region] = np.where(mask[region], np.where(left, LEFT, RIGHT), 0)
    return result
