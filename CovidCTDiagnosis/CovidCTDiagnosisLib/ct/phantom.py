"""A chest made up on the spot: to try the program without a patient, and to test it."""

from __future__ import annotations

import numpy as np

from .volume import Volume

Vector = tuple[float, float, float]


def _in_ellipsoid(position: np.ndarray, centre: Vector, radii: Vector) -> np.ndarray:
    """Where positions (3, K, J, I) in mm lie inside an ellipsoid."""
    scaled = [(position[axis] - centre[axis]) / radii[axis] for axis in range(3)]
    return scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2 < 1


def _lungs(at: np.ndarray) -> np.ndarray:
    lungs = np.zeros(at.shape[1:], bool)
    for side, width in ((-1, 56), (1, 52)):
        lungs |= _in_ellipsoid(at, (side * 70, 0, 0), (width, 76, 125))
    return lungs & ~_in_ellipsoid(at, (22, -28, -45), (52, 44, 56))  # heart


def make_chest(
    size_mm: Vector = (360.0, 260.0, 320.0),
    spacing: Vector = (3.0, 3.0, 5.0),
    direction: tuple[Vector, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    centre: Vector = (12.5, -140.0, 730.0),
    seed: int = 0,
) -> Volume:
    """A chest in HU with noise: body, ribs and spine, heart, trachea, two lungs with vessels, air around.

    Args:
        size_mm: extent of the grid along i, j, k; the anatomy scales with the LPS box it covers when the
            direction is the identity.
        spacing: mm along i, j, k.
        direction: of the grid; the anatomy stays as it is in the patient (LPS).
        centre: LPS position of the middle of grid and anatomy.
        seed: for vessels and noise.
    """
    random = np.random.default_rng(seed)
    size = [max(1, round(extent / step)) for extent, step in zip(size_mm, spacing, strict=True)]
    axes = np.asarray(direction) * np.asarray(spacing)
    origin = np.asarray(centre) - axes @ ((np.array(size) - 1) / 2)
    k, j, i = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in reversed(size)), indexing="ij")
    # Relative to the centre, and scaled to a thorax of 360 x 260 x 320 mm.
    at = np.tensordot(axes, np.stack([i, j, k]), 1) + (origin - np.asarray(centre))[:, None, None, None]
    at *= np.array([360 / size_mm[0], 260 / size_mm[1], 320 / size_mm[2]])[:, None, None, None]

    hu = np.full(k.shape, -1000.0, np.float32)
    body = (at[0] / 165) ** 2 + (at[1] / 110) ** 2 < 1
    hu[body] = 40
    hu[body & ((at[0] / 155) ** 2 + (at[1] / 100) ** 2 >= 1)] = -100  # fat
    ribs = ((at[0] / 140) ** 2 + (at[1] / 92) ** 2 < 1) & ((at[0] / 132) ** 2 + (at[1] / 85) ** 2 >= 1)
    hu[ribs & (np.mod(at[2] + 0.3 * at[1], 30) < 10)] = 500
    hu[(at[0] / 16) ** 2 + ((at[1] - 75) / 16) ** 2 < 1] = 350  # spine
    lungs = _lungs(at)
    hu[lungs] = -850
    for _ in range(60):  # vessels: short rods
        start = random.uniform((-110, -60, -100), (110, 60, 100))
        along = random.normal(size=3)
        along /= np.linalg.norm(along)
        offset = at - start[:, None, None, None]
        length = np.tensordot(along, offset, 1)
        apart = np.square(offset).sum(axis=0) - length**2
        hu[lungs & (np.abs(length) < 25) & (apart < random.uniform(2, 5) ** 2)] = 40
    hu[((at[0] / 9) ** 2 + ((at[1] - 15) / 9) ** 2 < 1) & (at[2] > 40)] = -1000  # trachea
    hu += random.normal(0, 15, hu.shape)
    return Volume(
        voxels=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        spacing=spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=direction,
    )
