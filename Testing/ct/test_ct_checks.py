from __future__ import annotations

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct import Volume, check_chest_ct, fetch_truth, read_image, read_scan
from CovidCTDiagnosisLib.ct.checks import check_axes
from CovidCTDiagnosisLib.errors import InputError

SPACING = (3.0, 3.0, 4.0)


def refusal(volume: Volume) -> str:
    with pytest.raises(InputError) as caught:
        check_chest_ct(volume)
    assert caught.value.remedy
    return caught.value.message


def grid(size_mm):
    """Positions (x, y, z) in mm from the centre, each of shape (K, J, I)."""
    k, j, i = (np.arange(round(mm / step)) for mm, step in zip(size_mm[::-1], SPACING[::-1], strict=True))
    z, y, x = np.meshgrid(*((n - n.mean()) for n in (k, j, i)), indexing="ij")
    return x * SPACING[0], y * SPACING[1], z * SPACING[2]


def ball(at, centre, radius):
    return sum((axis - c) ** 2 for axis, c in zip(at, centre, strict=True)) < radius**2


def scan(hu, noise=10.0):
    return Volume(np.rint(hu + np.random.default_rng(0).normal(0, noise, hu.shape)).astype(np.int16), SPACING)


def cylinder(at, width, depth, hu=40.0):
    return np.where((at[0] / width) ** 2 + (at[1] / depth) ** 2 < 1, hu, -1000.0)


def test_real_chests_pass(nifti_ct_path, dicom_ct_path):
    assert check_chest_ct(read_scan(nifti_ct_path)) == []
    assert check_chest_ct(read_scan(dicom_ct_path)) == []


def test_the_real_label_map_is_refused():
    assert "segmentation" in refusal(read_image(fetch_truth("chest-nifti")))


@pytest.mark.parametrize("step", [2.0, 5.0])
def test_a_phantom_passes_in_any_orientation(chest_phantom, step):
    chest = chest_phantom(spacing=(3.0, 3.0, step))
    assert check_chest_ct(chest) == []
    sagittal = Volume(
        np.ascontiguousarray(chest.voxels.transpose(2, 0, 1)),
        spacing=(3.0, step, 3.0),
        direction=((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    )
    assert check_chest_ct(sagittal) == []


def test_a_scan_cropped_to_the_lungs_passes(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    cropped = chest.voxels[:, 20:-20, 25:-25]
    assert (cropped[40, :, 0] < -500).sum() + (cropped[40, :, -1] < -500).sum() > 20  # cuts into the lungs
    assert ["cut off at the side" in text for text in check_chest_ct(Volume(cropped, SPACING))] == [True]


def test_lungs_that_a_narrow_field_of_view_cuts_are_told(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    narrow = chest.voxels[:, :, : round(0.6 * chest.shape[2])]  # as a zoomed reconstruction of one lung
    assert any("cut off at the side" in text for text in check_chest_ct(Volume(narrow, SPACING)))
    clipped = chest.voxels[:, :, 12:-12]  # inside the skin; the lungs are whole
    assert (clipped[:, :, [0, -1]] > -200).sum() > 500 and check_chest_ct(Volume(clipped, SPACING)) == []
    padded = chest.voxels.copy()
    padded[:, :, :25] = padded[:, :, -25:] = -3024  # a small circle
    assert check_chest_ct(chest.with_voxels(padded)) == []


def test_a_scan_on_a_foam_mattress_passes(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    voxels = chest.voxels.copy()
    voxels[:, -12:, :][voxels[:, -12:, :] < -900] = -930
    assert check_chest_ct(chest.with_voxels(voxels)) == []


def test_warns_of_thick_slices_and_missing_parts(chest_phantom):
    assert "8.0 mm apart" in check_chest_ct(chest_phantom(spacing=(3.0, 3.0, 8.0)))[0]
    chest = chest_phantom(spacing=SPACING)
    lower, upper = chest.voxels[:40], chest.voxels[40:]
    assert ["upper end" in text for text in check_chest_ct(Volume(lower, SPACING))] == [True]
    assert ["lower end" in text for text in check_chest_ct(Volume(upper, SPACING))] == [True]
    middle = check_chest_ct(Volume(chest.voxels[30:50], SPACING))
    assert "only 80 mm" in middle[0]
    assert len(middle) == 3


def test_refuses_water(chest_phantom):
    assert "no lungs" in refusal(scan(cylinder(grid((300, 300, 300)), 120, 120, hu=0.0)))


def test_refuses_a_head():
    at = grid((240, 240, 200))
    hu = np.full(at[0].shape, -1000.0)
    hu[sum((a / r) ** 2 for a, r in zip(at, (78, 98, 96), strict=True)) < 1] = 800
    hu[sum((a / r) ** 2 for a, r in zip(at, (72, 92, 90), strict=True)) < 1] = 35
    for x in (-22, 22):
        hu[ball(at, (x, -62, -40), 15)] = -1000  # maxillary sinuses
    hu[ball(at, (0, -75, 10), 11)] = -1000
    assert "no lungs" in refusal(scan(hu))


def test_refuses_an_abdomen_with_bowel_gas():
    at = grid((360, 280, 320))
    hu = cylinder(at, 160, 110)
    place = np.random.default_rng(1)
    for _ in range(12):
        hu[ball(at, place.uniform((-110, -70, -130), (110, 30, 130)), 16)] = -1000
    hu[ball(at, (60, -40, 80), 42)] = -1000  # a stomach full of air: 300 ml
    assert "no lungs" in refusal(scan(hu))


def test_refuses_an_abdomen_with_the_lung_bases():
    at = grid((360, 280, 400))
    hu = cylinder(at, 160, 110)
    for x in (-75, 75):
        hu[ball(at, (x, 0, 200), 65)] = -850
    assert "abdomen" in refusal(scan(hu))


def test_refuses_a_neck_with_the_lung_tops():
    at = grid((360, 280, 400))
    hu = cylinder(at, 160, 110)
    for x in (-75, 75):
        hu[ball(at, (x, 0, -200), 65)] = -850
    assert "head or neck" in refusal(scan(hu))


def test_refuses_a_small_field_of_view(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    assert "field of view" in refusal(Volume(chest.voxels[:, 20:55, 20:55], SPACING))


def test_refuses_values_that_are_not_hounsfield_units(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    windowed = np.clip((chest.voxels + 1000.0) / 1400 * 255, 0, 255)
    assert "0 to 255" in refusal(chest.with_voxels(windowed.astype(np.int16)))
    assert "0 to 255" in refusal(chest.with_voxels((windowed / 255).astype(np.float32)))
    assert "rescale" in refusal(chest.with_voxels(chest.voxels + 1024))
    padded = chest.voxels + 1024
    padded[:, :5] = -2000  # some scanners pad what they store
    assert "not Hounsfield units" in refusal(chest.with_voxels(padded))
    assert "not Hounsfield units" in refusal(chest.with_voxels((windowed / 127.5 - 1).astype(np.float32)))
    assert "same value" in refusal(chest.with_voxels(np.zeros_like(chest.voxels)))


def test_refuses_a_place_that_is_no_number(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    nowhere = Volume(chest.voxels, chest.spacing, (0.0, float("nan"), 0.0), chest.direction)
    with pytest.raises(InputError, match="its origin is no number"):
        check_axes(nowhere)


def test_refuses_skewed_axes(chest_phantom):
    chest = chest_phantom(spacing=SPACING)
    skewed = Volume(chest.voxels, SPACING, direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.2), (0.0, 0.0, 0.98)))
    assert "right angles" in refusal(skewed)
