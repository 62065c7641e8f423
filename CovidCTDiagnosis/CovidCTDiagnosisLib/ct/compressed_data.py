"""Whether compressed voxels of NRRD and MetaImage files are whole: ITK's readers take what they get."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from .files import files_of, head_of, unreadable

_HEADER_BYTES, _CHUNK_BYTES = 1 << 16, 1 << 20
_AUTO, _GZIP = 47, b"\x1f\x8b"
"""zlib or gzip, as the stream begins; of gzip several may follow one another."""
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_NRRD_BYTES = (
    (r"(u?int8(_t)?|((un)?signed )?char|uchar)", 1),
    (r"(u?int16(_t)?|((un)?signed )?short( int)?|ushort)", 2),
    (r"(u?int32(_t)?|((un)?signed )?int|uint|float)", 4),
    (r"(u?int64(_t)?|u?longlong|((un)?signed )?long long( int)?|double)", 8),
)


def require_sound_data(path: Path) -> None:
    """Look through compressed voxels to their end, where the checksum is.

    Raises:
        InputError: they are damaged, or not as many as the header says.
    """
    header = head_of(path, _HEADER_BYTES)
    found = _of_nrrd(path, header) if header.startswith(b"NRRD") else _of_meta_image(path, header)
    if found is None:
        return
    try:
        length = _inflated(found.file, found.offset, found.most)
    except (OSError, zlib.error) as error:
        raise unreadable(path.name) from error
    if length is None or (found.size is not None and length != found.size):
        raise unreadable(path.name)


class _Data(NamedTuple):
    """Where compressed voxels lie.

    Attributes:
        file, offset: where they begin.
        size: bytes that they have uncompressed; None where that is not known.
        most: compressed bytes that a reader takes; None for all.
    """

    file: Path
    offset: int
    size: int | None
    most: int | None = None


def _of_nrrd(path: Path, header: bytes) -> _Data | None:
    """Gzip-compressed voxels; None where they are not, or begin elsewhere."""
    end = re.search(rb"\r?\n\r?\n", header)
    text = (header[: end.start()] if end else header).decode("utf-8", "replace").replace("\r\n", "\n")
    fields = {key.lower(): value.strip() for key, value in re.findall(r"^([^:#\n]+):(?!=)(.*)$", text, re.MULTILINE)}
    if fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return None
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "lineskip", "byte skip", "byteskip")):
        return None
    width = next((size for names, size in _NRRD_BYTES if re.fullmatch(names, fields.get("type", "").lower())), None)
    counts = [int(n) for n in re.findall(r"\d+", fields.get("sizes", ""))]
    size = width * math.prod(counts) if width and counts else None
    return _place(path, end.end() if end else None, size, detached="data file" in fields or "datafile" in fields)


def _of_meta_image(path: Path, header: bytes) -> _Data | None:
    """The same of a MetaImage file."""
    end = re.search(rb"^\s*ElementDataFile\s*=\s*(.*?)\s*?\n", header, re.MULTILINE)
    if end is None:
        return None
    text = header[: end.start()].decode("utf-8", "replace")
    fields = {key.lower(): value.strip() for key, value in re.findall(r"^\s*(\w+)\s*=(.*)$", text, re.MULTILINE)}
    if fields.get("compresseddata", "").lower() != "true":
        return None
    width = _META_BYTES.get(re.sub(r"^MET_U?", "", fields.get("elementtype", "")))
    counts = [int(n) for n in re.findall(r"\d+", fields.get("dimsize", ""))]
    channels = fields.get("elementnumberofchannels", "1")
    size = width * int(channels) * math.prod(counts) if width and counts and channels.isdecimal() else None
    if fields.get("headersize", "0") not in ("0", "-1"):
        return None  # they begin elsewhere
    most = fields.get("compresseddatasize", "")
    if end[1] == b"LOCAL":
        return _Data(path, end.end(), size, int(most) if most.isdecimal() else 0)
    found = _place(path, end.end(), size, detached=True)
    return found._replace(most=int(most)) if found and most.isdecimal() else found


def _place(path: Path, offset: int | None, size: int | None, detached: bool) -> _Data | None:
    if not detached:
        return None if offset is None else _Data(path, offset, size)
    others = [file for file in files_of(path) if file != path]
    return _Data(others[0], 0, size) if len(others) == 1 else None


def _inflated(file: Path, offset: int, most: int | None) -> int | None:
    """How many bytes the stream holds, of all its members; None where it ends too early."""
    stream, length = zlib.decompressobj(_AUTO), 0
    with file.open("rb") as source:
        source.seek(offset)
        left = file.stat().st_size if most is None else most
        while chunk := source.read(min(_CHUNK_BYTES, left)):
            left -= len(chunk)
            length += len(stream.decompress(chunk))
            while stream.eof and stream.unused_data.startswith(_GZIP):
                rest, stream = stream.unused_data, zlib.decompressobj(_AUTO)
                length += len(stream.decompress(rest))
            if stream.eof:
                break
    return length if stream.eof else None
