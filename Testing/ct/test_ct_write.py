from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct import Volume, digest, read_image, write_image
from CovidCTDiagnosisLib.errors import ResourceError
from scipy.spatial.transform import Rotation


def oblique(voxels: np.ndarray, flip: float = 1.0) -> Volume:
    matrix = Rotation.from_euler("xyz", [20, -35, 110], degrees=True).as_matrix() * [1.0, 1.0, flip]
    direction = tuple(tuple(map(float, row)) for row in matrix)
    return Volume(voxels, (0.703125, 0.81, 2.5), (-171.30001, 188.123456, -1340.7), direction)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, bool])
@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_grid_and_voxels_come_back(tmp_path, name, dtype, flip):
    voxels = np.random.default_rng(0).integers(0, 2, (7, 8, 9)).astype(dtype)
    volume = oblique(voxels[::-1], flip)
    write_image(volume, tmp_path / name)
    again = read_image(tmp_path / name)
    assert again.on_same_grid(volume, tolerance_mm=1e-4)
    assert again.spacing == pytest.approx(volume.spacing, abs=1e-5)
    np.testing.assert_array_equal(again.voxels, volume.voxels)


def test_a_mask_is_small_and_quick_to_write(tmp_path):
    mask = np.zeros((130, 512, 512), np.uint8)
    mask[20:110, 100:400, 80:250] = 1
    start = perf_counter()
    write_image(Volume(mask), tmp_path / "mask.nii.gz")
    assert perf_counter() - start < 5
    assert (tmp_path / "mask.nii.gz").stat().st_size < mask.nbytes / 50


def test_says_that_it_cannot_write(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        write_image(oblique(np.zeros((5, 5, 5), np.int16)), tmp_path / "missing" / "a.nii.gz")


def test_digest_depends_on_content_only():
    voxels = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype("<i2")
    one = digest(oblique(voxels))
    assert len(one) == 64
    assert digest(oblique(voxels.astype(">i2"))) == one
    assert digest(oblique(np.asfortranarray(voxels))) == one
    changed = voxels.copy()
    changed[3, 4, 5] += 1
    others = [
        oblique(changed),
        oblique(voxels.astype(np.float32)),
        oblique(voxels.reshape(5, 4, 6)),
        oblique(voxels, flip=-1.0),
        Volume(voxels),
    ]
    assert len({one, *map(digest, others)}) == 6
