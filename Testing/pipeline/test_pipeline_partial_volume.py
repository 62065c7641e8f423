"""Skins of lung over the diaphragm's domes and under the apices' roofs are told apart from lesions."""

from __future__ import annotations

import numpy as np
from CovidCTDiagnosisLib.pipeline.partial_volume import SHARE, THIN_MM, partial_volume_skins
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

STEP_MM = 3.0


def chest(size: int = 20) -> np.ndarray:
    """Lung above a liver with a level top at k = 8."""
    lungs = np.ones((size, size, size), bool)
    lungs[:8] = False
    return lungs


def test_a_skin_on_the_dome_goes_and_lesions_stay() -> None:
    lungs = chest()
    skin, thick, floating, wall = (np.zeros_like(lungs) for _ in range(4))
    skin[8:10, 2:6, 2:6] = True  # 6 mm
    thick[8:11, 2:6, 10:14] = True  # 9 mm: a lesion of the lung's base
    floating[12:14, 10:14, 2:6] = True  # thin, in the middle of the lung
    wall[8:18, 10:14, 10:14] = True  # reaches far up
    found = partial_volume_skins(skin | thick | floating | wall, lungs, STEP_MM)
    np.testing.assert_array_equal(found, skin)


def test_a_skin_under_the_roof_of_an_apex_goes() -> None:
    lungs = chest()[::-1]  # ends at k = 12
    skin, thick = np.zeros_like(lungs), np.zeros_like(lungs)
    skin[10:12, 2:6, 2:6] = True
    thick[9:12, 2:6, 10:14] = True
    np.testing.assert_array_equal(partial_volume_skins(skin | thick, lungs, STEP_MM), skin)


def test_a_lesion_under_a_gap_in_the_lung_stays() -> None:
    lungs = chest()
    lungs[14:16, 4:12, 4:12] = False  # a vessel, a fissure's fat
    lesion = np.zeros_like(lungs)
    lesion[12:14, 5:9, 5:9] = True
    assert not partial_volume_skins(lesion, lungs, STEP_MM).any()


def test_where_the_scan_ends_in_lung_nothing_is_known() -> None:
    lungs = np.ones((6, 8, 8), bool)
    lesions = np.zeros_like(lungs)
    lesions[:2, 2:6, 2:6] = True
    lesions[-2:, 2:6, 2:6] = True
    assert not partial_volume_skins(lesions, lungs, STEP_MM).any()


def test_a_lesion_goes_or_stays_as_a_whole() -> None:
    lungs = chest()
    lesion = np.zeros_like(lungs)
    lesion[8:10, 2:12, 2:12] = True
    lesion[8:13, 2:12, 2:5] = True  # less than 80 % of it is thin
    assert not partial_volume_skins(lesion, lungs, STEP_MM).any()


def test_slices_thicker_than_a_skin_keep_everything() -> None:
    lungs = chest()
    lesion = np.zeros_like(lungs)
    lesion[8:9, 2:6, 2:6] = True
    assert not partial_volume_skins(lesion, lungs, 10.0).any() and partial_volume_skins(lesion, lungs, 5.0).any()


BLOCKS = arrays(bool, st.tuples(st.integers(1, 7), st.just(3), st.just(3)))


@settings(deadline=None)
@given(BLOCKS, st.data(), st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.0]))
def test_skins_are_those_that_counting_along_each_column_finds(
    lesions: np.ndarray, data: st.DataObject, step_mm: float
) -> None:
    lungs = lesions | data.draw(arrays(bool, lesions.shape))
    resting, hanging = np.zeros_like(lesions), np.zeros_like(lesions)
    for j, i in np.ndindex(3, 3):
        column = lesions[:, j, i]
        runs, count = ndimage.label(column)
        for run in range(1, count + 1):
            places = np.flatnonzero(runs == run)
            below, above = places[0] - 1, lungs[places[-1] + 1 :, j, i]
            thin = len(places) * step_mm <= THIN_MM
            resting[places, j, i] = thin and below >= 0 and not lungs[below, j, i]
            hanging[places, j, i] = thin and above.size > 0 and not above.any()
    pieces, count = ndimage.label(lesions, np.ones((3, 3, 3)))
    expected = np.zeros_like(lesions)
    for piece in range(1, count + 1):
        here = pieces == piece
        expected |= here & (max(resting[here].mean(), hanging[here].mean()) >= SHARE)
    np.testing.assert_array_equal(partial_volume_skins(lesions, lungs, step_mm), expected)
