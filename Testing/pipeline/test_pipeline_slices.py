"""Slice images: orientation and order are found, stacks are told from lone slices, one path with CT volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.bundle import Bundle, open_bundle
from CovidCTDiagnosisLib.ct import Volume, read_scan, to_axial
from CovidCTDiagnosisLib.ct.slice_images import find_slice_images, grey_to_hu, hu_to_grey, read_slice_image
from CovidCTDiagnosisLib.ct.windows import LUNG_WINDOW, Window
from CovidCTDiagnosisLib.errors import InputError, ResourceError
from CovidCTDiagnosisLib.evaluation.metrics import dice
from CovidCTDiagnosisLib.evaluation.slices_agreement import agreement
from CovidCTDiagnosisLib.networks import UNet3D
from CovidCTDiagnosisLib.pipeline.diagnosis import ClassifierInput
from CovidCTDiagnosisLib.pipeline.models import Models
from CovidCTDiagnosisLib.pipeline.monitor import Event, Monitor
from CovidCTDiagnosisLib.pipeline.slice_cleaning import clean_slice
from CovidCTDiagnosisLib.pipeline.slice_orientation import (
    TURNS,
    apex_is_last,
    common_turn,
    is_doubtful,
    log_likelihoods,
    turns_of,
)
from CovidCTDiagnosisLib.pipeline.slice_segmentation import (
    SMALLEST_WORKING_SIDE,
    SliceMasks,
    SliceOptions,
    find_turns,
    is_stack,
    segment_images,
)
from CovidCTDiagnosisLib.pipeline.slice_series import images_input
from CovidCTDiagnosisLib.pipeline.slices import segment_slices, stack_masks, stack_slices

WIDE: Window = (-1200.0, 800.0)
POSES = [(name, mirrored) for name in TURNS for mirrored in (False, True)]


def pose(upright: np.ndarray, orientation: str, mirrored: bool) -> np.ndarray:
    """An upright image, laid so that the patient's back is where the orientation says."""
    return np.rot90(upright[:, ::-1] if mirrored else upright, -TURNS[orientation])


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> Models:
    return Models(bundle, torch.device("cpu"))


@pytest.fixture(scope="module")
def phantom(sick_phantom: Callable[..., object]) -> Volume:
    return sick_phantom().ct  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def options(phantom: Volume) -> SliceOptions:
    return SliceOptions(pixel_mm=phantom.spacing[0], slice_mm=phantom.spacing[2])


@pytest.fixture(scope="module")
def images(phantom: Volume) -> list[np.ndarray]:
    """The phantom's slices, base first."""
    return [hu_to_grey(s) for s in phantom.voxels]


@pytest.fixture(scope="module")
def stack(images: list[np.ndarray], models: Models, options: SliceOptions) -> SliceMasks:
    return segment_images(images, models, options)


@pytest.fixture(scope="module")
def real_cts(nifti_ct_path: Path, dicom_ct_path: Path) -> list[np.ndarray]:
    """Every fourth slice of two real CTs as 8-bit slices show them, base first."""
    cts = (to_axial(read_scan(path)).voxels[::4] for path in (nifti_ct_path, dicom_ct_path))
    return [grey_to_hu(hu_to_grey(voxels)) for voxels in cts]


# Orientation


@pytest.mark.parametrize(("orientation", "mirrored"), POSES)
def test_a_ct_s_orientation_is_found(real_cts: list[np.ndarray], orientation: str, mirrored: bool) -> None:
    for ct in real_cts:
        likelihoods = np.stack([log_likelihoods(pose(s, orientation, mirrored)) for s in ct])
        assert list(TURNS)[common_turn(likelihoods)] == orientation


@pytest.mark.parametrize("share", [1, 10])
def test_the_orientation_of_transposed_expert_slices_is_found(training_data: Path, share: int) -> None:
    paths = find_slice_images(training_data / "lesion_slices" / "images")
    likelihoods = np.stack([log_likelihoods(grey_to_hu(read_slice_image(p))) for p in paths[::share]])
    assert {list(TURNS)[n] for n in turns_of(likelihoods)} == {"back-right"}


def test_lone_slices_are_mostly_right_in_every_source(training_data: Path) -> None:
    transposed = sorted((training_data / "lesion_slices" / "images").iterdir())
    upright = [sorted(f.glob("*.png")) for f in sorted((training_data / "series").iterdir())[::5]]
    middles = [paths[len(paths) // 2] for paths in upright]
    for paths, name in ((transposed, "back-right"), (middles, "upright")):
        found = [int(log_likelihoods(grey_to_hu(read_slice_image(p))).argmax()) for p in paths]
        assert np.mean([list(TURNS)[n] == name for n in found]) >= 0.94


@pytest.mark.parametrize("orientation", list(TURNS))
def test_a_contrast_filled_heart_is_no_spine_and_a_wide_window_hides_none(
    training_data: Path, orientation: str
) -> None:
    """Ten slices through a bright heart; CTs in a window so wide that soft tissue is as dark as lungs elsewhere."""
    heart = [grey_to_hu(read_slice_image(training_data / "series" / "pos_0428" / f"{n:03}.png")) for n in range(1, 11)]
    cases = [(heart, 0)]
    for folder in sorted((training_data / "covid_volumes").glob("coronacases_*")):
        paths = sorted(folder.glob("*.jpg"))
        cases.append(([grey_to_hu(read_slice_image(p)) for p in paths[:: len(paths) // 8]], TURNS["back-left"]))
    assert len(cases) > 5
    for slices, turn in cases:
        likelihoods = np.stack([log_likelihoods(pose(np.rot90(s, turn), orientation, False)) for s in slices])
        assert list(TURNS)[common_turn(likelihoods)] == orientation and not is_doubtful(likelihoods)


def test_pictures_that_show_nothing_leave_the_turn_in_doubt() -> None:
    told: list[str] = []
    assert len(find_turns([np.zeros((60, 60))] * 3, True, "auto", told.append)) == 3
    assert "--orientation" in told[0]
    assert find_turns([np.zeros((60, 60))], False, "upright", told.append) == [0] and len(told) == 1


def test_doubtful_slices_follow_the_folder_and_clear_ones_do_not() -> None:
    upright, upside_down = np.log([0.97, 0.01, 0.01, 0.01]), np.log([0.01, 0.01, 0.97, 0.01])
    doubtful = np.log([0.2, 0.2, 0.4, 0.2])
    assert list(turns_of(np.stack([*[upright] * 9, doubtful]))) == [0] * 10
    assert list(turns_of(doubtful[None])) == [2]
    mixed = np.stack([*[upright] * 5, *[upside_down] * 5])
    assert list(turns_of(mixed)) == [0] * 5 + [2] * 5


def test_the_apex_is_found(real_cts: list[np.ndarray]) -> None:
    for ct in real_cts:
        assert apex_is_last(ct)
        assert not apex_is_last(ct[::-1])


# Stack or lone slices


def test_slices_of_one_ct_are_a_stack_and_shuffled_ones_are_not(real_cts: list[np.ndarray]) -> None:
    for ct in real_cts:
        assert is_stack(list(ct))
        assert not is_stack(list(np.random.default_rng(0).permutation(ct)))


def test_two_cts_in_a_row_are_no_stack(real_cts: list[np.ndarray]) -> None:
    assert not is_stack([*real_cts[0], *real_cts[1]])


def test_slices_of_various_sizes_are_no_stack(images: list[np.ndarray]) -> None:
    assert is_stack(images)
    assert not is_stack([*images[:-1], images[-1][1:]])


# Masks


def found_in_ct(stack: SliceMasks) -> tuple[np.ndarray, np.ndarray]:
    return np.stack(stack.lungs), np.stack(stack.lesions)


def test_a_ct_as_8_bit_slices_agrees_with_the_ct(phantom: Volume, models: Models) -> None:
    agreed = agreement(phantom, models)
    assert agreed["lungs"] >= 0.97 and agreed["lesions"] >= 0.9


def test_order_and_pose_of_a_stack_change_nothing(
    stack: SliceMasks, images: list[np.ndarray], models: Models, options: SliceOptions
) -> None:
    turned = segment_images([pose(s, "back-left", False) for s in images[::-1]], models, options)
    assert (stack.order, turned.order) == ("base first", "apex first")
    assert set(turned.orientations) == {"back-left"}
    assert np.any(stack.lesions)
    for straight, laid in ((stack.lungs, turned.lungs), (stack.lesions, turned.lesions)):
        np.testing.assert_array_equal(np.stack([np.rot90(m, TURNS["back-left"]) for m in laid[::-1]]), straight)


def test_lone_slices_have_masks_of_their_own_size_and_pose(
    phantom: Volume, images: list[np.ndarray], models: Models, options: SliceOptions
) -> None:
    names = list(TURNS)
    middle = len(images) // 2
    chosen = [images[middle + n][n:, : -1 - n] for n in range(4)]
    posed = [pose(s, name, False) for s, name in zip(chosen, names, strict=True)]
    found = segment_images(posed, models, options)
    assert found.orientations == names and found.order == ""
    alone, _ = segment_slices([grey_to_hu(s) for s in chosen], models, phantom.spacing[2], phantom.spacing[0])
    for name, mask, expected, image in zip(names, found.lungs, alone, posed, strict=True):
        assert mask.shape == image.shape and expected.any()
        np.testing.assert_array_equal(mask, pose(expected, name, False))


@pytest.mark.parametrize(
    ("window", "told"),
    [
        ((-1000, 400), []),
        ((-1400, 200), []),
        ((-160, 240), ["Lungs are black in 2 of 2"]),
        ((-50, 350), ["Lungs are black in 2 of 2"]),
    ],
)
def test_a_window_that_hides_the_lungs_is_told(
    nifti_ct_path: Path, window: tuple[float, float], told: list[str]
) -> None:
    """By the shipped networks: in a soft-tissue window they find lungs that are black."""
    ct = to_axial(read_scan(nifti_ct_path))
    shown = [hu_to_grey(ct.voxels[k], window) for k in (66, 88)]
    monitor = Monitor()
    options = SliceOptions(pixel_mm=ct.spacing[0], orientation="upright")
    segment_images(shown, Models(open_bundle(), torch.device("cpu")), options, monitor)
    assert [w[: len(t)] for w, t in zip(monitor.warnings, told, strict=True)] == told


@pytest.mark.parametrize("odd", ["black", "scout", "smaller"])
def test_one_picture_that_keeps_a_ct_from_being_a_stack_is_told(
    images: list[np.ndarray], models: Models, odd: str
) -> None:
    first = images[0]
    more = {
        "black": np.zeros_like(first),
        "scout": np.indices(first.shape).sum(0).astype(np.uint8),
        "smaller": first[4:],
    }[odd]
    monitor = Monitor()
    options = SliceOptions(pixel_mm=4.0, orientation="upright")
    found = segment_images([*images[15:30], more], models, options, monitor)
    assert found.order == ""
    assert sum("number 16 of 16 is unlike the others" in warning for warning in monitor.warnings) == 1
    monitor = Monitor()
    assert segment_images(images[15:30], models, options, monitor).order
    assert not any("unlike the others" in warning for warning in monitor.warnings)


@pytest.mark.parametrize("count", [2, 40], ids=["lone slices", "stack"])
def test_slices_of_another_window_have_the_same_masks(count: int, phantom: Volume, models: Models) -> None:
    usual, wide = (
        segment_images(
            [hu_to_grey(hu, window) for hu in phantom.voxels[20 : 20 + count]],
            models,
            SliceOptions(window, phantom.spacing[0], phantom.spacing[2], "upright"),
        )
        for window in (LUNG_WINDOW, WIDE)
    )
    assert bool(usual.order) == bool(wide.order) == (count > 2)
    one, other = found_in_ct(usual)[0], found_in_ct(wide)[0]
    assert one.any() and (one != other).sum() < 0.03 * one.sum()


def test_a_given_orientation_is_taken(images: list[np.ndarray], models: Models) -> None:
    found = segment_images(images[20:22], models, SliceOptions(pixel_mm=4.0, orientation="back-left"))
    assert found.orientations == ["back-left"] * 2


def test_a_stack_without_lungs_is_segmented_slice_by_slice_with_a_warning(
    images: list[np.ndarray], models: Models
) -> None:
    monitor = Monitor()
    # So small that the volume of the lungs is a child's doll's.
    found = segment_images(images, models, SliceOptions(pixel_mm=1.0, slice_mm=0.5), monitor)
    assert found.order == "" and len(monitor.warnings) == 1
    assert [m.shape for m in found.lungs] == [s.shape for s in images]


@pytest.mark.parametrize("shape", [(1, 1), (31, 200), (200, 31)], ids=str)
def test_an_image_of_too_few_pixels_is_refused(
    shape: tuple[int, int], images: list[np.ndarray], models: Models, options: SliceOptions
) -> None:
    with pytest.raises(InputError, match=f"Image 2 of 2 has only {shape[1]} x {shape[0]} pixels") as caught:
        segment_images([images[0], np.zeros(shape, np.uint8)], models, options)
    assert caught.value.code == 3 and "32 pixels" in caught.value.remedy


def test_an_image_of_a_few_millimetres_is_refused(models: Models) -> None:
    """However many pixels it has: on the working grid it would be as small as the smallest."""
    image = np.zeros((60, 90), np.uint8)
    with pytest.raises(InputError, match="Image 1 of 1 shows only 9 x 6 mm") as caught:
        segment_images([image], models, SliceOptions(pixel_mm=0.1))
    assert "0.1 mm" in caught.value.remedy
    smallest_mm = 12 * models.preprocessing("lesions")["step_mm"][1]
    (lungs,) = segment_images([image[:32, :32]], models, SliceOptions(pixel_mm=smallest_mm / 32)).lungs
    assert lungs.shape == (32, 32) and not lungs.any()


def test_the_smallest_image_fits_the_u_net_as_it_ships() -> None:
    network = UNet3D().eval()
    with torch.inference_mode():
        for smallest in (SMALLEST_WORKING_SIDE - 1, SMALLEST_WORKING_SIDE):  # a working grid may round down
            assert network(torch.zeros(1, 1, 1, smallest, smallest)).shape[-1] == smallest


@pytest.mark.parametrize("stage", ["lungs", "lesions"])
@pytest.mark.parametrize("count", [2, None], ids=["lone slices", "stack"])
def test_running_out_of_memory_is_told_in_one_sentence(
    stage: str, count: int | None, images: list[np.ndarray], models: Models, options: SliceOptions
) -> None:
    def use_up(event: Event) -> None:
        if event.get("stage") == stage:
            torch.empty(1 << 50)

    with pytest.raises(ResourceError, match="not enough memory for these images") as caught:
        segment_images(images[:count], models, options, Monitor(emit=use_up))
    assert caught.value.code == 5 and "fewer images" in caught.value.remedy


def test_lesions_lie_in_the_lungs(stack: SliceMasks) -> None:
    lungs, lesions = found_in_ct(stack)
    assert lesions.any() and not lesions[~lungs].any()
    assert set(np.unique(lesions)) <= {0, 1, 2}


def test_a_slice_s_result_does_not_depend_on_its_neighbours(phantom: Volume, models: Models) -> None:
    middle = phantom.shape[0] // 2
    slices: Sequence[np.ndarray] = [phantom.voxels[middle], phantom.voxels[middle + 3][:-9, 5:]]
    together, _ = segment_slices(slices, models, 3.0, phantom.spacing[0])
    alone, _ = segment_slices(slices[:1], models, 3.0, phantom.spacing[0])
    assert alone[0].any()
    np.testing.assert_array_equal(together[0], alone[0])


def test_what_makes_a_slice_larger_is_never_lung() -> None:
    small, large = np.full((4, 6), -850), np.full((8, 7), -850)
    volume = stack_slices([small, large], 3.0)
    masks = stack_masks([np.ones(s.shape, bool) for s in (small, large)])
    assert masks.shape == volume.voxels.shape and (volume.voxels == -850).all()
    assert masks[0, 2:6, :6].all() and masks[0].sum() == small.size and masks[1].all()


# Series for the classifier


def test_a_series_is_read_as_its_options_say(phantom: Volume, models: Models) -> None:
    """Window, pixel size, increment and orientation: ``diagnose-series`` takes all four."""

    def seen(window: Window = LUNG_WINDOW, orientation: str = "upright") -> ClassifierInput:
        images = [hu_to_grey(hu, window) for hu in phantom.voxels[30:42:4]]
        return images_input(images, models, 48, SliceOptions(window, phantom.spacing[0], 6.0, orientation))

    usual, wide, down = seen(), seen(WIDE), seen(orientation="upside-down")
    assert len(usual.ct) == 3 and usual.grid.step[0] == pytest.approx(6)
    assert 150 < usual.grid.step[2] * usual.grid.count[2] < 350  # mm, the lungs' width
    assert wide.ct.shape == usual.ct.shape and (wide.ct - usual.ct).abs().mean() < 0.01
    assert down.ct.shape == usual.ct.shape and (down.ct - usual.ct).abs().mean() > 0.02
    assert (down.ct.flip(2, 3) - usual.ct).abs().mean() < 0.01


# Rules


def test_room_air_and_islands_are_no_lung_and_small_holes_are_filled() -> None:
    hu = np.full((100, 100), 40)
    hu[:15] = -1000
    mask = np.zeros((100, 100), bool)
    mask[:15] = True
    mask[30:80, 20:50] = True
    mask[50:54, 30:34] = False
    mask[90:92, 90:92] = True
    cleaned = clean_slice(mask, hu, pixel_cm2=0.04)
    expected = np.zeros((100, 100), bool)
    expected[30:80, 20:50] = True
    np.testing.assert_array_equal(cleaned, expected)


@pytest.mark.parametrize("frame", [0, 4])
def test_lungs_that_a_wide_window_or_a_black_frame_joins_to_the_rooms_air_stay(frame: int) -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 10:40] = mask[20:80, 60:90] = True
    hu = np.where(mask, -850, 40)
    hu[50, :20] = hu[50, 80:] = -850  # through a chest wall that looks like air
    hu[:10] = hu[:, :5] = hu[:, -5:] = -1000
    hu[:frame] = hu[-frame or 100 :] = -1400
    np.testing.assert_array_equal(clean_slice(mask, hu, pixel_cm2=0.04), mask)


def test_a_small_piece_along_the_edge_is_air_beside_the_body_a_large_one_is_lung() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 0:40] = mask[20:80, 55:95] = True  # the crop cuts the first lung
    corner = np.add.outer(np.arange(100), -np.arange(100)) > 80  # a triangle, left below
    apart = np.zeros_like(mask)
    apart[85:93, 60:70] = True  # a small piece of lung within the picture
    hu = np.where(mask | corner | apart, -850, 40)
    cleaned = clean_slice(mask | corner | apart, hu, pixel_cm2=0.04)
    np.testing.assert_array_equal(cleaned, mask | apart)


def test_the_airway_is_no_lung_but_a_brighter_or_a_lateral_piece_is() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 5:40] = mask[20:80, 60:95] = True
    pieces = [(slice(30, 40), slice(45, 55)), (slice(60, 70), slice(45, 55)), (slice(84, 94), slice(20, 30))]
    hu = np.where(mask, -850, 40)
    for (rows, columns), value in zip(pieces, (-950, -700, -950), strict=True):
        mask[rows, columns], hu[rows, columns] = True, value
    expected = mask.copy()
    expected[pieces[0]] = False
    np.testing.assert_array_equal(clean_slice(mask, hu, pixel_cm2=0.04), expected)


def test_the_mediastinum_between_touching_lungs_is_not_filled() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:90, 10:90] = True
    mask[30:70, 30:70] = False
    hu = np.full((100, 100), 40)
    assert dice(clean_slice(mask, hu, pixel_cm2=0.04), mask) == 1.0
