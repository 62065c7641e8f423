"""A hospital's own scans for CVAE and classifier: a table (CSV), checked before anything is trained.

=======================  =============================================================================
scan                     DICOM folder, NIfTI, NRRD or MetaImage file, or a folder of 8-bit slices; as
                         seen from the table's folder
label                    1 COVID-19, 0 not
patient                  optional (for all scans or none); without it a DICOM scan's PatientID, else each scan is
                         a patient
split                    optional: train, validation or test; without it patients are divided about 3 : 1 : 1
                         (small tables had better name splits: chance may leave one without COVID-19)
centre, co_rads          optional: any text; 0 (not interpretable) to 6
=======================  =============================================================================
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..ct import read_scan
from ..ct.dicom_header import may_be_dicom, patient_id
from ..ct.files import IMAGE_SUFFIXES, PICTURE_SUFFIXES, files_below, readable
from ..ct.slice_images import read_slice_folder
from ..ct.text_header import files_of
from ..errors import InputError
from ..pipeline.diagnosis import ClassifierInput
from ..pipeline.models import Models
from ..pipeline.scan_input import scan_input
from ..pipeline.slice_segmentation import SMALLEST_SIDE, SliceOptions
from ..pipeline.slice_series import images_input
from ..pipeline.slices import NOMINAL_SLICE_MM
from ..tables import Row, Splits, read_rows, require_columns, spelled_alike
from .sources import contents_fingerprint, fingerprint
from .splits import Split

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)

ONE_PATIENT = " Scans whose DICOM files have one PatientID are of one patient, unless a column patient says otherwise."
_BY_TAG = ", by the PatientID of their DICOM files; a column patient can say otherwise"


@dataclass(frozen=True)
class OwnScan:
    """One row of the table.

    Attributes:
        name: unique, made from the row's number and the scan's file name.
        path: of the scan.
        covid: 1 or 0.
        patient: who it is of; never written anywhere.
        split: one of ``SPLITS``, or empty.
        centre: empty where not stated.
        co_rads: 0 to 6, or None.
        by_tag: the patient is known by PatientID of the DICOM files, not by the table.
    """

    name: str
    path: Path
    covid: int
    patient: str
    split: str = ""
    centre: str = ""
    co_rads: int | None = None
    by_tag: bool = False

    @cached_property
    def images(self) -> list[Path]:
        """Its files, without notes and the like that may lie beside images."""
        if self.path.is_file():
            return list(files_of(self.path))
        every = list(files_below(self.path))
        return [p for p in every if p.suffix.lower() in PICTURE_SUFFIXES or may_be_dicom(p)] or every

    @cached_property
    def size(self) -> int:
        """Of its images, bytes."""
        return sum(path.stat().st_size for path in self.images)

    @property
    def content(self) -> str:
        """Tells its images apart from others, whatever their files are called."""
        return contents_fingerprint(self.images)

    @cached_property
    def picture(self) -> bool:
        """Whether it is a folder of slice images; one beside a CT's DICOM files is no scan."""
        if not self.path.is_dir() or not any(p.suffix.lower() in PICTURE_SUFFIXES for p in self.path.iterdir()):
            return False
        return not any(may_be_dicom(path) for path in files_below(self.path))

    @cached_property
    def digest(self) -> str:
        """Tells the state of its files apart from others."""
        return fingerprint(self.path)[:8]

    def classifier_input(self, models: Models, longest_side: int) -> ClassifierInput:
        """See ``examples.Scan``; a folder of slice images is read as ``covid-ct diagnose-series`` does."""
        if self.picture:
            return images_input(
                read_slice_folder(self.path, SMALLEST_SIDE).images, models, longest_side, SliceOptions()
            )
        return scan_input(read_scan(self.path), models, slice_mm=NOMINAL_SLICE_MM, longest_side=longest_side)


def is_scan_table(data: Path) -> bool:
    """Whether this is such a table and not a folder."""
    return data.is_file() or data.suffix.lower() in (".csv", ".tsv")


def read_scan_table(path: Path) -> list[OwnScan]:
    """Read and check a table.

    Raises:
        InputError: it cannot be read, lacks a column, a value is none, a scan is missing or stands twice, or a patient
            is named for some scans only or stands in two splits.
    """
    columns, rows = read_rows(path)
    require_columns(path, columns, ("scan", "label"), "Give one row a scan, with label 1 for COVID-19 and 0 for not.")
    if len({bool(row.text("patient")) for row in rows}) == 2:
        raise InputError(f"{path.name} names the patient of some scans only.", "Name that of all of them, or of none.")
    splits, seen, scans = Splits(), set(), []
    for number, row in enumerate(rows, start=1):
        scan = _scan(number, row, path.parent)
        if scan.path.resolve() in seen:
            raise row.wrong(f"{row.text('scan')} stands twice")
        seen.add(scan.path.resolve())
        splits.put(row, scan.patient, scan.split, _BY_TAG if scan.by_tag else "")
        scans.append(scan)
    if any(s.split for s in scans) and not all(s.split for s in scans):
        raise InputError(f"{path.name} gives some scans no split.", "Give all of them one, or none.")
    patients = spelled_alike(scan.patient for scan in scans)
    return [replace(scan, patient=patient) for scan, patient in zip(scans, patients, strict=True)]


def _scan(number: int, row: Row, folder: Path) -> OwnScan:
    text = row.text("scan")
    path = folder / text
    if not text or not path.exists():
        raise row.wrong(f"there is no scan {text}" if text else "scan is empty")
    if path.is_file() and not path.name.lower().endswith(IMAGE_SUFFIXES) and may_be_dicom(path):
        raise row.wrong(f"{text} is one file of a DICOM series: give the folder of the series")
    split = row.text("split").lower()
    if split not in ("", *SPLITS):
        raise row.wrong(f"the split is {split}, not {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    tag = patient_id(path) if path.is_dir() and not row.text("patient") else ""
    return OwnScan(
        f"{number:04}-{path.name.split('.')[0]}",
        path,
        int(row.flag("label")),
        row.text("patient") or tag or Path(text).as_posix(),
        split,
        row.text("centre"),
        row.whole_number("co_rads", 0, 6),
        bool(tag),
    )


def split_scans(scans: Sequence[OwnScan]) -> Split[OwnScan]:
    """By the table's splits, or by patients where it names none.

    Raises:
        InputError: one scan is there twice, in two parts.
    """
    if not any(scan.split for scan in scans):
        scans = _divide(scans)
    _require_apart(scans)
    of = {split: [scan for scan in scans if scan.split == split] for split in SPLITS}
    return Split(of[TRAIN], of[VALIDATION], of[TEST])


def _require_apart(scans: Sequence[OwnScan]) -> None:
    """Raise InputError if a copy of a scan stands in another part than the scan: files of two names may be alike."""
    sizes = Counter(scan.size for scan in scans)
    first: dict[str, OwnScan] = {}
    for scan in (s for s in scans if sizes[s.size] > 1):  # others need not be read to be told apart
        other = first.setdefault(scan.content, scan)
        if other.split != scan.split:
            raise InputError(
                f"{readable(other.path.name)} and {readable(scan.path.name)} are the same scan, one for {other.split} "
                f"and one for {scan.split}.",
                "Remove one of them, or give both the same patient.",
            )


def table_fingerprint(path: Path) -> str:
    """Tells apart states of a table and of its scans."""
    digests = [fingerprint(path), *(scan.digest for scan in read_scan_table(path))]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]


def _divide(scans: Sequence[OwnScan]) -> list[OwnScan]:
    """About 3 : 1 : 1, by a number that a patient keeps when others join the table: no test case is ever learned.

    Also not when one joins who is the same in another case of letters.
    """
    of_remainder = (TRAIN, TRAIN, TRAIN, VALIDATION, TEST)

    def split_of(patient: str) -> str:
        digest = hashlib.sha256(patient.casefold().encode(errors="replace")).hexdigest()
        return of_remainder[int(digest, 16) % len(of_remainder)]

    return [replace(scan, split=split_of(scan.patient)) for scan in scans]
