"""8-bit slice images: which are taken, which are refused, grey as HU and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct.slice_images import (
    find_slice_images,
    grey_to_hu,
    hu_to_grey,
    is_mask,
    is_soft_mask,
    read_slice_folder,
    read_slice_image,
    write_png,
)
from CovidCTDiagnosisLib.errors import InputError
from PIL import Image
from scipy import ndimage

GREY = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


def test_images_come_in_natural_order_and_other_files_stay_out(tmp_path: Path) -> None:
    for name in ("s10.png", "s2.JPG", "s1.tif", "s1b.bmp", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in find_slice_images(tmp_path)] == ["s1.tif", "s1b.bmp", "s2.JPG", "s10.png"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no images"):
        find_slice_images(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        find_slice_images(tmp_path / "notes.txt")


def test_of_images_of_one_name_the_first_is_used_and_the_other_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    found = read_slice_folder(tmp_path)
    assert [p.name for p in found.paths] == ["a.bmp", "b.png"]
    assert found.warnings == ["Left out: a.png has the same name as a.bmp."]


def test_names_that_some_disks_take_for_one_are_one(tmp_path: Path) -> None:
    for name in ("Scan.png", "scan.bmp", "caf\u00e9.png", "cafe\u0301.bmp"):
        Image.fromarray(GREY).save(tmp_path / name)
    found = read_slice_folder(tmp_path)
    assert len(found.paths) == 2 and "the same name" in " ".join(found.warnings)


def test_a_mask_may_have_the_name_of_its_image(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "0.jpg")
    Image.fromarray((GREY > 99).astype(np.uint8) * 255).save(tmp_path / "0.png")
    assert [p.name for p in read_slice_folder(tmp_path).paths] == ["0.jpg"]


def test_images_too_small_for_a_slice_are_left_out_and_named(tmp_path: Path) -> None:
    Image.fromarray(np.kron(GREY, np.ones((4, 4), np.uint8))).save(tmp_path / "1.png")
    Image.fromarray(GREY).save(tmp_path / "thumb.png")
    found = read_slice_folder(tmp_path, smallest_side=32)
    assert [p.name for p in found.paths] == ["1.png"]
    assert found.warnings == ["Left out: thumb.png has only 20 x 12 pixels."]
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"thumb\.png has only") as caught:
        read_slice_folder(tmp_path, smallest_side=32)
    assert "32 pixels" in caught.value.remedy


def soft_mask(seed: int = 0) -> np.ndarray:
    blob = np.random.default_rng(seed).random((60, 80))
    return ndimage.gaussian_filter(255.0 * (ndimage.gaussian_filter(blob, 8) > 0.5), 0.6).astype(np.uint8)


def test_masks_with_soft_edges_are_left_out_and_dark_pictures_are_not(tmp_path: Path) -> None:
    assert is_soft_mask(soft_mask()) and not is_mask(soft_mask())
    assert not is_soft_mask(np.zeros((60, 80), np.uint8))
    assert not is_soft_mask(np.full((60, 80), 3, np.uint8) + np.arange(80, dtype=np.uint8) // 10)
    for n in range(2):
        Image.fromarray(np.kron(GREY, np.ones((5, 4), np.uint8))).save(tmp_path / f"{n}.png")
        Image.fromarray(soft_mask(n)).save(tmp_path / f"{n}_mask.png")
    assert [p.name for p in read_slice_folder(tmp_path).paths] == ["0.png", "1.png"]


def test_slices_in_a_narrow_window_are_no_masks(tmp_path: Path) -> None:
    """Nearly all of them is black or white then, but there are no others that they could be masks of."""
    for n in range(3):
        Image.fromarray(soft_mask(n)).save(tmp_path / f"{n}.png")
    Image.fromarray((soft_mask(4) > 99).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    assert [p.name for p in read_slice_folder(tmp_path).paths] == ["0.png", "1.png", "2.png"]


def test_machine_masks_are_masks_and_slices_are_none(training_data: Path) -> None:
    """Of the real pictures; the masks of one volume are half grey, and one that is black all over may be a slice."""
    pictures = [*(training_data / "covid_volumes").glob("*/*.jpg"), *(training_data / "series").glob("*/*.png")]
    images = [read_slice_image(path) for path in sorted(pictures)[::40]]
    assert not any(is_mask(image) or is_soft_mask(image) for image in images)
    masks = [read_slice_image(p) for p in sorted((training_data / "covid_volumes").glob("*/*_machine_mask.png"))[::9]]
    assert np.mean([is_mask(mask) or is_soft_mask(mask) for mask in masks if mask.any()]) > 0.9


def test_of_many_pictures_that_cannot_be_read_some_are_named_and_all_are_counted(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "1.png")
    for n in range(40):
        (tmp_path / f"broken{n}.png").write_bytes(b"no image")
    (told,) = read_slice_folder(tmp_path).warnings
    assert told.startswith("Left out: broken0.png cannot") and told.endswith(" 35 more.") and len(told) < 300


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA"])
def test_grey_is_read_from_any_8_bit_mode(tmp_path: Path, suffix: str, mode: str) -> None:
    if suffix == "bmp" and mode == "LA":
        pytest.skip("BMP has no grey with transparency")
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).convert(mode).save(path)
    read = read_slice_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, GREY)


def test_an_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    assert read_slice_image(tmp_path / "a.jpg").shape == GREY.shape


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 5), np.uint16), "not an 8-bit grey image"),
        (np.dstack([GREY, GREY[::-1], GREY]), "colour"),
    ],
    ids=["16 bit", "colour"],
)
def test_what_is_not_8_bit_grey_is_refused(tmp_path: Path, pixels: np.ndarray, words: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=words) as caught:
        read_slice_image(tmp_path / "a.png")
    assert "a.png" in caught.value.message and caught.value.remedy


def test_two_levels_and_a_coloured_marker_are_still_a_slice(tmp_path: Path) -> None:
    Image.fromarray(np.eye(9, dtype=bool)).save(tmp_path / "black.png")
    np.testing.assert_array_equal(read_slice_image(tmp_path / "black.png"), np.eye(9, dtype=np.uint8) * 255)
    marked = np.dstack([np.full((40, 40), 80, np.uint8)] * 3)
    marked[:4, :4] = (255, 0, 0)
    Image.fromarray(marked).save(tmp_path / "marked.png")
    assert (read_slice_image(tmp_path / "marked.png")[4:] == 80).all()


def test_masks_and_what_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "1.png")
    Image.fromarray(np.zeros_like(GREY)).save(tmp_path / "2.png")
    for mask in ("1_mask.png", "2_mask.png"):
        Image.fromarray((GREY > 99).astype(np.uint8) * 255).save(tmp_path / mask)
    (tmp_path / "3.png").write_bytes(b"no image")
    found = read_slice_folder(tmp_path)
    assert [p.name for p in found.paths] == ["1.png", "2.png"] and (found.images[0] == GREY).all()
    assert len(found.warnings) == 2
    assert "3.png cannot be read" in found.warnings[0] and "1_mask.png and 1 more" in found.warnings[1]
    for name in ("1.png", "2.png"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"3\.png"):
        read_slice_folder(tmp_path)
    (tmp_path / "3.png").unlink()
    with pytest.raises(InputError, match="masks only"):
        read_slice_folder(tmp_path)


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)).save(whole)
    for name, content in (("cut.png", whole.read_bytes()[:900]), ("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_slice_image(tmp_path / name)


@pytest.mark.parametrize(("error", "becomes"), [(TypeError, InputError), (MemoryError, MemoryError)])
def test_whatever_fails_in_a_picture_s_reader_is_damage_but_for_memory(
    error: type[Exception], becomes: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Image.Image:
        raise error("Missing dimensions")  # as Pillow does with some damaged TIFF files

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(becomes):
        read_slice_image(tmp_path / "a.tif")


def test_several_pages_are_refused(tmp_path: Path) -> None:
    page = Image.fromarray(GREY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(InputError, match="pages"):
        read_slice_image(tmp_path / "a.tif")


@pytest.mark.parametrize("window", [(-1000.0, 400.0), (-1350.0, 150.0)])
def test_grey_spans_the_window_and_comes_back(window: tuple[float, float]) -> None:
    grey = np.arange(256, dtype=np.uint8)
    hu = grey_to_hu(grey, window)
    assert hu.dtype == np.int16 and (hu[0], hu[-1]) == window
    np.testing.assert_array_equal(hu_to_grey(hu, window), grey)
    np.testing.assert_array_equal(hu_to_grey(np.array([-3000, 3000]), window), [0, 255])


def test_masks_are_written_as_grey_png(tmp_path: Path) -> None:
    mask = np.rot90(GREY % 3)
    write_png(mask, tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask)
