"""Between a volume's own grid and the networks' working grids, along the volume's own axes.

A working grid shares the axes of the (axial) volume, so resampling is separable: one small matrix per axis,
exact for oblique volumes, and the way back is known in closed form. Distances are mm along each axis from the
outer edge of the first voxel; axis order is (k, j, i) throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .volume import Volume

Triple = tuple[float, float, float]
Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class WorkingGrid:
    """A box of voxels along a volume's axes.

    Attributes:
        start: mm from the volume's outer edge to the box's outer edge, (k, j, i); may be negative.
        step: voxel size, mm, (k, j, i).
        count: voxels, (k, j, i).
    """

    start: Triple
    step: Triple
    count: tuple[int, int, int]

    @classmethod
    def covering(cls, start: Triple, stop: Triple, step: Triple) -> WorkingGrid:
        """The smallest grid of this step, centred on the box from start to stop (mm), that covers it."""
        extent = np.subtract(stop, start)
        count = np.maximum(np.ceil(extent / np.asarray(step) - 1e-6), 1).astype(int)
        first = np.asarray(start) - (count * step - extent) / 2
        return cls(_floats(first), _floats(step), (int(count[0]), int(count[1]), int(count[2])))

    @property
    def stop(self) -> Triple:
        """mm from the volume's outer edge to the box's far outer edge, (k, j, i)."""
        return _floats(np.asarray(self.start) + np.multiply(self.step, self.count))

    @classmethod
    def of_volume(cls, shape: tuple[int, int, int], spacing: Triple) -> WorkingGrid:
        """A volume's own grid; spacing in mm along (k, j, i)."""
        return cls((0.0, 0.0, 0.0), _floats(spacing), shape)

    def in_patient(self, values: np.ndarray, volume: Volume) -> Volume:
        """Values on this grid, (K, J, I), as a volume of its own; the grid lies along the axes of ``volume``."""
        step = np.array(self.step[::-1])
        offset = np.array(self.start[::-1]) + step / 2 - np.array(volume.spacing) / 2
        return Volume(
            values, _floats(step), _floats(volume.origin + np.asarray(volume.direction) @ offset), volume.direction
        )


def _floats(values: np.ndarray | Triple) -> Triple:
    k, j, i = (float(v) for v in values)
    return k, j, i


def _overlap(grid: WorkingGrid, other: WorkingGrid, axis: int) -> np.ndarray:
    """Length (mm) that each voxel of the grid shares with each of the other, (grid count, other count)."""
    edges = grid.start[axis] + grid.step[axis] * np.arange(grid.count[axis] + 1)
    others = other.start[axis] + other.step[axis] * np.arange(other.count[axis] + 1)
    lower = np.maximum(edges[:-1, None], others[None, :-1])
    upper = np.minimum(edges[1:, None], others[None, 1:])
    return np.maximum(upper - lower, 0.0)


def _interpolation(grid: WorkingGrid, source: WorkingGrid, axis: int) -> np.ndarray:
    """Linear interpolation at the grid's centres from the source's, the edge repeated outside."""
    count = source.count[axis]
    centres = grid.start[axis] + grid.step[axis] * (np.arange(grid.count[axis]) + 0.5)
    position = np.clip((centres - source.start[axis]) / source.step[axis] - 0.5, 0, count - 1)
    left = np.minimum(np.floor(position).astype(int), max(count - 2, 0))
    fraction = position - left
    matrix = np.zeros((grid.count[axis], count))
    rows = np.arange(grid.count[axis])
    matrix[rows, left] = 1 - fraction
    matrix[rows, np.minimum(left + 1, count - 1)] += fraction
    return matrix


def _average_or_interpolate(grid: WorkingGrid, source: WorkingGrid, axis: int) -> np.ndarray:
    """Rows that average what a coarser voxel covers, or interpolate for a finer one; rows sum to one."""
    linear = _interpolation(grid, source, axis)
    if grid.step[axis] <= source.step[axis]:
        return linear
    overlap = _overlap(grid, source, axis)
    covered = overlap.sum(1, keepdims=True)
    return np.where(covered > 0, overlap / np.maximum(covered, 1e-12), linear)


def _apply(voxels: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """Apply one matrix per axis to a (K, J, I) array, the strongest reduction first."""
    result = voxels.astype(np.float32, copy=False)
    for axis in sorted(range(3), key=lambda a: matrices[a].shape[0] / matrices[a].shape[1]):
        matrix = matrices[axis].astype(np.float32)
        if axis == 2:
            result = result @ matrix.T
        elif axis == 1:
            result = matrix @ result
        else:
            result = (matrix @ result.reshape(result.shape[0], -1)).reshape(-1, *result.shape[1:])
    return result


def _needed(matrix: np.ndarray) -> slice:
    """The range of columns that are used at all."""
    used = np.flatnonzero(matrix.any(0))
    return slice(int(used[0]), int(used[-1]) + 1)


def bounding_region(mask: np.ndarray, margin: tuple[int, int, int] = (0, 0, 0)) -> Region:
    """The smallest box of voxels around a mask that is not empty, widened by a margin within the array."""
    slices = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first = max(int(used[0]) - margin[axis], 0)
        last = min(int(used[-1]) + 1 + margin[axis], mask.shape[axis])
        slices.append(slice(first, last))
    return slices[0], slices[1], slices[2]


def to_grid(voxels: np.ndarray, spacing: Triple, grid: WorkingGrid) -> np.ndarray:
    """Sample a volume on a working grid: mean of what a coarser voxel covers, linear where finer.

    Args:
        voxels: (K, J, I) of the volume.
        spacing: the volume's, mm along (k, j, i).
        grid: where to; outside the volume its edge is repeated.

    Returns:
        float32 array of shape ``grid.count``.
    """
    own = WorkingGrid.of_volume(voxels.shape, spacing)  # type: ignore[arg-type]
    matrices = [_average_or_interpolate(grid, own, axis) for axis in range(3)]
    needed = tuple(_needed(matrix) for matrix in matrices)
    return _apply(voxels[needed], [m[:, n] for m, n in zip(matrices, needed, strict=True)])


def covered_share(mask: np.ndarray, spacing: Triple, grid: WorkingGrid) -> np.ndarray:
    """Share of each working voxel that the mask's voxels fill, float32 of shape ``grid.count``.

    Unlike interpolation it is zero wherever a working voxel touches no voxel of the mask.
    """
    own = WorkingGrid.of_volume(mask.shape, spacing)  # type: ignore[arg-type]
    return _apply(mask, [_cover(grid, own, axis) for axis in range(3)])


def containing_voxels(grid: WorkingGrid, other: WorkingGrid, axis: int) -> np.ndarray:
    """The other grid's voxel that holds, or is nearest to, the centre of each of the grid's, along one axis."""
    centres = grid.start[axis] + grid.step[axis] * (np.arange(grid.count[axis]) + 0.5)
    inside = np.floor((centres - other.start[axis]) / other.step[axis]).astype(int)
    return np.clip(inside, 0, other.count[axis] - 1)


def from_grid(values: np.ndarray, grid: WorkingGrid, spacing: Triple, region: Region, fill: float = 0.0) -> np.ndarray:
    """Bring values on a working grid back to (a region of) the volume's grid, linearly.

    Args:
        values: ``grid.count`` array.
        grid: where the values lie.
        spacing: the volume's, mm along (k, j, i).
        region: voxels of the volume that are wanted, along (k, j, i).
        fill: for voxels whose centre lies outside the grid's box.

    Returns:
        float32 array of the region's shape.
    """
    own = region_grid(region, spacing)
    inside = _inside(own, grid)
    result = np.full(own.count, fill, np.float32)
    if all(s.stop > s.start for s in inside):
        result[inside] = _apply(values, [_interpolation(own, grid, axis)[inside[axis]] for axis in range(3)])
    return result


def region_grid(region: Region, spacing: Triple) -> WorkingGrid:
    """A region of a volume's own grid."""
    start = [s.start * step for s, step in zip(region, spacing, strict=True)]
    count = [s.stop - s.start for s in region]
    return WorkingGrid((start[0], start[1], start[2]), _floats(spacing), (count[0], count[1], count[2]))


def _inside(own: WorkingGrid, grid: WorkingGrid) -> Region:
    """The volume's voxels whose centres lie in the grid's box, its far rim left out."""
    slices = []
    for axis in range(3):
        # Of a centre on the rim rounding would say one thing to a region and another to the whole volume.
        rounding = 1e-6 * own.step[axis]
        centres = own.start[axis] + own.step[axis] * (np.arange(own.count[axis]) + 0.5)
        first, last = np.searchsorted(centres, [grid.start[axis] - rounding, grid.stop[axis] - rounding])
        slices.append(slice(int(first), int(last)))
    return slices[0], slices[1], slices[2]


def share_back(
    relevance: np.ndarray,
    grid: WorkingGrid,
    shape: tuple[int, int, int],
    spacing: Triple,
    support: np.ndarray,
) -> np.ndarray:
    """Share each working voxel's relevance over the volume's voxels it covers, mass kept.

    Each working voxel's relevance goes to the voxels it overlaps in proportion to the overlap, only where
    ``support`` (the lungs) is set; a working voxel that covers no support keeps its mass by sharing over all
    it covers. So the sum over the volume equals the sum over the grid, as long as the grid lies in the volume.

    Args:
        relevance: ``grid.count`` array, signed.
        grid: where it lies.
        shape: (K, J, I) of the volume.
        spacing: the volume's, mm along (k, j, i).
        support: bool array of ``shape``.

    Returns:
        float32 array of ``shape``.
    """
    own = WorkingGrid.of_volume(shape, spacing)
    covers = [_cover(grid, own, axis) for axis in range(3)]
    needed = tuple(_needed(matrix) for matrix in covers)
    covers = [m[:, n] for m, n in zip(covers, needed, strict=True)]
    weights = support[needed].astype(np.float32)
    supported = _apply(weights, covers)
    everywhere = np.multiply.outer(np.multiply.outer(covers[0].sum(1), covers[1].sum(1)), covers[2].sum(1))
    has_support = supported > 1e-6 * everywhere.max()
    back = [m.T for m in covers]
    zero = np.float32(0)
    result = np.zeros(shape, np.float32)
    shared = np.where(has_support, relevance / np.where(has_support, supported, 1), zero)
    result[needed] = weights
    result[needed] *= _apply(shared, back)
    if not has_support.all():
        homeless = np.where(has_support, zero, relevance / np.maximum(everywhere, 1e-12))
        if homeless.any():
            result[needed] += _apply(homeless, back)
    return result


def _cover(grid: WorkingGrid, own: WorkingGrid, axis: int) -> np.ndarray:
    """Overlap as a share of the working voxel; one outside the volume goes to the nearest edge voxel."""
    overlap = _overlap(grid, own, axis) / grid.step[axis]
    outside = overlap.sum(1) <= 0
    overlap[outside] = _interpolation(grid, own, axis)[outside]
    return overlap
