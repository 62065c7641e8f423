from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct import Volume, from_axial, to_axial
from hypothesis import given
from hypothesis import strategies as st


def _rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


ORDERS = st.sampled_from(list(permutations(range(3))))
SIGNS = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
FLOATS = st.floats(-300, 300)


def volumes(largest_angle: float) -> st.SearchStrategy[Volume]:
    """Grids near permuted and flipped patient axes, turned by up to the angle about each axis."""

    def make(order, signs, angles, shape, spacing, origin):
        direction = _rotation(angles) @ (np.eye(3)[:, list(order)] * np.array(signs))
        voxels = np.arange(np.prod(shape)).reshape(shape)
        return Volume(voxels, spacing, origin, tuple(tuple(map(float, row)) for row in direction))

    angle = st.floats(-largest_angle, largest_angle)
    return st.builds(
        make,
        ORDERS,
        SIGNS,
        st.tuples(angle, angle, angle),
        st.tuples(*[st.integers(1, 5)] * 3),
        st.tuples(*[st.floats(0.3, 9)] * 3),
        st.tuples(FLOATS, FLOATS, FLOATS),
    )


def positions(volume: Volume) -> np.ndarray:
    """LPS position of each voxel, in the order of the voxels' values, which are all different."""
    k, j, i = np.indices(volume.shape).reshape(3, -1)
    return (volume.affine @ np.stack([i, j, k, np.ones_like(i)]))[:3, np.argsort(volume.voxels.ravel())]


@given(volumes(largest_angle=3.2))
def test_every_voxel_keeps_its_position(volume):
    axial = to_axial(volume)
    np.testing.assert_allclose(positions(axial), positions(volume), atol=1e-9)


@given(volumes(largest_angle=0.3))
def test_axes_run_to_left_posterior_superior(volume):
    direction = np.asarray(to_axial(volume).direction)
    assert (np.diag(direction) > 0.7).all()


@given(volumes(largest_angle=3.2))
def test_the_way_back_is_exact_and_copies_nothing(volume):
    axial = to_axial(volume)
    back = from_axial(axial.voxels, volume)
    np.testing.assert_array_equal(back, volume.voxels)
    assert np.shares_memory(back, volume.voxels)


@given(volumes(largest_angle=3.2))
def test_axial_stays_axial(volume):
    axial = to_axial(volume)
    again = to_axial(axial)
    assert again.on_same_grid(axial)
    np.testing.assert_array_equal(again.voxels, axial.voxels)


def test_the_way_back_wants_the_axial_shape():
    volume = Volume(np.zeros((2, 3, 4)), direction=((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    assert to_axial(volume).shape == (3, 4, 2)
    with pytest.raises(ValueError, match="do not fit"):
        from_axial(volume.voxels, volume)


def test_the_middle_of_a_slice_is_that_of_its_voxels():
    turn = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # j runs up
    shape = (4, 5, 7)
    volume = Volume(np.arange(np.prod(shape)).reshape(shape), (0.8, 1.1, 2.5), (-3.0, 5.0, 40.0), turn)
    assert volume.long_axis == 1
    middle = positions(volume).reshape(3, *shape)[:, :, 2].mean((1, 2))
    np.testing.assert_allclose(volume.slice_center(2), middle)
