"""HU windows of the paper, scaled to [0, 1]."""

from __future__ import annotations

import numpy as np

Window = tuple[float, float]

LUNG_SEGMENTATION: Window = (-1100.0, 100.0)
"""HU, paper section 4.1: of the network that segments the lungs."""

LUNG_WINDOW: Window = (-1000.0, 400.0)
"""HU, paper section 4.1: of all networks but the lungs', and of 8-bit slices."""


def scale(hu: np.ndarray, window: Window) -> np.ndarray:
    """Clip HU to the window and scale to [0, 1], float32, same shape."""
    low, high = window
    scaled = np.clip(hu, low, high).astype(np.float32, copy=False)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return scaled


def unscale(values: np.ndarray, window: Window) -> np.ndarray:
    """[0, 1] back to HU, float32, same shape."""
    low, high = window
    return values.astype(np.float32) * np.float32(high - low) + np.float32(low)
