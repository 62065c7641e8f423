"""Headers of NRRD and MetaImage files: lines of text, before the voxels or in a file of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .files import head_of

_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_MOST_BYTES = 1 << 20
"""A header may list a file for each slice."""


class TextHeader(NamedTuple):
    """What such a header states.

    Attributes:
        is_nrrd: whether it is NRRD, not MetaImage.
        fields: values by name; NRRD's names in lower case and without blanks, both of which are free there.
        end: byte after it, where voxels begin if they are in the same file; None where it has no end.
        data: names of the files that hold the voxels, as they stand; none where the same file does.
    """

    is_nrrd: bool
    fields: dict[str, str]
    end: int | None
    data: list[str]


def read_text_header(path: Path) -> TextHeader:
    """Read the header of a NRRD or MetaImage file; another file's states nothing.

    Raises:
        InputError: the file cannot be opened.
    """
    head = head_of(path, _MOST_BYTES)
    is_nrrd = head.startswith(b"NRRD")
    end = re.search(rb"\r?\n\r?\n" if is_nrrd else rb"^\s*ElementDataFile\s*=.*(?:\n|\Z)", head, re.MULTILINE)
    text = _text(head[: end.end()] if end else head)
    # NRRD's "name:=value" is a remark of the user's, no field.
    found = re.findall(r"^([^:#\n]+):(?!=)(.*)$" if is_nrrd else r"^\s*(\w+)\s*=(.*)$", text, re.MULTILINE)
    fields = {name.lower().replace(" ", "") if is_nrrd else name: value.strip() for name, value in found}
    data = fields.get("datafile" if is_nrrd else "ElementDataFile", "LOCAL")
    elsewhere = [data] if data not in ("", "LOCAL") else []
    names = _listed(_text(head)) if data.upper().startswith("LIST") else elsewhere
    return TextHeader(is_nrrd, fields, end.end() if end else None, names)


def _listed(text: str) -> list[str]:
    """The lines after the one that announces them; NRRD's begin in the header, MetaImage's after it."""
    found = re.search(r"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*LIST.*\n((?:.*\S.*\n?)*)", text, re.M | re.I)
    return [name.strip() for name in found[1].splitlines()] if found else []


def _text(header: bytes) -> str:
    return header.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def files_of(path: Path) -> list[Path]:
    """A scan's file and those that its header names as holding its voxels, in a fixed order.

    Raises:
        InputError: the file cannot be opened.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return [path]
    data = {file for name in read_text_header(path).data for file in _named(path.parent, name)}
    return [path, *sorted(data - {path})]


def _named(folder: Path, name: str) -> list[Path]:
    """The files that a name stands for: "slice%03d.raw 1 133 1" for all that fit it."""
    if (folder / name).is_file():
        return [folder / name]
    pattern = folder / re.sub(r"%\d*d", "*", name.split(" ")[0])
    return [file for file in pattern.parent.glob(pattern.name) if file.is_file()] if "*" in pattern.name else []
