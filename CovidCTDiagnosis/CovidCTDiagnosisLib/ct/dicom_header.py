"""Headers and pixels of single DICOM images, and the files that may hold them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import CovidCTError, InputError
from .files import compact, files_below, head_of, itk_name, quiet, unreadable

_CT_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.\d+)*")
"""CT images, also enhanced and legacy converted ones, and not protocols (``…1.1.200``)."""
_COMPRESSED, _READ_COMPRESSED = b"1.2.840.10008.1.2.4.", (b"50", b"51", b"57", b"70", b"80", b"81", b"90", b"91")
"""JPEG and what came after it: the transfer syntaxes, and those that can be read."""
_CHARACTER_SETS = {
    "ISO_IR 100": "latin-1",
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 127": "iso8859-6",
    "ISO_IR 126": "iso8859-7",
    "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 166": "tis-620",
    "ISO_IR 203": "iso8859-15",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
"""By DICOM's names (PS3.3, C.12.1.1.2)."""
_PATIENT_ID = "0010|0020"
_ENDS, _END_OF_IMAGE = (b"\xfe\xff\xdd\xe0", b"\xfc\xff\xfc\xff"), b"\xff\xd9"
"""After the last fragment of compressed pixels (PS3.5, A.4), or before padding; and the end of a JPEG image."""
_NOTHING_BYTES = 64


def may_be_dicom(path: Path) -> bool:
    """By its mark at byte 128; old files lack it and start with group 8."""
    head = head_of(path)
    return head[128:132] == b"DICM" or head[:2] == b"\x08\x00"


@dataclass(frozen=True)
class SliceHeader:
    """One image's header, as far as reading needs it, in mm and LPS; None where it says nothing."""

    path: Path
    uid: str
    series_uid: str
    series_number: str
    acquisition: str
    modality: str
    description: str
    body_part: str
    localizer: bool
    size: tuple[int, ...]
    samples: int
    pixel_spacing: np.ndarray | None  # between rows, between columns
    position: np.ndarray | None
    orientation: np.ndarray | None  # along a row, then along a column
    rescaled: bool  # whether it says how stored values become HU

    @property
    def key(self) -> tuple[str, bytes]:
        """The same for copies of an image: anonymisers have given one UID to images of several places."""
        return self.uid, b"" if self.position is None else self.position.tobytes()

    @property
    def normal(self) -> np.ndarray:
        """Across the slice, which must have an orientation."""
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])


def read_header(path: Path) -> SliceHeader | None:
    """The header of a DICOM image; None for DICOM without an image (a directory, a report, ...).

    Raises:
        InputError: the file is a CT image, or does not say what it is, and cannot be read.
    """
    reader = _dicom_reader(path)
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        head = head_of(path)
        if head[128:132] != b"DICM" or _is_other_object(head):
            return None
        raise _unreadable_image(path, error) from error
    if _breaks_off(path):
        if _is_other_object(head_of(path)):
            return None
        raise unreadable(path.name)
    keys = set(reader.GetMetaDataKeys())

    def raw(key: str) -> str:
        return reader.GetMetaData(key) if key in keys else ""

    def text(key: str) -> str:
        value = _decoded(raw(key), raw("0008|0005"))
        return "".join(c if c.isprintable() else "?" for c in value.replace("\0", "")).strip()

    return SliceHeader(
        path=path,
        uid=text("0008|0018") or str(path),
        series_uid=text("0020|000e"),
        series_number=text("0020|0011"),
        acquisition=text("0020|0012"),
        modality=text("0008|0060"),
        description=text("0008|103e"),
        body_part=text("0018|0015"),
        localizer="LOCALIZER" in text("0008|0008").upper(),
        size=reader.GetSize(),
        samples=reader.GetNumberOfComponents(),
        pixel_spacing=_vector(text("0028|0030"), 2),
        position=_vector(text("0020|0032"), 3),
        orientation=_vector(text("0020|0037"), 6),
        rescaled="0028|1052" in keys,
    )


def patient_id(folder: Path) -> str:
    """PatientID of a folder's first DICOM image, empty where there is none; it must not leave this machine.

    A CD's directory, reports and other files without an image are passed over.
    """
    patients = (_patient_of(path) for path in files_below(folder) if may_be_dicom(path))
    return next((patient for patient in patients if patient is not None), "")


def _patient_of(path: Path) -> str | None:
    """None where there is no image."""
    reader = _dicom_reader(path)
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader.GetMetaData(_PATIENT_ID).strip() if _PATIENT_ID in reader.GetMetaDataKeys() else ""


def read_pixels(path: Path) -> np.ndarray:
    """One slice in HU (J, I): stored values times slope plus intercept, int16 or float32.

    Raises:
        InputError: its image is damaged, or packed in a way that is not read.
        ResourceError: there is not enough memory.
    """
    try:
        with quiet():
            image = _dicom_reader(path).Execute()
    except RuntimeError as error:
        raise _unreadable_image(path, error) from error
    return compact(sitk.GetArrayFromImage(image)[0])


def _dicom_reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(path))
    return reader


def _is_other_object(head: bytes) -> bool:
    """Whether the file meta information names a class of objects other than CT images."""
    found = re.search(rb"\x02\x00\x02\x00UI..([\d.]+)", head, re.DOTALL)
    return found is not None and not _CT_STORAGE.fullmatch(found[1].rstrip(b"."))


def _unreadable_image(path: Path, error: RuntimeError) -> CovidCTError:
    """The error for an image that is damaged, or compressed in a way that ITK's reader does not know."""
    syntax = _compressed_by(path)
    if syntax and syntax.removeprefix(_COMPRESSED) not in _READ_COMPRESSED:
        return InputError(
            f"{path.name} is compressed in a way that cannot be read ({syntax.decode()}).",
            "Export the series again without compression.",
        )
    return unreadable(path.name, error)


def _compressed_by(path: Path) -> bytes:
    """The transfer syntax of an image that is compressed as JPEG or later, else empty."""
    found = re.search(rb"\x02\x00\x10\x00UI..([\d.]+)", head_of(path), re.DOTALL)
    return found[1] if found and found[1].startswith(_COMPRESSED) else b""


def _breaks_off(path: Path) -> bool:
    """Whether a compressed image ends in nothing, as a copy that was stopped leaves it: ITK reads some of these."""
    if not _compressed_by(path):
        return False
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _NOTHING_BYTES, 0))
        if any(file.read()):
            return False
    content = path.read_bytes()
    return not content.rstrip(b"\0").endswith(_END_OF_IMAGE) and not any(end in content for end in _ENDS)


def _decoded(value: str, character_sets: str) -> str:
    """A header's text as it was meant: what is no UTF-8 arrives as lone bytes.

    Args:
        value: of the header.
        character_sets: Specific Character Set; Latin-1 is taken where it is missing, as it is the usual one.
    """
    content = value.encode("utf-8", "surrogateescape")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        declared = character_sets.split("\\")[0].strip().replace("ISO 2022 IR", "ISO_IR")
        text = content.decode(_CHARACTER_SETS.get(declared, "latin-1"), "replace")
    return unicodedata.normalize("NFC", text)


def _vector(text: str, length: int) -> np.ndarray | None:
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return values if len(values) == length and np.isfinite(values).all() else None
