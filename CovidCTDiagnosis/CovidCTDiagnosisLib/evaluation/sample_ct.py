"""The NIfTI sample and its expert lungs: never trained on, kept for measuring."""

from __future__ import annotations

import numpy as np

from ..ct import Volume, fetch_sample, fetch_truth, read_image, read_scan, to_axial
from ..pipeline.lung_sides import LEFT, RIGHT

LEFT_LOBES, RIGHT_LOBES = (10, 11), (12, 13, 14)
"""Numbers in the sample's truth."""


def read_sample_ct() -> tuple[Volume, np.ndarray]:
    """The CT, HU, axial, and its lungs by the expert's lobes, uint8 (K, J, I): 1 right, 2 left.

    Raises:
        SampleError: it cannot be fetched.
    """
    ct = to_axial(read_scan(fetch_sample("chest-nifti")))
    truth = to_axial(read_image(fetch_truth("chest-nifti"))).voxels
    sides = [np.isin(truth, lobes) for lobes in (RIGHT_LOBES, LEFT_LOBES)]
    return ct, np.select(sides, [RIGHT, LEFT], 0).astype(np.uint8)
