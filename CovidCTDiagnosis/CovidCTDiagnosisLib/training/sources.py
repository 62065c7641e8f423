"""The training data folder: slices, slice series and small volumes, as cases in HU on axial grids.

``read_*`` take the data folder (``--data``); its form is that of the data README: ``series`` with
``series.csv``, ``lesion_slices``, ``covid_volumes`` and ``lungs``. 8-bit slices have neither HU nor pixel
size: grey 0..255 is read as a window of HU, the pixel size as a nominal one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..ct.files import PICTURE_SUFFIXES, as_int16, files_below
from ..ct.orientation import to_axial
from ..ct.read import read_image, read_scan
from ..ct.slice_images import grey_to_hu
from ..ct.text_header import files_of
from ..ct.windows import LUNG_WINDOW, Window
from ..errors import InputError
from ..pipeline.diagnosis import ClassifierInput
from ..pipeline.models import Models
from ..pipeline.slice_series import series_input
from ..pipeline.slices import NOMINAL_PIXEL_MM, NOMINAL_SLICE_MM
from ..tables import Row, read_rows, require_columns

UNKNOWN_LESION = 255
"""Label of a lesion voxel whose class nobody named."""

MOST_VOXELS = 50_000
TISSUE_HU = -300

CHUNK_BYTES = 2**20
PARTS = ("series", "series.csv", "lesion_slices", "covid_volumes", "lungs", "images", "lesions", "cases.csv")
"""Of a data folder, in the form of the shared data or of a hospital's own."""

# The coronacases volumes are shown with a wider window than the rest (air near 16, soft tissue near 100 of
# 255) and lie the other way up.
CORONACASES_WINDOW: Window = (-1070.0, 1750.0)


@dataclass(frozen=True)
class Case:
    """One image to learn from.

    Attributes:
        name: where it comes from, also the unit that folds keep together.
        hu: (K, J, I) int16, axial: k inferior to superior, j anterior to posterior, i right to left.
        spacing: mm along (k, j, i); nominal for 8-bit slices.
        labels: (K, J, I) uint8 or None; what the numbers mean is the source's matter.
    """

    name: str
    hu: np.ndarray
    spacing: tuple[float, float, float]
    labels: np.ndarray | None = None

    @cached_property
    def classes(self) -> list[int]:
        """The numbers in the labels, without 0."""
        return [int(v) for v in np.unique(self.labels) if v] if self.labels is not None else []

    @cached_property
    def labelled(self) -> np.ndarray:
        """Voxels (N, 3), along (k, j, i), whose label is not 0; of very many only some."""
        assert self.labels is not None
        return _some_voxels(self.labels > 0)

    @cached_property
    def tissue(self) -> np.ndarray:
        """Voxels (N, 3), along (k, j, i), that hold no air; of very many only some."""
        return _some_voxels(self.hu > TISSUE_HU)


def _some_voxels(mask: np.ndarray) -> np.ndarray:
    voxels = np.argwhere(mask)
    # A copy, as a view would keep all of them in memory.
    return voxels[:: max(len(voxels) // MOST_VOXELS, 1)].copy()


def require_data(folder: Path, *parts: str) -> Path:
    """The data folder's part, or an InputError that says what is missing."""
    if not folder.exists():
        raise InputError(f"The training data folder {folder} does not exist.", "Check the path given to --data.")
    path = folder.joinpath(*parts)
    if not path.exists():
        raise InputError(
            f"The training data folder {folder.name or folder} has no {'/'.join(parts)}.",
            "Give the folder that holds series, lesion_slices, covid_volumes and lungs with --data.",
        )
    return path


def fingerprint(path: Path) -> str:
    """Tells apart states of a folder or file, wherever it lies: by names, sizes and contents."""
    return _fingerprint(path, [path])


def contents_fingerprint(files: Sequence[Path]) -> str:
    """The same for files of the same contents, whatever they are called."""
    contents = []
    for path in files:
        found = hashlib.sha256()
        _add_content(found, path)
        contents.append(found.hexdigest())
    return hashlib.sha256(" ".join(sorted(contents)).encode()).hexdigest()[:12]


def data_fingerprint(data: Path) -> str:
    """Tells apart states of a data folder: of ``PARTS`` alone, as a bundle and its runs may be written beside them."""
    return _fingerprint(data, [data / name for name in PARTS])


def _fingerprint(base: Path, parts: Sequence[Path]) -> str:
    found = hashlib.sha256()
    files = [p for part in parts for p in (files_of(part) if part.is_file() else files_below(part))]
    for path in sorted(files):
        name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
        found.update(f"{name} {path.stat().st_size}\n".encode(errors="replace"))
        _add_content(found, path)
    return found.hexdigest()[:12]


def _add_content(found: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)


def read_grey(path: Path, window: Window = LUNG_WINDOW) -> np.ndarray:
    """An 8-bit slice as (1, J, I) int16 HU: grey 0..255 spans the window."""
    with Image.open(path) as image:
        return grey_to_hu(np.asarray(image.convert("L")), window)[None]


def _read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)[None]


def _slice_number(path: Path) -> int:
    return int(path.stem)


def read_lesion_slices(data: Path) -> list[Case]:
    """Expert slices in order of number; labels 0 background, 1 ground-glass, 2 consolidation.

    ``infection`` without a class is ``UNKNOWN_LESION``. The files are transposed: rows and columns change places here.
    """
    folder = require_data(data, "lesion_slices")
    spacing = (NOMINAL_SLICE_MM, NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM)
    cases = []
    pictures = (p for p in files_below(folder / "images") if p.suffix.lower() in PICTURE_SUFFIXES)
    for path in sorted(pictures, key=_slice_number):
        classes = _read_mask(next((folder / "classes").glob(f"{path.stem}.*")))
        infection = _read_mask(next((folder / "infection").glob(f"{path.stem}.*"))) > 127
        labels = np.where(infection & (classes == 0), UNKNOWN_LESION, classes).astype(np.uint8)
        cases.append(
            Case(
                f"lesion_slices/{path.stem}",
                _upright(read_grey(path)),
                spacing,
                _upright(labels),
            )
        )
    return cases


def read_covid_slices(data: Path) -> list[Case]:
    """Slices of the COVID-19 volumes with machine-made binary masks (``UNKNOWN_LESION``).

    The slices of a volume are cropped one by one, so they do not stack: each is a case of its own.
    """
    folder = require_data(data, "covid_volumes")
    spacing = (NOMINAL_SLICE_MM, NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM)
    cases = []
    for path in sorted(folder.glob("*/*.jpg")):
        wide = path.parent.name.startswith("coronacases")
        mask = _read_mask(path.with_name(f"{path.stem}_machine_mask.png")) > 127
        hu, labels = (
            read_grey(path, CORONACASES_WINDOW if wide else LUNG_WINDOW),
            mask.astype(np.uint8) * UNKNOWN_LESION,
        )
        hu, labels = _upright(hu), _upright(labels)
        if wide:
            hu, labels = hu[:, ::-1], labels[:, ::-1]
        cases.append(Case(f"covid_volumes/{path.parent.name}", hu, spacing, labels))
    return cases


def _upright(voxels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(voxels.transpose(0, 2, 1))


@dataclass(frozen=True)
class Series:
    """One slice series: its slices in scan order, each (1, J, I) int16 HU, and whether it is COVID-19."""

    name: str
    slices: list[np.ndarray]
    covid: int
    picture: ClassVar[bool] = True

    @cached_property
    def digest(self) -> str:
        """Tells its pictures apart from others of the same name."""
        found = hashlib.sha256()
        for voxels in self.slices:
            found.update(str(voxels.shape).encode())
            found.update(voxels.tobytes())
        return found.hexdigest()[:8]

    def classifier_input(self, models: Models, longest_side: int) -> ClassifierInput:
        """See ``examples.Scan``."""
        return series_input([s[0] for s in self.slices], models, longest_side, NOMINAL_SLICE_MM)


def read_series(data: Path) -> list[Series]:
    """All series of ``series.csv`` in its order (neighbouring names may be one patient).

    Raises:
        InputError: table or folder is missing, a label is not 1 or 0, or a series has no PNG files.
    """
    folder, table = require_data(data, "series"), require_data(data, "series.csv")
    columns, rows = read_rows(table)
    remedy = "Give one row a series, with covid 1 for COVID-19 and 0 for not."
    require_columns(table, columns, ("series", "covid"), remedy)
    return [_read_one_series(folder, row) for row in rows]


def _read_one_series(folder: Path, row: Row) -> Series:
    name = row.text("series")
    files = sorted((folder / name).glob("*.png")) if name else []
    if not files:
        raise row.wrong(f"there are no PNG files in series/{name}" if name else "series is empty")
    return Series(name, [read_grey(p) for p in files], int(row.flag("covid")))


def read_lung_volumes(data: Path) -> list[Case]:
    """The small HU volumes; ``ct-64`` has expert lung labels (1), the other none."""
    folder = require_data(data, "lungs")
    cases = []
    for name, mask in (("ct-64", "wholeLung-64"), ("TestInput", None)):
        ct = read_scan(folder / f"{name}.nrrd")
        volume, labels = to_axial(ct), None
        if mask is not None:
            labels = to_axial(ct.with_voxels(read_image(folder / f"{mask}.nrrd").voxels)).voxels.astype(np.uint8)
        cases.append(Case(f"lungs/{name}", as_int16(volume.voxels), volume.spacing[::-1], labels))
    return cases


def read_ct(path: Path, name: str) -> Case:
    """A whole CT in HU, without labels."""
    volume = to_axial(read_scan(path))
    return Case(name, as_int16(volume.voxels), volume.spacing[::-1])
