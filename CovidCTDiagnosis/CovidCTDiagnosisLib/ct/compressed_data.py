"""Whether compressed voxels of NRRD and MetaImage files are whole: ITK's readers take what they get."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from .files import unreadable
from .text_header import TextHeader, files_of, read_text_header

_CHUNK_BYTES = 1 << 20
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
    header = read_text_header(path)
    found = _of_nrrd(path, header) if header.is_nrrd else _of_meta_image(path, header)
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


def _of_nrrd(path: Path, header: TextHeader) -> _Data | None:
    """Gzip-compressed voxels; None where they are not, or begin elsewhere."""
    fields = header.fields
    if fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return None
    if any(fields.get(skip, "0") != "0" for skip in ("lineskip", "byteskip")):
        return None
    width = next((size for names, size in _NRRD_BYTES if re.fullmatch(names, fields.get("type", "").lower())), None)
    return _place(path, header, _size(width, fields.get("sizes", "")))


def _of_meta_image(path: Path, header: TextHeader) -> _Data | None:
    """The same of a MetaImage file."""
    fields = header.fields
    if fields.get("CompressedData", "").lower() != "true" or fields.get("HeaderSize", "0") not in ("0", "-1"):
        return None
    width = _META_BYTES.get(re.sub(r"^MET_U?", "", fields.get("ElementType", "")))
    channels = fields.get("ElementNumberOfChannels", "1")
    size = _size(width, f"{channels} {fields.get('DimSize', '')}") if channels.isdecimal() else None
    found = _place(path, header, size)
    if found is None:
        return None
    most = fields.get("CompressedDataSize", "" if header.data else "0")
    return found._replace(most=int(most)) if most.isdecimal() else found


def _size(width: int | None, counts: str) -> int | None:
    numbers = [int(number) for number in re.findall(r"\d+", counts)]
    return width * math.prod(numbers) if width and numbers else None


def _place(path: Path, header: TextHeader, size: int | None) -> _Data | None:
    if not header.data:
        return None if header.end is None else _Data(path, header.end, size)
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
