"""HU windows: the paper's limits, scaled to [0, 1] and back."""

from __future__ import annotations

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct.windows import LUNG_SEGMENTATION, LUNG_WINDOW, Window, scale, unscale


@pytest.mark.parametrize(("window", "low", "high"), [(LUNG_SEGMENTATION, -1100, 100), (LUNG_WINDOW, -1000, 400)])
def test_window_has_the_papers_limits_and_clips_beyond_them(window: Window, low: float, high: float) -> None:
    hu = np.array([-32768, low - 1, low, (low + high) / 2, high, high + 1, 32767])
    np.testing.assert_allclose(scale(hu, window), [0, 0, 0, 0.5, 1, 1, 1], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_scaled_values_are_single_precision_and_the_input_stays_as_it_is(dtype: type) -> None:
    hu = np.linspace(-1200, 500, 24).reshape(2, 3, 4).astype(dtype)
    before = hu.copy()
    scaled = scale(hu, LUNG_WINDOW)
    assert scaled.dtype == np.float32 and scaled.shape == hu.shape
    np.testing.assert_array_equal(hu, before)


@pytest.mark.parametrize("window", [LUNG_SEGMENTATION, LUNG_WINDOW])
def test_unscale_undoes_scale_inside_the_window(window: Window) -> None:
    hu = np.arange(int(window[0]), int(window[1]) + 1, dtype=np.int16)
    np.testing.assert_array_equal(np.rint(unscale(scale(hu, window), window)), hu)
