"""Turning a volume to axial order and back: axes are permuted and flipped, nothing is interpolated."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from .volume import FILES_APART_MM, Volume

ROUNDING = 1e-3
"""Skewness up to this is that of rounded cosines."""


def skewness(direction: np.ndarray) -> float:
    """How far products of axes (columns of 3 x 3) are from those of unit vectors at right angles."""
    return float(np.abs(direction.T @ direction - np.eye(3)).max())


def straightened(direction: np.ndarray) -> np.ndarray:
    """The nearest axes at right angles where cosines were rounded; NIfTI, as a study is written, holds no others.

    Axes that are right to single precision, and skewed ones, stay as they are.
    """
    if not 1e-6 < skewness(direction) <= ROUNDING:
        return direction
    left, _, right = np.linalg.svd(direction)
    straight: np.ndarray = left @ right
    return straight


def to_axial(volume: Volume) -> Volume:
    """The same voxels with i running right to left, j anterior to posterior, k inferior to superior.

    Each axis is matched with the nearest patient axis, so an oblique grid stays oblique. Every voxel keeps
    its position in the patient. The voxels are a view of the input's.
    """
    source, flipped = _axial_axes(volume)
    size = np.array(volume.shape[::-1])
    first = np.zeros(3)
    first[source] = np.where(flipped, size[source] - 1, 0)
    origin = volume.affine @ [*first, 1.0]
    direction = np.asarray(volume.direction)[:, source] * np.where(flipped, -1.0, 1.0)
    voxels = volume.voxels.transpose(_array_axes(source))
    return Volume(
        voxels=np.flip(voxels, _flipped_array_axes(flipped)),
        spacing=(volume.spacing[source[0]], volume.spacing[source[1]], volume.spacing[source[2]]),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple((float(row[0]), float(row[1]), float(row[2])) for row in direction),
    )


def from_axial(voxels: np.ndarray, like: Volume) -> np.ndarray:
    """Bring an array on the grid of `to_axial(like)` back to the (K, J, I) order of `like`, as a view.

    Raises:
        ValueError: the array does not have the shape of `to_axial(like)`.
    """
    source, flipped = _axial_axes(like)
    axes = _array_axes(source)
    expected = tuple(like.shape[axis] for axis in axes)
    if voxels.shape != expected:
        raise ValueError(f"voxels of shape {voxels.shape} do not fit an axial grid of shape {expected}")
    return np.flip(voxels, _flipped_array_axes(flipped)).transpose(np.argsort(axes))


def on_grid_of(volume: Volume, like: Volume) -> Volume | None:
    """The volume's voxels in the order of a grid that holds the same places in another one, or None for other places.

    Files of one scan may store rows, columns or slices the other way round.
    """
    axial, wanted = to_axial(volume), to_axial(like)
    if not axial.on_same_grid(wanted, FILES_APART_MM):
        return None
    return like.with_voxels(from_axial(axial.voxels, like))


def _axial_axes(volume: Volume) -> tuple[list[int], np.ndarray]:
    """For each of L, P, S: which of i, j, k lies nearest to it, and whether that one runs the other way."""
    direction = np.asarray(volume.direction)
    best = max(permutations(range(3)), key=lambda axes: sum(abs(direction[row, axes[row]]) for row in range(3)))
    return list(best), np.array([direction[row, best[row]] < 0 for row in range(3)])


def _array_axes(source: list[int]) -> list[int]:
    """Axes of a (K, J, I) array in the order that puts axes `source` of (i, j, k) at (i, j, k)."""
    return [2 - axis for axis in reversed(source)]


def _flipped_array_axes(flipped: np.ndarray) -> tuple[int, ...]:
    return tuple(2 - axis for axis in range(3) if flipped[axis])
