"""A CT volume: voxels and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FILES_APART_MM = 0.01
"""How far apart corners of one grid may lie in two files: NIfTI keeps grids in single precision."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels on a regular, possibly oblique grid.

    Attributes:
        voxels: array of shape (K, J, I) = (slices, rows, columns); HU for a CT, labels for a mask,
            relevance for a heatmap. Not to be changed in place.
        spacing: mm between voxel centres along i (columns), j (rows), k (slices).
        origin: position of the centre of voxel (0, 0, 0), mm, LPS.
        direction: 3 x 3, its columns are the unit vectors of i, j, k in LPS (SimpleITK's convention).
        orientation_known: whether that, and so right and left, was said by where the volume comes from.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    orientation_known: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, J, I)."""
        k, j, i = self.voxels.shape
        return k, j, i

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, ml."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def affine(self) -> np.ndarray:
        """4 x 4 matrix from (i, j, k, 1) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def long_axis(self) -> int:
        """The axis of ``voxels`` that runs nearest to the patient's long axis; slices are counted along it."""
        return int(np.argmax([abs(self.direction[2][2 - axis]) for axis in range(3)]))

    def slice_center(self, index: int) -> np.ndarray:
        """The middle of a slice across ``long_axis``, LPS mm, (3,)."""
        voxel = (np.array(self.shape) - 1) / 2
        voxel[self.long_axis] = index
        center: np.ndarray = self.affine @ [*voxel[::-1], 1]
        return center[:3]

    def with_voxels(self, voxels: np.ndarray) -> Volume:
        """The same grid with other voxels.

        Raises:
            ValueError: the shape differs from this volume's.
        """
        if voxels.shape != self.voxels.shape:
            raise ValueError(f"voxels of shape {voxels.shape} do not fit a grid of shape {self.voxels.shape}")
        return replace(self, voxels=voxels)

    def on_same_grid(self, other: Volume, tolerance_mm: float = 1e-3) -> bool:
        """Whether both volumes have the same shape and their voxel centres agree within the tolerance."""
        if self.shape != other.shape:
            return False
        # Two opposite corners would not do: with the first two axes exchanged they may stay where they are.
        corners = np.vstack([np.column_stack([np.zeros(3), np.diag(self.shape[::-1])]), np.ones(4)])
        return bool(np.abs(self.affine @ corners - other.affine @ corners).max() <= tolerance_mm)
