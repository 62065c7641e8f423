"""Working grids: sampling is exact where it can be, nothing is displaced, relevance keeps its mass."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from CovidCTDiagnosisLib.ct import Volume, from_axial, to_axial
from CovidCTDiagnosisLib.ct.regrid import (
    WorkingGrid,
    bounding_region,
    containing_voxels,
    from_grid,
    share_back,
    to_grid,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

Shape = tuple[int, int, int]
Triple = tuple[float, float, float]

fast = settings(max_examples=30, deadline=None)


def triples(low: float, high: float) -> st.SearchStrategy[Triple]:
    return st.tuples(*[st.floats(low, high)] * 3)


@st.composite
def volume_and_grid(
    draw: st.DrawFn, low: int = 5, high: int = 11, ratio: tuple[float, float] = (0.3, 3.0)
) -> tuple[Shape, Triple, WorkingGrid]:
    """A volume's shape and spacing, and a grid that lies inside it."""
    shape = draw(st.tuples(*[st.integers(low, high)] * 3))
    spacing = draw(triples(0.5, 5))
    ratios = draw(triples(*ratio))
    extent = np.multiply(shape, spacing)
    step = np.minimum(np.multiply(spacing, ratios), extent)
    start = np.multiply(draw(triples(0, 1)), extent - step)
    count = np.floor((extent - start) / step * draw(st.floats(0.5, 1)) + 1e-9).astype(int)
    return shape, spacing, WorkingGrid(tuple(start), tuple(step), tuple(np.maximum(count, 1)))


def centres(grid: WorkingGrid, axis: int) -> np.ndarray:
    return grid.start[axis] + grid.step[axis] * (np.arange(grid.count[axis]) + 0.5)


def ramp(grid: WorkingGrid, slope: Triple) -> np.ndarray:
    """Linear in mm, at the centres of the grid's voxels."""
    k, j, i = (slope[a] * centres(grid, a) for a in range(3))
    return k[:, None, None] + j[:, None] + i


def whole(shape: Shape) -> tuple[slice, slice, slice]:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


# to_grid


@fast
@given(volume_and_grid(), st.floats(-1000, 1000))
def test_a_constant_volume_stays_constant(case: tuple[Shape, Triple, WorkingGrid], value: float) -> None:
    shape, spacing, grid = case
    sampled = to_grid(np.full(shape, value, np.float32), spacing, grid)
    assert sampled.shape == grid.count and sampled.dtype == np.float32
    np.testing.assert_allclose(sampled, value, rtol=1e-5, atol=1e-6)


@fast
@given(volume_and_grid(ratio=(0.2, 1.0)), triples(-3, 3))
def test_a_ramp_is_exact_on_a_finer_grid_within_the_outer_voxel_centres(
    case: tuple[Shape, Triple, WorkingGrid], slope: Triple
) -> None:
    shape, spacing, grid = case
    sampled = to_grid(ramp(WorkingGrid.of_volume(shape, spacing), slope), spacing, grid)
    inner = [
        np.flatnonzero((c >= s / 2) & (c <= (n - 0.5) * s))
        for c, s, n in zip((centres(grid, a) for a in range(3)), spacing, shape, strict=True)
    ]
    np.testing.assert_allclose(sampled[np.ix_(*inner)], ramp(grid, slope)[np.ix_(*inner)], atol=1e-3)


@fast
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(0, 2)] * 3),
    st.tuples(*[st.integers(1, 3)] * 3),
    triples(0.5, 5),
    triples(-3, 3),
)
def test_a_ramp_is_exact_on_a_coarser_grid_of_whole_voxels(
    factor: Shape, first: Shape, count: Shape, spacing: Triple, slope: Triple
) -> None:
    shape = tuple(f + n * c + 1 for f, n, c in zip(first, factor, count, strict=True))
    grid = WorkingGrid(tuple(np.multiply(first, spacing)), tuple(np.multiply(factor, spacing)), count)
    sampled = to_grid(ramp(WorkingGrid.of_volume(shape, spacing), slope), spacing, grid)
    np.testing.assert_allclose(sampled, ramp(grid, slope), atol=1e-3)


@fast
@given(volume_and_grid(ratio=(1.01, 4.0)), triples(-3, 3))
def test_a_ramp_on_any_coarser_grid_is_displaced_by_at_most_an_eighth_of_a_voxel(
    case: tuple[Shape, Triple, WorkingGrid], slope: Triple
) -> None:
    # Averages take voxels as constant cells; a cell cut at a fraction f displaces by f (1 - f) / 2 of it at most.
    shape, spacing, grid = case
    sampled = to_grid(ramp(WorkingGrid.of_volume(shape, spacing), slope), spacing, grid)
    bound = sum(abs(m) * s * s / g / 8 for m, s, g in zip(slope, spacing, grid.step, strict=True))
    assert np.abs(sampled - ramp(grid, slope)).max() <= bound + 1e-3


@fast
@given(volume_and_grid(ratio=(1.01, 4.0)), st.integers(0, 2**32 - 1))
def test_a_coarser_grid_averages_what_each_voxel_covers(case: tuple[Shape, Triple, WorkingGrid], seed: int) -> None:
    shape, spacing, grid = case
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    covers = overlaps(grid, WorkingGrid.of_volume(shape, spacing))
    expected = np.einsum("abcxyz,xyz->abc", covers, voxels) / covers.sum((3, 4, 5))
    np.testing.assert_allclose(to_grid(voxels, spacing, grid), expected, atol=1e-4)


def test_outside_the_volume_its_edge_is_repeated() -> None:
    voxels = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    for step in (0.5, 2.0):
        grid = WorkingGrid((-10.0, -10.0, -10.0), (step,) * 3, (int(24 / step),) * 3)
        sampled = to_grid(voxels, (1.0, 1.0, 1.0), grid)
        assert np.ptp(sampled, axis=(0, 1)).max() == 0
        assert sampled[0, 0, 0] == 0 and sampled[0, 0, -1] == 3


# There and back


@fast
@given(triples(0.8, 5), triples(0.8, 6), triples(0, 1), triples(36, 44))
def test_a_smooth_blob_comes_back_within_half_a_voxel(
    spacing: Triple, step: Triple, offset: Triple, middle: Triple
) -> None:
    shape = tuple(int(80 // s) for s in spacing)
    own = WorkingGrid.of_volume(shape, spacing)
    at = [centres(own, axis) for axis in range(3)]
    sigma = [1.5 * max(s, g) for s, g in zip(spacing, step, strict=True)]
    lines = [np.exp(-(((c - m) / w) ** 2) / 2) for c, m, w in zip(at, middle, sigma, strict=True)]
    blob = lines[0][:, None, None] * lines[1][:, None] * lines[2]
    covering = WorkingGrid.covering(tuple(-np.multiply(offset, step)), own.stop, step)
    back = from_grid(to_grid(blob, spacing, covering), covering, spacing, whole(shape))
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        moved = np.average(at[axis], weights=back.sum(others)) - np.average(at[axis], weights=blob.sum(others))
        assert abs(moved) < 0.5 * spacing[axis]
    assert abs(back.sum() / blob.sum() - 1) < 0.05


@fast
@given(volume_and_grid(low=4, high=8), st.integers(0, 2**32 - 1), st.data())
def test_a_region_is_cut_from_the_whole_and_filled_where_the_grid_does_not_reach(
    case: tuple[Shape, Triple, WorkingGrid], seed: int, data: st.DataObject
) -> None:
    shape, spacing, grid = case
    values = np.random.default_rng(seed).normal(size=grid.count).astype(np.float32)
    everything = from_grid(values, grid, spacing, whole(shape), fill=-7.0)
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
    region = tuple(slice(a, max(b, a + 1)) for a, b in bounds)
    np.testing.assert_allclose(from_grid(values, grid, spacing, region, fill=-7.0), everything[region], atol=1e-5)
    own = WorkingGrid.of_volume(shape, spacing)
    outside = np.zeros(shape, bool)
    for axis in range(3):
        at = np.expand_dims(centres(own, axis), [a for a in range(3) if a != axis])
        rounding = 1e-5 * spacing[axis]  # a centre on the rim may be either
        outside |= (at < grid.start[axis] - rounding) | (at > grid.stop[axis] + rounding)
    assert (everything[outside] == -7).all()
    assert np.abs(everything[everything != -7]).max(initial=0) <= np.abs(values).max() + 1e-5


def test_a_centre_on_the_rim_is_the_same_to_a_region_and_to_the_whole() -> None:
    shape, spacing = (4, 8, 4), (1.0, 2.350618223223445, 1.0)
    grid = WorkingGrid((0.0, 0.0, 0.0), (1.0, spacing[1] / 2, 1.0), (3, 15, 3))
    values, region = np.ones(grid.count, np.float32), (slice(0, 4), slice(7, 8), slice(0, 4))
    everything = from_grid(values, grid, spacing, whole(shape), fill=-7.0)
    np.testing.assert_array_equal(from_grid(values, grid, spacing, region, fill=-7.0), everything[region])


@st.composite
def orientations(draw: st.DrawFn) -> np.ndarray:
    """A direction matrix: axes permuted and flipped, then turned by up to 25 degrees."""
    axes = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3))
    turn = np.radians(draw(triples(-15, 15)))
    rotation = np.eye(3)
    for n, (a, b) in enumerate(((0, 1), (1, 2), (0, 2))):
        plane = np.eye(3)
        plane[a, a] = plane[b, b] = np.cos(turn[n])
        plane[a, b], plane[b, a] = -np.sin(turn[n]), np.sin(turn[n])
        rotation = plane @ rotation
    return rotation @ (np.eye(3)[:, axes] * signs)


@fast
@given(orientations(), triples(1, 4), triples(1.5, 3.5), triples(-6, 6))
def test_a_mask_on_an_oblique_flipped_anisotropic_grid_comes_back_within_half_a_voxel(
    direction: np.ndarray, spacing: Triple, step: Triple, shift: Triple
) -> None:
    size = np.array([int(60 // s) for s in spacing])
    origin = np.array([5.0, -80.0, 300.0])
    affine = direction * spacing
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij"))[::-1]  # i, j, k
    lps = np.tensordot(affine, index, 1) + origin[:, None, None, None]
    middle = affine @ ((size - 1) / 2) + origin + direction @ np.array(shift)
    mask = ((lps - middle[:, None, None, None]) ** 2).sum(0) < 14**2
    volume = Volume(mask, spacing, tuple(origin), tuple(map(tuple, direction)))

    axial = to_axial(volume)
    own = axial.spacing[::-1]
    extent = WorkingGrid.of_volume(axial.shape, own).stop
    grid = WorkingGrid.covering((0, 0, 0), extent, step)
    there = to_grid(axial.voxels, own, grid)
    back = from_axial(from_grid(there, grid, own, whole(axial.shape)) > 0.5, volume)

    assert back.shape == mask.shape
    before, after = index[:, mask].mean(1), index[:, back].mean(1)
    assert np.abs(before - after).max() < 0.5
    # The boundary itself moves by less than a working voxel.
    assert not back[((lps - middle[:, None, None, None]) ** 2).sum(0) > (14 + max(step)) ** 2].any()
    assert back[((lps - middle[:, None, None, None]) ** 2).sum(0) < (14 - max(*step, *spacing)) ** 2].all()


def test_axis_permutations_and_flips_change_nothing_on_the_working_grid() -> None:
    """The same voxels stored in any of the 48 orders give the same working grid and come back in their order."""
    rng = np.random.default_rng(0)
    voxels, spacing = rng.normal(size=(7, 6, 5)).astype(np.float32), (3.0, 2.0, 1.5)
    grid = WorkingGrid.covering((0, 0, 0), (21, 12, 7.5), (2.0, 2.5, 1.0))
    expected = to_grid(voxels, spacing, grid)
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        flipped = tuple(a for a in range(3) if flips[a])
        stored = np.flip(voxels, flipped).transpose(axes)
        # Patient axes of the array axes k, j, i are S, P, L.
        direction = np.zeros((3, 3))
        for place, axis in enumerate(axes):
            direction[2 - axis, 2 - place] = -1.0 if flips[axis] else 1.0
        volume = Volume(stored, tuple(spacing[a] for a in axes)[::-1], direction=tuple(map(tuple, direction)))
        axial = to_axial(volume)
        assert axial.spacing[::-1] == spacing
        np.testing.assert_array_equal(to_grid(axial.voxels, axial.spacing[::-1], grid), expected)
        np.testing.assert_array_equal(from_axial(voxels, volume), stored)


# Grids against each other and in the patient


def test_a_voxel_is_held_by_the_one_around_its_centre() -> None:
    fine = WorkingGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (6, 6, 6))
    coarse = WorkingGrid((0.0, 0.0, 0.0), (3.0, 3.0, 3.0), (2, 2, 2))
    for axis in range(3):
        assert containing_voxels(fine, coarse, axis).tolist() == [0, 0, 0, 1, 1, 1]
        assert containing_voxels(coarse, fine, axis).tolist() == [1, 4]


def test_a_working_grid_lies_in_the_patient_where_its_voxels_do() -> None:
    turn = Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()
    ct = Volume(np.zeros((4, 6, 8), np.int16), (0.8, 1.1, 2.5), (-3.0, 5.0, 40.0), tuple(map(tuple, turn)))
    own = WorkingGrid.of_volume(ct.shape, ct.spacing[::-1])
    assert own.in_patient(ct.voxels, ct).on_same_grid(ct, 1e-9)
    pairs = WorkingGrid((0.0, 0.0, 0.0), (5.0, 2.2, 1.6), (2, 3, 4))  # of two voxels along each axis
    found = pairs.in_patient(np.zeros(pairs.count), ct)
    np.testing.assert_allclose(found.origin, (ct.affine @ [0.5, 0.5, 0.5, 1])[:3])


# share_back


def overlaps(grid: WorkingGrid, own: WorkingGrid) -> np.ndarray:
    """Shared volume (mm3) of every working voxel with every voxel, by a plain loop."""
    shared = np.zeros((*grid.count, *own.count))
    for g in np.ndindex(*grid.count):
        for v in np.ndindex(*own.count):
            lengths = []
            for axis in range(3):
                a = grid.start[axis] + g[axis] * grid.step[axis]
                b = own.start[axis] + v[axis] * own.step[axis]
                lengths.append(max(min(a + grid.step[axis], b + own.step[axis]) - max(a, b), 0.0))
            shared[(*g, *v)] = lengths[0] * lengths[1] * lengths[2]
            if min(lengths) < 1e-9:
                shared[(*g, *v)] = 0.0
    return shared


@fast
@given(volume_and_grid(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_shared_relevance_keeps_its_mass(case: tuple[Shape, Triple, WorkingGrid], seed: int, density: float) -> None:
    shape, spacing, grid = case
    rng = np.random.default_rng(seed)
    relevance = rng.normal(size=grid.count).astype(np.float32)
    shared = share_back(relevance, grid, shape, spacing, rng.random(shape) < density)
    assert shared.shape == shape and shared.dtype == np.float32
    assert abs(shared.sum(dtype=float) - relevance.sum(dtype=float)) <= 1e-5 * np.abs(relevance).sum(dtype=float)


@fast
@given(volume_and_grid(ratio=(2.01, 4.0)), st.integers(0, 2**32 - 1))
def test_nothing_lands_outside_the_support_when_every_working_voxel_touches_it(
    case: tuple[Shape, Triple, WorkingGrid], seed: int
) -> None:
    shape, spacing, grid = case
    support = np.zeros(shape, bool)
    support[::2, ::2, ::2] = True  # a working voxel is wider than two voxels: it covers some of these
    relevance = np.random.default_rng(seed).normal(size=grid.count).astype(np.float32)
    shared = share_back(relevance, grid, shape, spacing, support)
    assert not shared[~support].any() and shared[support].any()


@settings(max_examples=15, deadline=None)
@given(volume_and_grid(low=2, high=4, ratio=(0.4, 2.5)), st.integers(0, 2**32 - 1))
def test_sharing_matches_a_plain_loop(case: tuple[Shape, Triple, WorkingGrid], seed: int) -> None:
    shape, spacing, grid = case
    rng = np.random.default_rng(seed)
    relevance = rng.normal(size=grid.count).astype(np.float32)
    support = rng.random(shape) < 0.4
    covers = overlaps(grid, WorkingGrid.of_volume(shape, spacing))
    expected = np.zeros(shape)
    for g in np.ndindex(*grid.count):
        weight = covers[g] * support
        if weight.sum() < 1e-5 * covers[g].sum():
            weight = covers[g]
        expected += relevance[g] * weight / weight.sum()
    np.testing.assert_allclose(share_back(relevance, grid, shape, spacing, support), expected, atol=1e-3)


def test_a_working_voxel_without_support_shares_over_all_it_covers() -> None:
    support = np.zeros((2, 2, 4), bool)
    support[:, :, 0] = True
    grid = WorkingGrid((0, 0, 0), (2.0, 2.0, 2.0), (1, 1, 2))
    shared = share_back(np.array([[[8.0, -4.0]]], np.float32), grid, (2, 2, 4), (1.0, 1.0, 1.0), support)
    np.testing.assert_allclose(shared, np.broadcast_to([2.0, 0.0, -0.5, -0.5], (2, 2, 4)), atol=1e-6)


# Boxes


@fast
@given(hnp.arrays(bool, (4, 5, 6)), st.tuples(*[st.integers(0, 3)] * 3), st.tuples(*[st.integers(0, 3)] * 3))
def test_the_bounding_region_is_the_smallest_box_plus_its_margin(mask: np.ndarray, margin: Shape, one: Shape) -> None:
    mask[one] = True
    tight = bounding_region(mask)
    assert mask[tight].sum() == mask.sum()
    for axis, used in enumerate(np.nonzero(mask)):
        assert (tight[axis].start, tight[axis].stop) == (used.min(), used.max() + 1)
    wide = bounding_region(mask, margin)
    for axis, size in enumerate(mask.shape):
        assert wide[axis].start == max(tight[axis].start - margin[axis], 0)
        assert wide[axis].stop == min(tight[axis].stop + margin[axis], size)


@fast
@given(triples(-20, 20), triples(0.5, 60), triples(0.5, 7))
def test_a_covering_grid_covers_its_box_with_less_than_a_voxel_to_spare(
    start: Triple, extent: Triple, step: Triple
) -> None:
    stop = tuple(np.add(start, extent))
    grid = WorkingGrid.covering(start, stop, step)
    spare = np.multiply(grid.step, grid.count) - extent
    assert (spare > -1e-5 * np.array(step)).all() and (spare < np.array(step)).all()
    np.testing.assert_allclose(np.add(grid.start, grid.stop), np.add(start, stop), atol=1e-6)
