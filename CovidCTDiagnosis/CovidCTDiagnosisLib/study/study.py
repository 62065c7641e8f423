"""Write and read a study folder, the result of one analysis.

=========================  ===========================================================
analysis.json              findings, provenance, timings; follows analysis.schema.json
lungs.nii.gz               uint8: 1 right, 2 left
lesions.nii.gz             uint8: 1 ground-glass opacity, 2 consolidation,
                           3 crazy paving, 4 combined pattern
relevance_ct.nii.gz        float32: signed relevance of the CT for the score that was explained
relevance_lesions.nii.gz   float32: signed relevance of the lesion mask for that score
=========================  ===========================================================

All images lie on the CT's own grid.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from CovidCTDiagnosisLib.ct.files import itk_name
from CovidCTDiagnosisLib.ct.volume import FILES_APART_MM, Volume
from CovidCTDiagnosisLib.ct.write import write_image
from CovidCTDiagnosisLib.documents import encode_document, read_document
from CovidCTDiagnosisLib.errors import InputError, ResourceError, UsageError
from CovidCTDiagnosisLib.folders import check_target, replaced_folder

ANALYSIS = "analysis.json"
IMAGES: dict[str, type[np.generic]] = {
    "lungs": np.uint8,
    "lesions": np.uint8,
    "relevance_ct": np.float32,
    "relevance_lesions": np.float32,
}
# Masks and relevance of a 512 x 512 x 600 CT stay below this: outside the lungs they are zero.
NEEDED_MB = 500

_PACKAGE = "CovidCTDiagnosisLib.study"
_SCHEMA = "analysis.schema.json"
_REMEDY = "Analyze the CT again."


@dataclass(frozen=True, eq=False)
class Study:
    """A study on disk; its images are read when asked for.

    Attributes:
        folder: where it lies.
        analysis: the content of analysis.json.
    """

    folder: Path
    analysis: dict[str, Any]

    def path(self, name: str) -> Path:
        """The file of one of `IMAGES`."""
        return self.folder / _file_name(name)

    @property
    def grid(self) -> Volume:
        """The CT's own grid; its voxels take no memory and mean nothing."""
        return input_grid(self.analysis)

    def image(self, name: str) -> Volume:
        """Read one of `IMAGES`, on the CT's own grid.

        Raises:
            InputError: the file is damaged, or it is not the image that analysis.json describes.
        """
        path = self.path(name)
        try:
            volume = _read_image(path)
            _check_complete(path, volume)
            _check_image(name, volume, self.grid)
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"{path.name} of the study {self.folder} is damaged.", _REMEDY) from error
        return volume


def check_output(folder: Path) -> bool:
    """Make sure that a study can be written to `folder`, before the long work starts.

    Returns:
        Whether an older study is there: it is replaced as a whole, at the end.

    Raises:
        UsageError: `folder` holds something other than a study, or cannot be made.
        ResourceError: the disk has too little free space.
    """
    check_target(folder, ANALYSIS, "study", own={ANALYSIS, *map(_file_name, IMAGES)})
    itk_name(folder.resolve(), UsageError)
    free_mb = shutil.disk_usage(folder.resolve().parent).free / 1e6
    if free_mb < NEEDED_MB:
        raise ResourceError(
            f"Only {free_mb:.0f} MB are free for the study, {NEEDED_MB} MB are needed.", "Free some space."
        )
    return (folder / ANALYSIS).exists()


def write_study(
    folder: Path,
    analysis: dict[str, Any],
    images: Mapping[str, Volume],
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a study, whole or not at all; an older study in `folder` is kept until the new one is complete.

    Args:
        folder: where to; its parent must exist.
        analysis: the content of analysis.json.
        images: all of `IMAGES` by name, with the voxel types given there, on the grid of `analysis["input"]`.
        finish: gets the complete study before it takes its place; if that fails, there is none.

    Raises:
        ValueError: `analysis` breaks the schema, or an image is missing or has the wrong type or grid.
        UsageError: `folder` holds something other than a study or cannot be written.
        ResourceError: the disk is full.
    """
    document = encode_document(analysis, _PACKAGE, _SCHEMA)
    if images.keys() != IMAGES.keys():
        raise ValueError(f"a study has the images {sorted(IMAGES)}, not {sorted(images)}")
    grid = input_grid(analysis)
    for name, volume in images.items():
        _check_image(name, volume, grid)
    check_target(folder, ANALYSIS, "study", own={ANALYSIS, *map(_file_name, IMAGES)})
    with replaced_folder(folder) as partial:
        for name, volume in images.items():
            path = partial / _file_name(name)
            write_image(volume, path)
            try:
                _check_complete(path, volume)
            except ValueError as error:
                raise ResourceError(
                    f"{path.name} was cut off while it was written: the disk is full or failing.",
                    "Free some space or choose another disk.",
                ) from error
        (partial / ANALYSIS).write_bytes(document)
        finish(partial)


def read_study(folder: Path) -> Study:
    """Open a study folder.

    Raises:
        InputError: it is no study, or it is damaged or incomplete.
    """
    try:
        analysis = read_document(folder / ANALYSIS, _PACKAGE, _SCHEMA)
    except OSError as error:
        raise InputError(
            f"{folder} is not a study: {ANALYSIS} cannot be read.",
            "Choose the folder that an analysis wrote.",
        ) from error
    except ValueError as error:
        raise InputError(f"{ANALYSIS} of the study {folder} is not valid ({error}).", _REMEDY) from error
    study = Study(folder, analysis)
    for name in IMAGES:
        if not study.path(name).is_file():
            raise InputError(f"{study.path(name).name} of the study {folder} is missing.", _REMEDY)
    return study


def _file_name(name: str) -> str:
    return f"{name}.nii.gz"


def input_grid(analysis: dict[str, Any]) -> Volume:
    """A volume on the grid of the CT; its voxels take no memory and mean nothing."""
    ct = analysis["input"]
    i, j, k = ct["size"]
    direction = ct["direction"]
    return Volume(
        np.broadcast_to(np.uint8(0), (k, j, i)),
        spacing=tuple(ct["spacing_mm"]),
        origin=tuple(ct["origin_mm"]),
        direction=(tuple(direction[0:3]), tuple(direction[3:6]), tuple(direction[6:9])),
    )


def _check_image(name: str, volume: Volume, grid: Volume) -> None:
    """Raise ValueError when an image has the wrong type or grid."""
    if volume.voxels.dtype != IMAGES[name]:
        raise ValueError(f"{name} is {volume.voxels.dtype}, not {np.dtype(IMAGES[name])}")
    if not volume.on_same_grid(grid, FILES_APART_MM):
        raise ValueError(f"{name} is not on the grid of the CT")


def _check_complete(path: Path, volume: Volume) -> None:
    """Raise ValueError when a compressed image does not hold all of the volume's voxels.

    ITK's NIfTI reader and writer say nothing when a file is cut off, as on a full disk.
    """
    size = 0
    try:
        with gzip.open(path) as stream:
            while chunk := stream.read(2**20):
                size += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name} is cut off or damaged") from error
    if size < volume.voxels.nbytes:
        raise ValueError(f"{path.name} is cut off")


def _read_image(path: Path) -> Volume:
    """Read a mask or heatmap; RuntimeError when it cannot be read."""
    import SimpleITK as sitk

    image = sitk.ReadImage(itk_name(path))
    if image.GetDimension() != 3:
        raise ValueError(f"{path.name} has {image.GetDimension()} dimensions")
    direction = image.GetDirection()
    return Volume(
        sitk.GetArrayFromImage(image),
        spacing=image.GetSpacing(),
        origin=image.GetOrigin(),
        direction=(direction[0:3], direction[3:6], direction[6:9]),
    )
