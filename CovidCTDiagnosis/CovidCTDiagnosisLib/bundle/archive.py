"""A bundle that comes as a zip file: unpacked once into the user's cache, and checked there as any other."""

from __future__ import annotations

import hashlib
import lzma
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from CovidCTDiagnosisLib.errors import BundleError
from CovidCTDiagnosisLib.folders import cache_folder, is_left_by_file_manager, replaced_folder

LARGEST_BYTES = 2 << 30
"""Of all files of a bundle together: weights are some ten megabytes."""
_REMEDY = "Get the zip file again."


def unpack_bundle(archive: Path, metadata: str) -> Path:
    """The folder with what a zip file holds; kept under the file's SHA-256, so that it is unpacked only once.

    Args:
        archive: the zip file; the bundle lies at its top or in a folder of its own.
        metadata: path of the file by which a bundle is known.

    Raises:
        BundleError: it is no zip file, is damaged, holds no bundle or names files outside of it.
        ResourceError, UsageError: it cannot be unpacked; see ``replaced_folder``.
    """
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = cache_folder() / "bundles" / digest[:32]
    try:
        with zipfile.ZipFile(archive) as opened:
            top = _top(opened, archive, metadata)
            if not _is_there(opened, top, folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with replaced_folder(folder) as partial:
                    _extract(opened, top, partial)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{archive} is no zip file that can be read ({error}).", _REMEDY) from error
    return folder


def _top(opened: zipfile.ZipFile, archive: Path, metadata: str) -> PurePosixPath:
    """The folder in the zip file that holds the bundle."""
    found = [PurePosixPath(name) for name in opened.namelist()]
    tops = [path.parents[1] for path in found if "/".join(path.parts[-2:]) == metadata]
    if len(tops) != 1:
        raise BundleError(f"{archive} holds {len(tops) or 'no'} bundle{'s' * (len(tops) > 1)}.", "Choose another file.")
    # Windows knows two more ways out: drives and its own separator.
    if any(path.is_absolute() or ".." in path.parts or set(":\\") & set(str(path)) for path in found):
        raise BundleError(f"{archive} names files outside of itself.", "Do not use it.")
    if sum(member.file_size for member in opened.infolist()) > LARGEST_BYTES:
        raise BundleError(f"{archive} would take more than {LARGEST_BYTES >> 30} GB.", "Choose another file.")
    return tops[0]


def _files(opened: zipfile.ZipFile, top: PurePosixPath) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """What the bundle's folder will hold."""
    found = [(PurePosixPath(m.filename), m) for m in opened.infolist() if not m.is_dir()]
    members = [(path, member) for path, member in found if not any(map(is_left_by_file_manager, path.parts))]
    return {path.relative_to(top): member for path, member in members if path.is_relative_to(top)}


def _is_there(opened: zipfile.ZipFile, top: PurePosixPath, folder: Path) -> bool:
    """Whether all files were unpacked before and are still as they were."""
    for name, member in _files(opened, top).items():
        path = folder / name
        if not path.is_file() or zlib.crc32(path.read_bytes()) != member.CRC:
            return False
    return True


def _extract(opened: zipfile.ZipFile, top: PurePosixPath, folder: Path) -> None:
    for name, member in _files(opened, top).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(opened.read(member))
