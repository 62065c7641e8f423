"""A CT volume: reading it, refusing what is no chest CT, turning it, and writing on its grid."""

from .checks import check_chest_ct
from .dicom import SeriesInfo, list_series
from .orientation import from_axial, to_axial
from .read import read_image, read_scan
from .samples import SAMPLES, Sample, SampleError, fetch_sample, fetch_truth
from .volume import Volume
from .write import digest, write_image

__all__ = [
    "SAMPLES",
    "Sample",
    "SampleError",
    "SeriesInfo",
    "Volume",
    "check_chest_ct",
    "digest",
    "fetch_sample",
    "fetch_truth",
    "from_axial",
    "list_series",
    "read_image",
    "read_scan",
    "to_axial",
    "write_image",
]
