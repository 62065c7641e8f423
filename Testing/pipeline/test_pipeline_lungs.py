"""Right and left lung told apart, holes filled, islands dropped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import Bundle
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.ct.regrid import WorkingGrid, bounding_region, from_grid, to_grid
from CovidCTDiagnosisLib.errors import InputError
from CovidCTDiagnosisLib.networks import DeepMedic
from CovidCTDiagnosisLib.pipeline.lung_boundary import BAND_MM, boundary_depth, drop_specks, refine_lungs
from CovidCTDiagnosisLib.pipeline.lung_cleaning import (
    AIRWAY_HU,
    MIXED_GAS,
    NECK_MM,
    NECK_SHARE,
    clean_lungs,
    contact_shares,
)
from CovidCTDiagnosisLib.pipeline.lung_sides import LEFT, RIGHT, midline, tell_sides
from CovidCTDiagnosisLib.pipeline.lungs import IN_PARTS, sample_hu, segment_lungs
from CovidCTDiagnosisLib.pipeline.models import Models
from scipy import ndimage
from skimage.segmentation import watershed
from torch import nn

SHAPE = (44, 40, 64)
MIDLINE = SHAPE[2] / 2
STEP = (5.0, 5.0, 5.0)
STEP_4 = (4.0, 4.0, 4.0)
AERATED = np.full(SHAPE, -850.0, np.float32)


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) < 1


@pytest.fixture(scope="module")
def lungs() -> tuple[np.ndarray, np.ndarray]:
    """Right (small i) and left, apart."""
    return ellipsoid((22, 20, 17), (18, 14, 12)), ellipsoid((22, 20, 46), (17, 13, 11))


@pytest.fixture(scope="module")
def bridge() -> np.ndarray:
    """Where the lungs touch, in front of the heart: a thin sheet."""
    sheet = np.zeros(SHAPE, bool)
    sheet[16:28, 18:21, 25:40] = True
    return sheet


def logits(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 5.0, -5.0).astype(np.float32)


def test_lungs_apart_keep_their_sides(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    right, left = lungs
    expected = np.where(right, RIGHT, np.where(left, LEFT, 0))
    told = tell_sides(right | left, STEP, MIDLINE)
    assert told.dtype == np.uint8
    np.testing.assert_array_equal(told, expected)


def test_lungs_that_touch_are_parted_between_them(lungs: tuple[np.ndarray, np.ndarray], bridge: np.ndarray) -> None:
    right, left = lungs
    mask = right | left | bridge
    told = tell_sides(mask, STEP, MIDLINE)
    np.testing.assert_array_equal(told > 0, mask)
    assert (told[right] == RIGHT).mean() > 0.995 and (told[left] == LEFT).mean() > 0.995


@pytest.mark.parametrize("share", [0.06, 0.35, 0.6])
def test_a_smaller_left_lung_is_still_the_left_one(lungs: tuple[np.ndarray, np.ndarray], share: float) -> None:
    small = ellipsoid((22, 20, 46), tuple(n * share ** (1 / 3) for n in (17, 13, 11)))
    told = tell_sides(lungs[0] | small, STEP, MIDLINE)
    assert (told[lungs[0]] == RIGHT).all() and (told[small] == LEFT).all()


@pytest.mark.parametrize("gap", [3, 6])
@pytest.mark.parametrize("height", [19, 22, 26])
@pytest.mark.parametrize("cut", [0, 1], ids=["right", "left"])
def test_both_pieces_of_a_lung_that_effusion_cuts_in_two_are_of_its_side(
    lungs: tuple[np.ndarray, np.ndarray], gap: int, height: int, cut: int
) -> None:
    parts = [part.copy() for part in lungs]
    parts[cut][height : height + gap] = False
    assert ndimage.label(parts[cut])[1] == 2
    sides = tell_sides(parts[0] | parts[1], STEP, MIDLINE)
    np.testing.assert_array_equal(sides, np.where(parts[0], RIGHT, np.where(parts[1], LEFT, 0)))


def test_the_midline_is_that_of_the_body_in_columns_of_the_working_grid() -> None:
    voxels = np.full((24, 40, 96), -1000, np.int16)
    voxels[:, 8:32, 24:64] = 40
    axial = Volume(voxels, (0.8, 1.1, 2.5))
    grid = WorkingGrid((0.0, 0.0, 8.0), (4.0, 2.0, 2.0), (15, 22, 34))
    assert midline(axial, grid) == pytest.approx((44 * 0.8 - 8) / 2 - 0.5, abs=4 * 0.8 / 2)


def test_nothing_stays_nothing() -> None:
    assert not tell_sides(np.zeros(SHAPE, bool), STEP, MIDLINE).any()
    assert not clean_lungs(logits(np.zeros(SHAPE, bool)), AERATED, STEP, MIDLINE).any()


@pytest.mark.parametrize("number", [RIGHT, LEFT])
def test_a_single_lung_keeps_its_side(lungs: tuple[np.ndarray, np.ndarray], number: int) -> None:
    mask = lungs[number - 1]
    assert set(np.unique(tell_sides(mask, STEP, MIDLINE)[mask])) == {number}


@pytest.mark.parametrize("shift", [-4, 4])
def test_one_lung_that_reaches_across_the_middle_is_not_cut_in_two(shift: int) -> None:
    """In a narrow field of view, or grown across after the other one was taken out."""
    lung = ellipsoid((22, 20, int(MIDLINE) + shift), (18, 14, 12))
    sides = tell_sides(lung, STEP, MIDLINE)
    assert set(np.unique(sides[lung])) == {RIGHT if shift < 0 else LEFT}


def test_two_that_nothing_parts_are_cut_at_the_middle() -> None:
    both = np.zeros(SHAPE, bool)
    both[:, :, 8:56] = True
    sides = tell_sides(both, STEP, MIDLINE)
    assert (sides[:, :, :32][both[:, :, :32]] == RIGHT).all() and (sides[:, :, 32:][both[:, :, 32:]] == LEFT).all()


def test_a_side_that_is_nothing_but_specks_goes() -> None:
    lungs = np.zeros((20, 20, 40), np.uint8)
    lungs[4:16, 4:16, 4:18], lungs[8, 8, 30] = RIGHT, LEFT
    expected = np.where(lungs == RIGHT, RIGHT, 0)
    drop_specks(lungs, (3.0, 3.0, 3.0))
    np.testing.assert_array_equal(lungs, expected)


def test_holes_are_filled_and_islands_dropped(lungs: tuple[np.ndarray, np.ndarray], bridge: np.ndarray) -> None:
    right, left = lungs
    vessel = ellipsoid((22, 20, 15), (3, 3, 3))
    bowel = np.zeros(SHAPE, bool)
    bowel[1:4, 34:37, 30:34] = True  # 4.5 ml
    cleaned = clean_lungs(logits((right & ~vessel) | left | bridge | bowel), AERATED, STEP, MIDLINE)
    assert (cleaned[vessel] == RIGHT).all()
    assert not cleaned[bowel].any()
    np.testing.assert_array_equal(cleaned > 0, right | left | bridge)


def test_specks_beside_a_lung_are_dropped_and_what_it_encloses_is_filled(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    whole = np.select([*lungs], [RIGHT, LEFT], 0).astype(np.uint8)
    whole[:2, :4, :10] = LEFT  # 10 ml stay
    found = whole.copy()
    found[ellipsoid((22, 20, 15), (2, 2, 2))] = 0
    found[22, 20, 46] = RIGHT  # in the left lung
    found[22, 24, 15] = LEFT  # in the right one
    found[2:4, 36:38, 31] = LEFT  # 0.5 ml
    assert (found != whole).sum() > 20
    drop_specks(found, STEP)
    np.testing.assert_array_equal(found, whole)


def test_lungs_cut_off_by_the_end_of_the_ct_enclose_nothing_there() -> None:
    lungs = np.zeros((6, 20, 20), np.uint8)
    lungs[:, 2:18, 2:18] = RIGHT
    lungs[:, 8:12, 8:12] = 0
    before = lungs.copy()
    drop_specks(lungs, (3.0, 3.0, 3.0))
    np.testing.assert_array_equal(lungs, before)


def test_a_detached_piece_of_lung_belongs_to_the_nearer_side(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    right, left = lungs
    pieces = [np.zeros(SHAPE, bool) for _ in range(2)]
    pieces[0][20:26, 37:40, 14:20] = True  # 13.5 ml, behind the right lung
    pieces[1][20:26, 37:40, 44:50] = True
    cleaned = clean_lungs(logits(right | left | pieces[0] | pieces[1]), AERATED, STEP, MIDLINE)
    assert (cleaned[pieces[0]] == RIGHT).all() and (cleaned[pieces[1]] == LEFT).all()


@pytest.mark.parametrize(("density", "stays"), [(-342.0, False), (-700.0, True)], ids=["food", "lung"])
def test_a_small_island_of_little_air_is_food_in_a_stomach(
    lungs: tuple[np.ndarray, np.ndarray], density: float, stays: bool
) -> None:
    right, left = lungs
    island = np.zeros(SHAPE, bool)
    island[20:26, 37:40, 14:20] = True  # 13.5 ml
    hu = np.where(island, density, AERATED).astype(np.float32)
    assert (clean_lungs(logits(right | left | island), hu, STEP, MIDLINE)[island] > 0).all() == stays


def cpu(bundle: Bundle) -> Models:
    return Models(bundle, torch.device("cpu"))


def test_the_phantoms_lungs_are_found_on_their_own_sides(chest_phantom: Callable[..., Volume], bundle: Bundle) -> None:
    ct = chest_phantom(spacing=(4.0, 4.0, 5.0))
    reported: list[float] = []
    found = segment_lungs(ct, cpu(bundle), reported.append).labels
    middle = ct.shape[2] // 2
    truth = (ct.voxels > -930) & (ct.voxels < -770)
    for side, half in ((RIGHT, slice(0, middle)), (LEFT, slice(middle, None))):
        assert (found == side)[:, :, half].sum() > 0.99 * (found == side).sum()
        assert (truth & (found == side)).sum() > 0.85 * truth[:, :, half].sum()
    assert reported == sorted(reported) and 0.9 <= reported[-1] <= 1


class FullCard(nn.Module):
    """A network on a graphics card that holds its weights and nothing more; like torch, it takes no other's input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.where = network, "meta"

    def to(self, device: torch.device) -> FullCard:  # type: ignore[override]
        self.where = device.type
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != self.where:
            raise RuntimeError("Expected all tensors to be on the same device")
        if self.where == "meta":
            raise torch.OutOfMemoryError
        found: torch.Tensor = self.network(x)
        return found


def test_the_cpu_finds_the_same_lungs_where_the_card_is_full(
    chest_phantom: Callable[..., Volume], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct, warnings = chest_phantom(spacing=(4.0, 4.0, 5.0)), list[str]()
    expected = segment_lungs(ct, cpu(bundle), lambda f: None).labels
    network = Models.network
    monkeypatch.setattr(Models, "network", lambda models, name: FullCard(network(cpu(bundle), name)))
    found = segment_lungs(ct, Models(bundle, torch.device("meta")), lambda f: None, warnings.append).labels
    np.testing.assert_array_equal(found, expected)
    assert any("the CPU is used" in text for text in warnings)


def test_little_memory_changes_no_lungs(
    chest_phantom: Callable[..., Volume], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct, slabs = chest_phantom(spacing=(4.0, 4.0, 5.0)), list[int]()
    forward = DeepMedic.forward

    def counted(network: DeepMedic, x: torch.Tensor) -> torch.Tensor:
        slabs.append(x.shape[2])
        return forward(network, x)

    monkeypatch.setattr(DeepMedic, "forward", counted)
    warnings: list[str] = []
    whole = segment_lungs(ct, cpu(bundle), lambda f: None, warnings.append)
    once = len(slabs)
    assert not warnings
    monkeypatch.setattr("CovidCTDiagnosisLib.pipeline.tiles.free_memory", lambda device: 5 * 10**6)
    in_slabs = segment_lungs(ct, cpu(bundle), lambda f: None, warnings.append)
    assert warnings == [IN_PARTS]
    assert len(slabs) > 2 * once
    np.testing.assert_allclose(in_slabs.probability, whole.probability, atol=2e-3)  # half precision
    assert (in_slabs.labels != whole.labels).mean() < 1e-4


def test_the_probability_of_lung_lies_where_the_lungs_do(chest_phantom: Callable[..., Volume], bundle: Bundle) -> None:
    ct = chest_phantom(spacing=(4.0, 4.0, 5.0))
    found = segment_lungs(ct, cpu(bundle), lambda f: None)
    sure = found.probabilities(ct)["lung"]
    depth = ndimage.distance_transform_edt(found.labels > 0)
    for inside in (True, False):
        k, j, i = np.unravel_index((depth if inside else ndimage.distance_transform_edt(depth == 0)).argmax(), ct.shape)
        at = np.rint(np.linalg.solve(sure.affine, ct.affine @ [i, j, k, 1])[:3]).astype(int)[::-1]
        at = np.clip(at, 0, np.array(sure.shape) - 1)
        value = sure.voxels[tuple(at)]
        assert value > 0.9 if inside else value < 0.1


def test_a_chest_with_one_aerated_lung_has_no_other(chest_phantom: Callable[..., Volume], bundle: Bundle) -> None:
    """After pneumonectomy, or behind an effusion that fills one side."""
    ct = chest_phantom(spacing=(4.0, 4.0, 5.0))
    voxels = ct.voxels.copy()
    left = voxels[:, :, ct.shape[2] // 2 :]
    left[(left > -960) & (left < -600)] = 30
    found = segment_lungs(ct.with_voxels(voxels), cpu(bundle), lambda f: None).labels
    assert (found == RIGHT).sum() > 20 * (found == LEFT).sum()


def test_an_image_without_lungs_is_refused(chest_phantom: Callable[..., Volume], bundle: Bundle) -> None:
    ct = chest_phantom(spacing=(4.0, 4.0, 5.0))
    solid = ct.with_voxels(np.where((ct.voxels > -960) & (ct.voxels < -600), 30, ct.voxels))
    with pytest.raises(InputError, match="No lungs") as caught:
        segment_lungs(solid, cpu(bundle), lambda f: None)
    assert caught.value.code == 3 and caught.value.remedy


def test_trachea_and_bowel_gas_that_hang_on_the_lungs_are_dropped(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    right, left = lungs
    trachea = np.zeros(SHAPE, bool)
    trachea[22:43, 18:22, 30:34] = True
    bronchus = np.zeros(SHAPE, bool)
    bronchus[22:24, 19:21, 26:38] = True
    bowel = ellipsoid((3, 20, 58), (3, 4, 4)) & ~left
    neck = np.zeros(SHAPE, bool)
    neck[3:8, 20, 54:56] = True
    gas = (trachea | bronchus | bowel) & ~right & ~left
    hu = np.where(gas, -990.0, np.where(right | left, -850.0, 40.0)).astype(np.float32)
    cleaned = clean_lungs(logits(right | left | trachea | bronchus | bowel | neck), hu, STEP, MIDLINE)
    assert (cleaned[gas] == 0).mean() > 0.9
    assert (cleaned[right] == RIGHT).mean() > 0.97 and (cleaned[left] == LEFT).mean() > 0.97


STEP_3 = (3.0, 3.0, 3.0)


def chest_at_3_mm(*extra: tuple[np.ndarray, float], right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """HU: lungs, and what else the network takes for lung."""
    hu = np.where(right | left, -850.0, 40.0).astype(np.float32)
    for mask, value in extra:
        hu[mask] = value
    return hu


@pytest.mark.parametrize("hangs", [True, False], ids=["hanging", "apart"])
def test_bowel_of_gas_and_stool_is_dropped(lungs: tuple[np.ndarray, np.ndarray], hangs: bool) -> None:
    """Its mean density is that of diseased lung; a loop without gas that hangs on nothing but this one goes too."""
    right, left = lungs
    bowel = ellipsoid((5, 12, 57), (4, 5, 5)) & ~left
    gas = bowel & (np.arange(SHAPE[1]) < 11)[:, None]
    neck, loop_neck, loop = (np.zeros(SHAPE, bool) for _ in range(3))
    neck[5:8, 12:19, 52:54] = hangs
    loop_neck[5, 16:26, 57] = True
    loop[2:8, 25:33, 54:60] = True
    mask = right | left | bowel | neck | loop_neck | loop
    hu = chest_at_3_mm((bowel | loop | loop_neck, -400.0), (gas, -990.0), right=right, left=left)
    cleaned = clean_lungs(logits(mask), hu, STEP_3, MIDLINE)
    assert 0.1 < gas.sum() / bowel.sum() < 0.5 and not (loop & left).any()
    assert not cleaned[(bowel | loop) & ~left].any()
    assert (cleaned[right] == RIGHT).all() and (cleaned[left] == LEFT).mean() > 0.99


@pytest.mark.parametrize("density", [-990.0, -850.0], ids=["gas", "lung"])
def test_stool_that_hangs_on_lung_and_gas_goes_with_the_gas(
    lungs: tuple[np.ndarray, np.ndarray], density: float
) -> None:
    """A pouch of stool without gas in it; beside aerated lung of the same shape it stays."""
    right, left = lungs
    stool = ellipsoid((5, 18, 57), (4, 5, 5)) & ~left
    pouch = ellipsoid((5, 8, 57), (4, 5, 5)) & ~left
    pouch[5, 12:14, 57] = True
    neck = np.zeros(SHAPE, bool)
    neck[5:8, 17:19, 51:54] = True
    neck &= ~left
    mask = right | left | stool | pouch | neck
    hu = chest_at_3_mm((stool | neck, -450.0), (pouch, density), right=right, left=left)
    cleaned = clean_lungs(logits(mask), hu, STEP_3, MIDLINE)
    assert stool.sum() > 200 and pouch.sum() > 200
    assert (cleaned[stool | pouch] > 0).mean() == pytest.approx(0.0 if density < -900 else 1.0, abs=0.02)
    assert (cleaned[right] == RIGHT).all() and (cleaned[left] == LEFT).mean() > 0.99


def test_diseased_lung_apart_from_the_rest_stays(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    """As dense as bowel with stool, but without gas."""
    right, left = lungs
    piece = np.zeros(SHAPE, bool)
    piece[4:14, 36:39, 12:32] = True
    hu = chest_at_3_mm((piece, -400.0), right=right, left=left)
    assert (clean_lungs(logits(right | left | piece), hu, STEP_3, MIDLINE)[piece] > 0).all()


def test_a_small_destroyed_lung_that_holds_gas_stays(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    """It stands apart and is small, and a seventh of it is as dark as gas, but it lies as high as lungs do."""
    right, _ = lungs
    small = ellipsoid((24, 20, 50), (9, 4, 4))
    cavities = small & (np.arange(SHAPE[2]) % 6 == 0)
    hu = chest_at_3_mm((small, -650.0), (cavities, -980.0), right=right, left=small)
    cleaned = clean_lungs(logits(right | small), hu, STEP_3, MIDLINE)
    assert small.sum() < 0.05 * (right | small).sum() and cavities.sum() > 0.1 * small.sum()
    assert (cleaned[small] > 0).all()


def test_a_dark_piece_that_lies_broadly_on_the_lung_stays(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    """Emphysema at the base, as dark as bowel; plates of atelectasis part it from the rest, not all the way."""
    right, left = lungs
    k, _, i = np.indices(SHAPE)
    base, plates = right & (k < 9), right & (k == 9) & (i % 3 == 0)
    mask = (right & ~plates) | left
    depth = ndimage.distance_transform_edt(mask, sampling=STEP_3)
    cores, _ = ndimage.label(depth > NECK_MM)
    pieces = watershed(-depth, cores, mask=mask)
    (own,) = np.unique(cores[base & (cores > 0)])
    assert own not in cores[22] and NECK_SHARE < contact_shares(pieces)[own] < 0.7
    hu = chest_at_3_mm((base, -870.0), (base & (i % 4 == 0), -960.0), (plates, 0.0), right=right, left=left)
    cleaned = clean_lungs(logits(mask), hu, STEP_3, MIDLINE)
    assert (hu < AIRWAY_HU)[base].mean() > MIXED_GAS and base.sum() < 0.05 * mask.sum()
    assert (cleaned[base] == RIGHT).all()


def test_a_bulla_in_the_lung_stays_lung(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    right, left = lungs
    bulla = ellipsoid((30, 20, 15), (4, 5, 5))
    cleaned = clean_lungs(logits(right | left), np.where(bulla, -995.0, -850.0).astype(np.float32), STEP, MIDLINE)
    assert (cleaned[bulla] == RIGHT).all()


def test_dark_lung_near_the_middle_is_no_airway(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    """Emphysema as dark as the trachea, but without its wall."""
    right, left = lungs
    dark = ellipsoid((32, 20, 19), (5, 4, 4)) & right
    hu = np.where(right | left, -880.0, 40.0).astype(np.float32)
    hu[dark] = -950
    cleaned = clean_lungs(logits(right | left), hu, STEP, midline=24.0)
    assert dark.sum() > 50 and (cleaned[dark] == RIGHT).all()


def test_room_air_taken_for_lung_is_dropped(lungs: tuple[np.ndarray, np.ndarray]) -> None:
    right, left = lungs
    shoulder = np.zeros(SHAPE, bool)
    shoulder[41:44, :6, 28:36] = True  # 18 ml
    hu = np.where(right | left, -850.0, 40.0).astype(np.float32)
    hu[:, :8] = -900
    cleaned = clean_lungs(logits(right | left | shoulder), hu, STEP, MIDLINE)
    assert not cleaned[shoulder].any()
    np.testing.assert_array_equal(cleaned > 0, right | left)


@pytest.mark.parametrize("clipped", [False, True], ids=["HU", "8-bit window"])
@pytest.mark.parametrize("error", [ndimage.binary_erosion, ndimage.binary_dilation], ids=["too small", "too large"])
def test_the_boundary_is_as_fine_as_the_cts_voxels(
    error: Callable[..., np.ndarray], clipped: bool, chest_phantom: Callable[..., Volume]
) -> None:
    """A network that works at 4 mm and errs by a voxel of the CT all around; HU put its boundary right."""
    ct = chest_phantom(spacing=(2.0, 2.0, 4.0))
    lung = ndimage.binary_closing((ct.voxels > -930) & (ct.voxels < -770), iterations=4)
    if clipped:
        ct = ct.with_voxels(np.clip(ct.voxels, -1000, 400))
    in_plane = ndimage.generate_binary_structure(2, 1)[None]
    spacing = ct.spacing[::-1]
    grid = WorkingGrid.covering((0.0, 0.0, 0.0), WorkingGrid.of_volume(ct.shape, spacing).stop, STEP_4)
    drawn = (to_grid(error(lung, in_plane), spacing, grid) - 0.5) * 8
    sides = tell_sides(drawn > 0, STEP_4, midline(ct, grid))
    coarse = from_grid(drawn, grid, spacing, bounding_region(np.ones(ct.shape, bool))) > 0
    refined = refine_lungs(boundary_depth(drawn, sides, sample_hu(ct, grid), STEP_4), sides, grid, ct)
    assert 1 - dice(refined > 0, lung) < (1 - dice(coarse, lung)) / 3
    assert dice(refined > 0, lung) > 0.985


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_consolidated_part_stays_as_the_network_drew_it() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[4:16, 4:16, 4:16] = True
    hu = np.where(mask, -850.0, 40.0).astype(np.float32)
    hu[:, :, 8:] = 40  # dense from here on, in the lung and beside it
    depth = boundary_depth(logits(mask), mask.astype(np.uint8), hu, (3.0, 3.0, 3.0))
    assert depth[10, 10, 15] > BAND_MM and depth[10, 10, 16] < -BAND_MM
    assert 0 < depth[10, 4, 5] < BAND_MM and -BAND_MM < depth[10, 3, 5] < 0


def test_a_ct_is_sampled_slice_by_slice_as_it_is_at_once(chest_phantom: Callable[..., Volume]) -> None:
    ct = chest_phantom(spacing=(6.0, 6.0, 2.0))
    extent = tuple(n * s for n, s in zip(ct.shape, ct.spacing[::-1], strict=True))
    for mm in (1.5, 3.0, 7.0):
        grid = WorkingGrid.covering((11.0, 20.0, 9.0), extent, (mm, 8.0, 8.0))
        np.testing.assert_allclose(sample_hu(ct, grid), to_grid(ct.voxels, ct.spacing[::-1], grid), atol=0.05)


def test_what_lies_outside_the_field_of_view_counts_as_air() -> None:
    voxels = np.full((4, 8, 8), -900, np.int16)
    voxels[:, :, :4] = -3024
    hu = sample_hu(Volume(voxels, (1.0, 1.0, 1.0)), WorkingGrid((0.0, 0.0, 0.0), (2.0, 8.0, 8.0), (2, 1, 1)))
    np.testing.assert_allclose(hu, (-1024 - 900) / 2)
