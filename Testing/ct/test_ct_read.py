from __future__ import annotations

import gzip
import os
import random
import re
import struct
import sys
import unicodedata
import zlib
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from CovidCTDiagnosisLib.ct import Volume, check_chest_ct, list_series, read_image, read_scan, write_image
from CovidCTDiagnosisLib.ct.dicom_header import patient_id
from CovidCTDiagnosisLib.ct.files import quiet, unreadable
from CovidCTDiagnosisLib.errors import InputError, ResourceError, UsageError
from CovidCTDiagnosisLib.study import check_output
from PIL import Image
from scipy.spatial.transform import Rotation

LOCALIZER = "ORIGINAL\\PRIMARY\\LOCALIZER"
OTHER_UID = "1.2.826.0.1.3680043.2.1125.77"
COS, SIN = np.cos(0.2), np.sin(0.2)
OBLIQUE = ((COS, 0.0, SIN), (0.0, 1.0, 0.0), (-SIN, 0.0, COS))
TURNED = tuple(map(tuple, Rotation.from_euler("z", 3, degrees=True).as_matrix()))


def assert_same(read: Volume, written: Volume) -> None:
    assert read.on_same_grid(written, tolerance_mm=1e-3)
    np.testing.assert_array_equal(read.voxels, written.voxels)


def refusal(path, series=None) -> str:
    with pytest.raises(InputError) as caught:
        read_scan(path, series)
    assert caught.value.remedy
    assert "Doe" not in str(caught.value)
    return caught.value.message


# --- real scans


def test_reads_the_real_nifti(nifti_ct_path):
    volume = read_scan(nifti_ct_path)
    assert volume.shape == (133, 512, 512)
    assert volume.spacing == pytest.approx((0.703125, 0.703125, 2.5))
    assert volume.direction[1] == (0.0, -1.0, 0.0)
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.min() == -2048


def test_reads_the_real_dicom_series(dicom_ct_path):
    volume = read_scan(dicom_ct_path)
    assert volume.shape == (64, 512, 512)
    assert volume.spacing == pytest.approx((0.841797, 0.841797, 5.0), abs=1e-5)
    assert volume.origin == pytest.approx((-228.036842, -93.0631599, -439.0))
    assert volume.voxels.dtype == np.int16
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(dicom_ct_path))
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(sitk.ReadImage(names)))


# --- image files


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_reads_image_files(tmp_path, chest_phantom, name):
    chest = chest_phantom(spacing=(6.0, 5.0, 10.0), direction=OBLIQUE)
    write_image(chest, tmp_path / name)
    assert_same(read_scan(tmp_path / name), chest)


def test_the_case_of_a_suffix_does_not_matter(tmp_path, small_chest):
    write_image(small_chest, tmp_path / "a.nii.gz")
    upper = (tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    assert_same(read_scan(upper), small_chest)


def test_reads_rescaled_values_as_float(tmp_path, small_chest):
    write_image(small_chest.with_voxels(small_chest.voxels.astype(np.float64) + 0.25), tmp_path / "a.nrrd")
    voxels = read_scan(tmp_path / "a.nrrd").voxels
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels, small_chest.voxels + 0.25)


def test_reads_a_mask_as_an_image_but_not_as_a_scan(tmp_path, small_chest):
    mask = small_chest.with_voxels((small_chest.voxels < -500).astype(np.uint8))
    write_image(mask, tmp_path / "mask.nii.gz")
    assert_same(read_image(tmp_path / "mask.nii.gz"), mask)
    assert "segmentation" in refusal(tmp_path / "mask.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_refuses_truncated_files_silently(tmp_path, small_chest, name, capfd):
    path = tmp_path / name
    if name == "a.nii":
        sitk.WriteImage(sitk.GetImageFromArray(small_chest.voxels), str(path))
    else:
        write_image(small_chest, path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "damaged or incomplete" in refusal(path)
    assert capfd.readouterr() == ("", "")


def test_refuses_a_nifti_with_a_broken_gzip_stream(tmp_path, small_chest):
    path = tmp_path / "a.nii.gz"
    write_image(small_chest, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged or incomplete" in refusal(path)


@pytest.mark.parametrize("damage", ["zeros", "flip", "short header"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_refuses_damaged_compressed_voxels(tmp_path, small_chest, name, damage):
    """ITK takes what comes before the damage, and leaves the rest as it was in memory."""
    path = tmp_path / name
    image = sitk.GetImageFromArray(small_chest.voxels)
    sitk.WriteImage(image, str(path), useCompression=True)
    assert np.array_equal(read_image(path).voxels, small_chest.voxels)
    data = {"a.nhdr": "a.raw.gz", "a.mhd": "a.zraw"}.get(name, name)
    content = bytearray((tmp_path / data).read_bytes())
    if damage == "zeros":
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    elif damage == "flip":
        content[2 * len(content) // 3] ^= 0xFF
    if damage == "short header":  # fewer voxels than there are
        count = str(small_chest.shape[0])
        text = path.read_bytes()
        at = text.index(b"sizes:" if b"NRRD" in text[:4] else b"DimSize")
        end = text.index(b"\n", at)
        fewer = text[at:end].replace(count.encode(), str(small_chest.shape[0] - 1).encode())
        path.write_bytes(text[:at] + fewer + text[end:])
    else:
        (tmp_path / data).write_bytes(content)
    assert "damaged or incomplete" in refusal(path)


@pytest.mark.parametrize("kind", ["members", "skip", "keys", "channels"])
def test_takes_sound_voxels_that_are_compressed_in_less_usual_ways(tmp_path, small_chest, kind):
    voxels = small_chest.voxels.astype("<i2").tobytes()
    sizes = " ".join(map(str, small_chest.shape[::-1]))
    half = len(voxels) // 2
    whole = gzip.compress(voxels[:half]) + gzip.compress(voxels[half:]) if kind == "members" else gzip.compress(voxels)
    if kind == "channels":
        header = f"NDims = 3\nDimSize = {sizes}\nElementSpacing = 1 1 1\nElementNumberOfChannels = 1.0\n"
        packed = zlib.compress(voxels)
        header += f"CompressedData = True\nCompressedDataSize = {len(packed)}\nElementType = MET_SHORT\n"
        path, data = tmp_path / "a.mhd", packed
        (tmp_path / "a.zraw").write_bytes(data)
        path.write_text(header + "ElementDataFile = a.zraw\n")
    else:
        more = {"skip": "byte skip: 5\n", "keys": "sizes:=3 4\nType:=uint8\n"}.get(kind, "")
        header = f"NRRD0004\ntype: int16\ndimension: 3\nsizes: {sizes}\nendian: little\nspacings: 1 1 1\n"
        path, extra = tmp_path / "a.nrrd", b"12345" if kind == "skip" else b""
        data = gzip.compress(extra + voxels) if extra else whole
        path.write_bytes(f"{header}encoding: gzip\n{more}\n".encode() + data)
    assert np.array_equal(read_image(path).voxels, small_chest.voxels)


@pytest.mark.parametrize("said", ["missing", "smaller"])
def test_refuses_a_metaimage_that_does_not_say_how_long_its_voxels_are(tmp_path, small_chest, said):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(small_chest.voxels), str(path), useCompression=True)
    content = path.read_bytes()
    element = re.search(rb"CompressedDataSize = \d+\n", content)[0]
    path.write_bytes(content.replace(element, b"" if said == "missing" else b"CompressedDataSize = 500\n"))
    assert "damaged or incomplete" in refusal(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_refuses_junk(tmp_path, name):
    (tmp_path / name).write_bytes(b"junk " * 200)
    assert refusal(tmp_path / name)


@pytest.mark.parametrize("step", [0.0, -2.0, float("nan")])
def test_refuses_a_nifti_without_spacing(tmp_path, small_chest, step):
    write_image(small_chest, tmp_path / "good.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "good.nii.gz").read_bytes()))
    content[88:92] = struct.pack("<f", step)
    (tmp_path / "a.nii").write_bytes(content)
    assert "spacing" in refusal(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.mha", b"ElementSpacing = 6 6 10\n", b""),
        ("a.mha", b"ElementSpacing = 6 6 10\n", b"ElementSpacing = 6 6 0\n"),
        ("a.mha", b"ElementSpacing = 6 6 10\n", b"ElementSpacing = 6 6 -1\n"),
        ("a.mha", b"ElementSpacing = 6 6 10\n", b"ElementSpacing = 6 6 10 -\n"),
        ("a.mha", b"ElementSpacing = 6 6 10\n", b"ElementSpacing = -\n"),
        ("a.nrrd", b"space directions: (6,0,0) (0,6,0) (0,0,10)\n", b""),
        ("a.nrrd", b"(0,0,10)", b"(0,0,0)"),
    ],
)
def test_refuses_other_formats_without_spacing(tmp_path, small_chest, name, old, new):
    write_image(small_chest, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new))
    assert "spacing" in refusal(tmp_path / name)


def test_axes_of_rounded_cosines_are_those_of_the_study_written_from_them(tmp_path, small_chest):
    """NIfTI holds axes at right angles only; at the far corner the difference would be some hundredths of a mm."""
    turned = np.eye(3)
    for angle, (a, b) in zip((5.0, 3.0, 7.0), ((0, 1), (1, 2), (0, 2)), strict=True):
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(np.radians(angle)) * np.array([1, 0, 0, 1])
        turn[a, b], turn[b, a] = -np.sin(np.radians(angle)), np.sin(np.radians(angle))
        turned = turned @ turn
    rounded = np.round(turned, 3)
    assert np.abs(rounded.T @ rounded - np.eye(3)).max() > 1e-4
    write_image(
        Volume(small_chest.voxels, (0.75, 0.75, 5.0), direction=tuple(map(tuple, rounded))), tmp_path / "a.nrrd"
    )
    ct = read_scan(tmp_path / "a.nrrd")
    direction = np.asarray(ct.direction)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(direction, rounded, atol=1e-3)
    large = Volume(np.zeros((72, 480, 480), np.uint8), ct.spacing, ct.origin, ct.direction)
    write_image(large, tmp_path / "mask.nii.gz")
    assert read_image(tmp_path / "mask.nii.gz").on_same_grid(large, tolerance_mm=1e-3)


def test_refuses_axes_that_are_not_at_right_angles(tmp_path, small_chest):
    """As of a tilted gantry; NIfTI says so in another place than others."""
    sheared = Volume(small_chest.voxels, small_chest.spacing, direction=((1, 0, 0), (0, 1, 0.2), (0, 0, 0.98)))
    write_image(sheared, tmp_path / "a.nrrd")
    write_image(small_chest, tmp_path / "good.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "good.nii.gz").read_bytes()))
    content[304:308] = struct.pack("<f", 2.0)  # of a step along k, 2 mm go to the front
    for codes in ((0, 1), (1, 1), (2, 1), (1, 2)):  # ITK takes the straight qform where there are both
        content[252:256] = struct.pack("<2h", *codes)
        (tmp_path / "a{}{}.nii".format(*codes)).write_bytes(content)
    for name in ("a.nrrd", "a01.nii", "a11.nii", "a21.nii", "a12.nii"):
        assert "not at right angles" in refusal(tmp_path / name)


def test_refuses_a_nifti_with_two_spacings_unless_one_is_that_of_a_template(tmp_path, small_chest):
    write_image(small_chest, tmp_path / "good.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "good.nii.gz").read_bytes()))
    for row in range(3):
        at = 280 + 16 * row
        content[at : at + 12] = struct.pack("<3f", *(value / 2 for value in struct.unpack_from("<3f", content, at)))
    content[252:256] = struct.pack("<2h", 1, 1)
    (tmp_path / "half.nii").write_bytes(content)
    assert "two spacings" in refusal(tmp_path / "half.nii")
    content[252:256] = struct.pack("<2h", 1, 4)
    (tmp_path / "template.nii").write_bytes(content)
    assert_same(read_scan(tmp_path / "template.nii"), small_chest)
    content[252:256], content[280:328] = struct.pack("<2h", 1, 1), bytes(48)
    (tmp_path / "empty.nii").write_bytes(content)
    assert_same(read_scan(tmp_path / "empty.nii"), small_chest)


@pytest.mark.parametrize(
    ("turn", "known"),
    [
        (np.diag((-1.0, 1.0, 1.0)), False),
        (np.diag((-1.0, -1.0, 1.0)), False),
        (np.array([[COS, -SIN, 0.0], [SIN, COS, 0.0], [0.0, 0.0, 1.0]]), True),
        (np.eye(3), True),
    ],
    ids=["mirrored", "upside down", "registered", "equal"],
)
@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("direction", [np.eye(3), np.array(OBLIQUE), np.diag((1.0, 1.0, -1.0))])
def test_a_nifti_whose_two_forms_differ_in_side_is_warned_of(tmp_path, small_chest, turn, known, codes, direction):
    ct = replace(small_chest, direction=tuple(map(tuple, direction)))
    write_image(ct, tmp_path / "good.nii.gz")
    content = bytearray(gzip.decompress((tmp_path / "good.nii.gz").read_bytes()))
    sform = np.array(struct.unpack_from("<12f", content, 280)).reshape(3, 4)
    sform[:, :3] = turn @ sform[:, :3]
    content[280:328] = struct.pack("<12f", *sform.ravel())
    content[252:256] = struct.pack("<2h", *codes)
    (tmp_path / "ct.nii").write_bytes(content)
    assert read_image(tmp_path / "ct.nii").orientation_known == known
    content[252:256] = struct.pack("<2h", 0, 1)
    (tmp_path / "one.nii").write_bytes(content)
    assert read_image(tmp_path / "one.nii").orientation_known, "one form alone cannot contradict"


@pytest.mark.parametrize("name", ["ct.nii", "ct.Nii.Gz"])
def test_a_misnamed_nifti_is_not_called_damaged(tmp_path, small_chest, name):
    write_image(small_chest, tmp_path / "good.nii.gz")
    (tmp_path / "good.nii.gz").rename(tmp_path / name)
    assert "should end in .nii.gz" in refusal(tmp_path / name)


def test_nifti_2_is_named(tmp_path):
    (tmp_path / "a.nii").write_bytes(struct.pack("<i", 540) + b"n+2\0" + bytes(2000))
    assert "NIfTI-2" in refusal(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.nii.gz", None, None),
        ("a.nii", None, None),
        ("a.nrrd", b"space: left-posterior-superior\n", b""),
        ("a.mha", b"TransformMatrix = ", b"Comment = "),
    ],
)
def test_an_orientation_that_is_not_said_is_warned_of(tmp_path, small_chest, name, old, new):
    path = tmp_path / name
    write_image(small_chest, path)
    assert read_scan(path).orientation_known
    content = path.read_bytes()
    if old:
        assert old in content
        content = content.replace(old, new)
        if name.endswith(".nrrd"):
            content = content.replace(b"space directions: (6,0,0) (0,6,0) (0,0,10)", b"spacings: 6 6 10")
            content = re.sub(rb"space origin: .*\n", b"", content)
    else:
        content = bytearray(gzip.decompress(content) if name.endswith(".gz") else content)
        content[252:256] = bytes(4)
        content = gzip.compress(content) if name.endswith(".gz") else content
    path.write_bytes(content)
    ct = read_scan(path)
    assert not ct.orientation_known and not ct.with_voxels(ct.voxels).orientation_known
    assert any("right and left may be exchanged" in warning for warning in check_chest_ct(ct))


def test_no_memory_for_a_scan_is_not_called_damage():
    """ITK has one kind of error for both; this is what it says of the former."""
    error = unreadable("a.nii", RuntimeError("itk::ERROR: Failed to allocate memory for image."))
    assert isinstance(error, ResourceError) and "a.nii" in error.message and error.remedy
    assert isinstance(unreadable("a.nii", RuntimeError("Error reading data")), InputError)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_names_that_are_not_utf_8_are_refused(tmp_path, small_chest, write_series):
    odd = tmp_path / os.fsdecode(b"M\xfcller")
    odd.mkdir()
    write_image(small_chest, tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(odd / "a.nii.gz")
    write_series(tmp_path / "dicom", small_chest)
    (tmp_path / "dicom").rename(odd / "dicom")
    for path in (odd / "a.nii.gz", odd / "dicom"):
        assert "M?ller" in refusal(path) and "UTF-8" in refusal(path)
    with pytest.raises(InputError, match="UTF-8"):
        write_image(small_chest, odd / "b.nii.gz")
    with pytest.raises(UsageError, match="UTF-8"):
        check_output(odd / "study")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_of_linked_folders_is_followed_once(tmp_path, small_chest, write_series):
    write_series(tmp_path / "archive" / "chest", small_chest)
    patient = tmp_path / "patient"
    patient.mkdir()
    (patient / "series").symlink_to(tmp_path / "archive" / "chest")
    (patient / "back").symlink_to(patient)
    assert [series.slices for series in list_series(patient)] == [small_chest.shape[0]]
    assert_same(read_scan(patient), small_chest)


def test_refuses_absurd_spacing(tmp_path, small_chest):
    metres = Volume(small_chest.voxels, spacing=(0.006, 0.006, 0.01))
    write_image(metres, tmp_path / "a.nrrd")
    assert "0.01 x 0.01 x 0.01 mm cannot be right" in refusal(tmp_path / "a.nrrd")


def test_refuses_other_dimensions_and_colours(tmp_path, small_chest):
    image = sitk.GetImageFromArray(small_chest.voxels)
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "4d.nii.gz"))
    sitk.WriteImage(sitk.Compose(image, image, image), str(tmp_path / "colour.nrrd"))
    sitk.WriteImage(image[:, :, 0], str(tmp_path / "2d.nrrd"))
    sitk.WriteImage(image[:, :, 0:3], str(tmp_path / "thin.nrrd"))
    assert "4-D" in refusal(tmp_path / "4d.nii.gz")
    assert "several values per voxel" in refusal(tmp_path / "colour.nrrd")
    assert "single slice" in refusal(tmp_path / "2d.nrrd")
    assert "3 slices" in refusal(tmp_path / "thin.nrrd")


def test_reads_a_4d_file_with_one_volume(tmp_path, small_chest):
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(small_chest.voxels)]), str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nrrd").voxels, small_chest.voxels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_refuses_voxels_that_are_not_numbers(tmp_path, small_chest, value, dtype, name):
    voxels = small_chest.voxels.astype(dtype)
    voxels[3, 4, 5] = value
    write_image(small_chest.with_voxels(voxels), tmp_path / name)
    assert "not numbers" in refusal(tmp_path / name)


def test_refuses_other_paths(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    (tmp_path / "empty").mkdir()
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "neither DICOM nor" in refusal(tmp_path / "notes.txt")
    assert "is empty" in refusal(tmp_path / "empty")
    assert "no DICOM" in refusal(tmp_path)


def test_pictures_are_sent_to_the_commands_for_them(tmp_path):
    Image.new("L", (64, 64)).save(tmp_path / "1.png")
    for path in (tmp_path, tmp_path / "1.png"):
        assert "neither Hounsfield units" in refusal(path)
        with pytest.raises(InputError) as caught:
            read_scan(path)
        assert "segment-slices" in caught.value.remedy


def test_series_is_for_dicom_only(tmp_path, small_chest):
    write_image(small_chest, tmp_path / "a.nrrd")
    with pytest.raises(UsageError, match="--series"):
        read_scan(tmp_path / "a.nrrd", series="1")


# --- DICOM


@pytest.mark.parametrize("direction", [((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), OBLIQUE])
def test_orders_slices_by_position_not_name(tmp_path, chest_phantom, write_series, direction, capfd):
    chest = chest_phantom(spacing=(6.0, 5.0, 10.0), direction=direction)
    names = [f"IM{number}" for number in range(chest.shape[0])]
    random.Random(3).shuffle(names)
    write_series(tmp_path / "deep" / "er", chest, name=lambda k: names[k])
    (tmp_path / "readme.txt").write_text("not DICOM")
    assert_same(read_scan(tmp_path), chest)
    assert_same(read_scan(tmp_path / "deep" / "er" / "IM7"), chest)
    assert capfd.readouterr() == ("", "")


def test_reads_slices_stored_from_head_to_feet(tmp_path, small_chest, write_series):
    paths = write_series(tmp_path, small_chest)
    for path in paths:
        path.rename(path.with_name(f"{len(paths) - int(path.stem):04d}.renamed"))
    assert_same(read_scan(tmp_path), small_chest)


def test_takes_the_chest_among_scout_head_and_short_series(tmp_path, small_chest, write_series):
    write_series(tmp_path / "chest", small_chest)
    scout = Volume(small_chest.voxels[:2], small_chest.spacing)
    write_series(tmp_path / "scout", scout, uid=OTHER_UID + ".1", tags={"0008|0008": LOCALIZER})
    write_series(tmp_path / "head", small_chest, uid=OTHER_UID + ".2", tags={"0008|103e": "HEAD 5mm"})
    write_series(tmp_path / "few", scout, uid=OTHER_UID + ".3")
    write_series(tmp_path / "mr", small_chest, uid=OTHER_UID + ".4", tags={"0008|0060": "MR"})
    obstacles = {info.uid: info.obstacle for info in list_series(tmp_path)}
    assert len(obstacles) == 5
    assert [uid for uid, obstacle in obstacles.items() if not obstacle] == ["1.2.826.0.1.3680043.2.1125.1"]
    assert_same(read_scan(tmp_path), small_chest)


def test_a_scout_inside_the_series_is_left_out(tmp_path, small_chest, write_series):
    write_series(tmp_path / "chest", small_chest)
    tags = {"0008|0008": LOCALIZER, "0008|0018": OTHER_UID}
    write_series(tmp_path / "scout", Volume(small_chest.voxels[:1], (2.0, 2.0, 1.0)), tags=tags)
    assert_same(read_scan(tmp_path), small_chest)
    assert_same(read_scan(tmp_path, "1.2.826.0.1.3680043.2.1125.1"), small_chest)


def test_asks_which_of_two_chests(tmp_path, small_chest, write_series):
    other = small_chest.with_voxels(small_chest.voxels[::-1])
    write_series(tmp_path / "a", small_chest)
    write_series(tmp_path / "b", other, uid=OTHER_UID, tags={"0020|0011": "11", "0008|103e": "Lung 1.0"})
    with pytest.raises(UsageError) as caught:
        read_scan(tmp_path)
    message = str(caught.value)
    assert "32 slices of 6.00 x 6.00 x 10.00 mm, series 11 'Lung 1.0'" in message
    assert "--series" in message
    assert "Doe" not in message
    assert [info.series_number for info in list_series(tmp_path)] == ["2", "11"]
    assert_same(read_scan(tmp_path, "2"), other)
    assert_same(read_scan(tmp_path, OTHER_UID), other)
    assert_same(read_scan(tmp_path / "a" / "0003.dcm"), small_chest)
    with pytest.raises(UsageError, match="no series 7"):
        read_scan(tmp_path, "7")


def test_a_coronal_reformat_is_not_taken_for_the_chest(tmp_path, small_chest, write_series):
    write_series(tmp_path / "axial", small_chest)
    coronal = replace(small_chest, direction=((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)))
    write_series(tmp_path / "coronal", coronal, uid=OTHER_UID)
    obstacles = {info.uid: info.obstacle for info in list_series(tmp_path)}
    assert obstacles[OTHER_UID] == "not axial"
    assert read_scan(tmp_path).on_same_grid(small_chest)


def test_copies_of_the_same_images_count_once(tmp_path, small_chest, write_series):
    write_series(tmp_path / "a", small_chest)
    write_series(tmp_path / "b", small_chest)
    assert_same(read_scan(tmp_path), small_chest)


@pytest.mark.parametrize("of_one_uid", [4, 1000])
def test_images_of_several_places_are_no_copies_though_an_anonymiser_gave_them_one_uid(
    tmp_path, small_chest, write_series, of_one_uid
):
    for path in write_series(tmp_path, small_chest):
        rewrite(path, {"0008|0018": f"{OTHER_UID}.{int(path.stem) // of_one_uid}"})
    assert_same(read_scan(tmp_path), small_chest)


def test_another_reconstruction_is_no_copy_though_both_have_one_uid(tmp_path, small_chest, write_series):
    other = small_chest.with_voxels(small_chest.voxels + np.int16(7))
    write_series(tmp_path / "a", small_chest)
    write_series(tmp_path / "b", other)
    assert "two" in refusal(tmp_path) or "same place" in refusal(tmp_path)


def test_of_one_scan_in_both_forms_the_single_frames_are_read(tmp_path, small_chest, write_series):
    write_series(tmp_path / "single", small_chest)
    image = sitk.GetImageFromArray(small_chest.voxels)
    tags = {"0008|0060": "CT", "0020|000e": OTHER_UID, "0008|0016": "1.2.840.10008.5.1.4.1.1.2.1"}
    for key, value in tags.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(tmp_path / "enhanced.dcm"))
    writer.Execute(image)
    assert len(list_series(tmp_path)) == 2
    assert_same(read_scan(tmp_path), small_chest)
    (tmp_path / "alone").mkdir()
    (tmp_path / "enhanced.dcm").rename(tmp_path / "alone" / "enhanced.dcm")
    assert "multi-frame (enhanced)" in refusal(tmp_path / "alone")


def test_refuses_slices_without_rescale_among_others(tmp_path, small_chest, write_series):
    whole = small_chest.with_voxels(small_chest.voxels.astype(np.int16))
    for path in write_series(tmp_path, whole)[::2]:
        content = path.read_bytes()
        for element in (b"\x28\x00\x52\x10", b"\x28\x00\x53\x10"):
            at = content.index(element)
            (length,) = struct.unpack_from("<I", content, at + 4)
            content = content[:at] + content[at + 8 + length :]
        path.write_bytes(content)
    assert "do not say how their values become HU" in refusal(tmp_path)


def test_refuses_a_compressed_slice_that_ends_in_nothing(tmp_path, small_chest, write_series):
    """As a copy that was stopped leaves it where the disk's room was taken before."""
    paths = write_series(tmp_path, small_chest)
    for path in paths:
        stored = sitk.ReadImage(str(path))
        image = sitk.Cast(stored, sitk.sitkInt16)
        for key in stored.GetMetaDataKeys():
            image.SetMetaData(key, stored.GetMetaData(key))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(image)
    assert_same(read_scan(tmp_path), small_chest)
    content = paths[3].read_bytes()
    half = len(content) // 2
    paths[3].write_bytes(content[:half] + bytes(len(content) - half))
    assert f"{paths[3].name} is damaged or incomplete" in refusal(tmp_path)
    # What was whole before is: a pad to the end of a block, or padding that DICOM allows.
    paths[3].write_bytes(content + bytes(512))
    assert_same(read_scan(tmp_path), small_chest)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_refuses_links_that_lead_nowhere(tmp_path, small_chest, write_series):
    paths = write_series(tmp_path / "kept", small_chest)
    (tmp_path / "scan").mkdir()
    for path in paths:
        (tmp_path / "scan" / path.name).symlink_to(path)
    (tmp_path / "scan" / ".#lock").symlink_to("nobody@nowhere")
    assert_same(read_scan(tmp_path / "scan"), small_chest)
    (tmp_path / "scan" / "latest.txt").symlink_to("nowhere.txt")  # no image
    assert_same(read_scan(tmp_path / "scan"), small_chest)
    paths[-1].unlink()
    assert f"{paths[-1].name} is a link that leads nowhere" in refusal(tmp_path / "scan")


def rewrite(path, tags, compressed=False) -> None:
    image = sitk.ReadImage(str(path))
    for key, value in tags.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.SetUseCompression(compressed)
    writer.Execute(image)


@pytest.mark.parametrize(
    ("acquisition", "mixed"), [(lambda k: k % 2, True), (lambda k: k, False), (lambda k: k // 16, False)]
)
def test_refuses_two_acquisitions_that_take_turns(tmp_path, small_chest, write_series, acquisition, mixed):
    for k, path in enumerate(write_series(tmp_path, small_chest)):
        rewrite(path, {"0020|0012": str(acquisition(k) + 1)})
    if mixed:
        assert "two acquisitions mixed" in refusal(tmp_path)
    else:
        assert_same(read_scan(tmp_path), small_chest)


@pytest.mark.parametrize("missing", [1, 15, 30])
def test_refuses_a_missing_slice(tmp_path, small_chest, write_series, missing):
    write_series(tmp_path, small_chest, skip=(missing,))
    message = refusal(tmp_path)
    assert "missing or irregular" in message
    assert f"20.00 mm after slice {missing} of 31" in message


def test_refuses_a_slice_that_lies_a_third_of_the_distance_off(tmp_path, small_chest, write_series):
    write_series(tmp_path, small_chest, skip=(15,))
    x, y, z = small_chest.origin
    off = replace(small_chest, origin=(x, y, z + 3.3))
    write_series(tmp_path, off, skip=tuple(k for k in range(small_chest.shape[0]) if k != 15))
    assert "missing or irregular" in refusal(tmp_path)


@pytest.mark.parametrize("left", [b"", bytes(400), b"cut"])
@pytest.mark.parametrize("name", ["{:04d}.dcm", "IM{:04d}", "CT.1.2.840.113619.{}"])
def test_refuses_a_series_whose_last_slices_were_cut_off(tmp_path, small_chest, write_series, name, left):
    paths = write_series(tmp_path, small_chest, name=name.format)
    for harmless in ("notes.txt", "LOCKFILE", ".gitkeep", "~tmp.dcm", "Icon\r"):
        (tmp_path / harmless).write_bytes(left)
    assert_same(read_scan(tmp_path), small_chest)
    for path in paths[-2:]:
        path.write_bytes(left)
    assert "damaged or incomplete" in refusal(tmp_path)


def test_takes_an_oblique_series_with_rounded_cosines(tmp_path, small_chest, write_series):
    """Of three decimals, as some scanners write them; its slices lie where the unrounded ones do."""
    turn = Rotation.from_euler("xyz", (4, -3, 6), degrees=True).as_matrix()
    oblique = replace(small_chest, spacing=(6.0, 6.0, 2.0), direction=tuple(map(tuple, turn)))
    rounded = "\\".join(f"{value:.3f}" for value in turn[:, :2].T.ravel())
    write_series(tmp_path, oblique, tags={"0020|0037": rounded})
    assert np.allclose(read_scan(tmp_path).direction, turn, atol=1e-3)


def test_refuses_a_tilted_gantry(tmp_path, small_chest, write_series):
    write_series(tmp_path, small_chest, shear_mm=1.763)
    assert "tilted by 10.0 degrees" in refusal(tmp_path)


def test_refuses_two_phases_in_one_series(tmp_path, small_chest, write_series):
    write_series(tmp_path / "a", small_chest)
    for path in write_series(tmp_path / "b", small_chest):
        rewrite(path, {"0008|0018": f"{OTHER_UID}.{path.stem}"})
    assert "same place" in refusal(tmp_path)


def test_refuses_slices_of_different_size(tmp_path, small_chest, write_series):
    write_series(tmp_path / "a", small_chest, skip=(31,))
    narrow = small_chest.with_voxels(small_chest.voxels)
    write_series(
        tmp_path / "b",
        Volume(narrow.voxels[:, :, :-4], narrow.spacing, narrow.origin),
        skip=tuple(range(31)),
    )
    assert "differ in size" in refusal(tmp_path)


@pytest.mark.parametrize("other", [{"direction": TURNED}, {"spacing": (6.5, 6.5, 10.0)}], ids=["turned", "coarser"])
def test_refuses_slices_of_different_orientation_or_spacing(tmp_path, small_chest, write_series, other):
    half = small_chest.shape[0] // 2
    write_series(tmp_path / "a", small_chest, skip=tuple(range(half, small_chest.shape[0])))
    write_series(tmp_path / "b", replace(small_chest, **other), skip=tuple(range(half)))
    assert "differ in size, spacing or orientation" in refusal(tmp_path)


def test_refuses_mr(tmp_path, small_chest, write_series):
    write_series(tmp_path, small_chest, tags={"0008|0060": "MR"})
    assert "modality is MR" in refusal(tmp_path)
    assert "modality is MR" in refusal(tmp_path, "1")


def test_refuses_one_slice(tmp_path, small_chest, write_series):
    write_series(tmp_path, small_chest, skip=tuple(range(1, 32)))
    assert "1 slice" in refusal(tmp_path)
    assert "1 slice" in refusal(tmp_path / "0000.dcm")


@pytest.mark.parametrize("kept", [0.5, 0.99])
@pytest.mark.parametrize("slice_", [0, 10, 31])
def test_refuses_a_truncated_slice(tmp_path, small_chest, write_series, kept, slice_, capfd):
    path = write_series(tmp_path, small_chest)[slice_]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert f"{path.name} is damaged" in refusal(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "uid",
    [b"1.2.840.10008.1.3.10", b"1.2.840.10008.5.1.4.1.1.200.1\0"],
    ids=["a CD's directory", "a CT protocol"],
)
def test_ignores_dicom_files_without_an_image(tmp_path, small_chest, write_series, uid):
    write_series(tmp_path, small_chest)
    element = b"\x02\x00\x02\x00UI" + struct.pack("<H", len(uid)) + uid
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + element)
    assert_same(read_scan(tmp_path), small_chest)


def test_a_patient_is_found_behind_a_cds_directory(tmp_path, small_chest, write_series):
    write_series(tmp_path / "IMAGES", small_chest, tags={"0010|0020": "P17"})
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert patient_id(tmp_path) == "P17"
    assert patient_id(tmp_path / "nothing") == ""


def test_what_file_managers_leave_is_not_even_opened(tmp_path, small_chest, write_series, monkeypatch):
    write_series(tmp_path, small_chest)
    (tmp_path / "Thumbs.db").write_bytes(b"held by the explorer")
    opened = type(tmp_path).open

    def held(path, *arguments, **options):
        if path.name == "Thumbs.db":
            raise PermissionError
        return opened(path, *arguments, **options)

    monkeypatch.setattr(type(tmp_path), "open", held)
    assert_same(read_scan(tmp_path), small_chest)


@pytest.mark.parametrize(
    ("declared", "codec", "text", "chest"),
    [
        ("ISO_IR 100", "latin-1", "TÓRAX Y ABDOMEN", True),
        ("ISO_IR 100", "latin-1", "Schädel", False),
        ("", "latin-1", "TÓRAX Y ABDOMEN", True),
        ("ISO_IR 192", "utf-8", "To\u0301rax, abdomen", True),
        ("ISO_IR 192", "utf-8", "Schädel", False),
        ("ISO_IR 144", "iso8859-5", "Грудь", True),
    ],
)
def test_descriptions_are_read_in_their_character_set(
    tmp_path, small_chest, write_series, declared, codec, text, chest
):
    marked = "x" * len(text.encode(codec))
    for path in write_series(tmp_path, small_chest, tags={"0008|103e": marked, "0008|0005": declared or "ISO_IR 100"}):
        content = path.read_bytes().replace(marked.encode(), text.encode(codec))
        if not declared:
            content = content.replace(b"ISO_IR 100", b"          ")
        path.write_bytes(content)
    (info,) = list_series(tmp_path)
    assert info.description == unicodedata.normalize("NFC", text)
    assert (info.obstacle == "") == chest


def test_an_unknown_compression_is_not_called_damage(tmp_path, small_chest, write_series):
    path = write_series(tmp_path, small_chest)[0]
    rewrite(path, {}, compressed=True)
    tag, unknown = b"\x02\x00\x10\x00UI", b"1.2.840.10008.1.2.4.201\0"
    element = tag + struct.pack("<H", len(unknown)) + unknown
    content = path.read_bytes()
    changed = re.sub(tag + rb"..[\d.]+\0?", lambda _: element, content, count=1, flags=re.DOTALL)
    (length,) = struct.unpack_from("<I", content, 140)  # of the file meta information
    length += len(changed) - len(content)
    path.write_bytes(changed[:140] + struct.pack("<I", length) + changed[144:])
    message = refusal(tmp_path)
    assert "compressed in a way that cannot be read (1.2.840.10008.1.2.4.201)" in message


def test_a_chest_that_is_called_something_else_may_be_forced(tmp_path, small_chest, write_series):
    write_series(tmp_path / "chest", small_chest, tags={"0018|0015": "ABDOMEN", "0008|103e": "5mm"})
    for number in range(12):
        scout = Volume(small_chest.voxels[:1], small_chest.spacing)
        write_series(tmp_path / f"scout{number}", scout, uid=f"{OTHER_UID}.{number}", tags={"0008|0008": LOCALIZER})
    with pytest.raises(InputError, match="and 5 more") as caught:
        read_scan(tmp_path)
    assert "--series NUMBER" in caught.value.remedy
    (number,) = (info.number for info in list_series(tmp_path) if info.slices > 1)
    assert_same(read_scan(tmp_path, str(number)), small_chest)


def test_threads_that_read_leave_standard_error_as_it_was():
    before = os.fstat(2)
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.fstat(2) != before, "the other one still wants it quiet"
    second.__exit__(None, None, None)
    assert os.path.samestat(os.fstat(2), before)


def test_refuses_stored_values_without_rescale(tmp_path, small_chest, write_series):
    stored = small_chest.with_voxels((small_chest.voxels.astype(int) + 1024).astype(np.uint16))
    write_series(tmp_path, stored, tags={"0028|1052": "0"})
    assert "rescale" in refusal(tmp_path)
