"""Folders and files that appear on disk whole or not at all; the user's cache."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from CovidCTDiagnosisLib.errors import ResourceError, UsageError

LONGEST_NAME_BYTES = 255
"""Of a file or folder, in all usual file systems."""


def cache_folder() -> Path:
    """What can be had again: COVID_CT_CACHE, or covid-ct in the user's cache folder of this system."""
    if chosen := os.environ.get("COVID_CT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "covid-ct"


_LEFT_BY_FILE_MANAGERS = frozenset({".DS_Store", ".localized", ".directory", "Thumbs.db", "desktop.ini", "__MACOSX"})


def is_left_by_file_manager(name: str) -> bool:
    """Whether a file or folder of this name was not put there by the user: file managers leave them everywhere.

    Not all that is hidden: ``.git`` or ``.ssh`` must never go with a folder that is replaced.
    """
    return name.startswith("._") or name in _LEFT_BY_FILE_MANAGERS


def check_target(folder: Path, marker: str, kind: str, own: Collection[str] | None = None) -> None:
    """Make sure that writing to `folder` destroys nothing but an older folder of the same kind.

    Args:
        folder: absent, empty, or of the same kind.
        marker: the file, relative to the folder, by which its kind is known.
        kind: what to call it in messages, for example "study".
        own: names of all that a folder of this kind holds; None when that is not fixed.

    Raises:
        UsageError: `folder` is a file, holds something else, or cannot be replaced, as a disk is mounted there or the
            program runs in it; or its parent does not exist or cannot be written to.
    """
    require_parent(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder.", f"Choose another folder for the {kind}.")
    if os.path.ismount(folder.resolve()):
        raise UsageError(f"A disk or volume is mounted at {folder}.", "Give a folder inside it.")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder} is the folder that you are in, or above it.", "Give a folder inside it.")
    holds = folder.is_dir() and not all(is_left_by_file_manager(path.name) for path in folder.iterdir())
    if holds and not (folder / marker).is_file():
        raise UsageError(
            f"The folder {folder} is not empty and is not a {kind}.", f"Choose another folder for the {kind}."
        )
    if own is not None and folder.is_dir():
        there = {path.name for path in folder.iterdir() if not is_left_by_file_manager(path.name)}
        strange = sorted(there - set(own))
        if strange:
            raise UsageError(
                f"The folder {folder} also holds {strange[0]}, which is no part of a {kind}.",
                f"Choose another folder for the {kind}.",
            )
    _require_short_name(folder.resolve())
    require_writable(folder.resolve().parent)


def _require_short_name(target: Path) -> None:
    """Raise UsageError if the name leaves no room for those of what takes its place."""
    longest = f"{_replaced_prefix(target)}{uuid4().hex}"
    if len(os.fsencode(longest)) > LONGEST_NAME_BYTES:
        raise UsageError(f"The name {target.name[:40]}... is too long.", "Choose a shorter one.")


def require_parent(path: Path) -> None:
    """Raise UsageError if the folder that a file or folder is to be written into does not exist."""
    if not path.resolve().parent.is_dir():
        raise UsageError(f"The folder {path.parent} does not exist.", "Create it or choose another.")


def require_writable(folder: Path) -> None:
    """Raise UsageError if nothing can be written in the folder, before the long work starts."""
    try:
        # Trying is the only sure way: permission bits say little to root, on Windows and on network drives.
        with tempfile.TemporaryDirectory(prefix=".covid-ct.", dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"Nothing can be written in the folder {folder}.", "Choose another folder.") from error


def is_disk_full(error: OSError) -> bool:
    """Whether a disk is full, or a user's share of it."""
    full = errno.ENOSPC, errno.EDQUOT
    # Where a whole folder is copied, the errors are there as text alone.
    return error.errno in full or (isinstance(error, shutil.Error) and f"[Errno {errno.ENOSPC}]" in str(error))


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a new folder that takes the place of `folder` when the block ends well.

    The block gets an empty folder beside the target, `.<name>.partial-<pid>`. If the block raises, also by
    KeyboardInterrupt, that folder is removed and the target stays as it was.

    Raises:
        ResourceError: the disk is full.
        UsageError: the folder cannot be written for another reason, such as missing permission.
    """
    target = folder.resolve()
    partial = target.with_name(f"{_partial_prefix(target)}{os.getpid()}")
    try:
        with _told_of(folder):
            remove_leftovers(target)
            partial.mkdir()
            yield partial
            _exchange(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there takes the place of `path` when the block ends well.

    If the block raises, also by KeyboardInterrupt, the target stays as it was.

    Raises:
        ResourceError, UsageError: as ``replaced_folder``.
    """
    # Several machines may share the folder, and have processes of the same number.
    partial = path.with_name(f"{_partial_prefix(path)}{uuid4().hex}")
    try:
        with _told_of(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all; raises as ``replaced_file`` does."""
    with replaced_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _told_of(target: Path) -> Iterator[None]:
    """What keeps the target from being written, as errors with a remedy."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise ResourceError(f"The disk is full: {target} was not written.", "Free some space.") from error
        reason = error.strerror or type(error).__name__  # many files' errors together would be many lines
        raise UsageError(f"{target} cannot be written ({reason}).", "Choose another place.") from error


def remove_leftovers(target: Path) -> None:
    """Clear up what killed processes left beside `target`: a killed process cannot clean up after itself.

    What one had just moved out of the way comes back, unless something has taken its place.
    """
    if not target.parent.is_dir():
        return  # as when a drive is gone
    for old in _left_behind(target, _replaced_prefix(target)):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for partial in _left_behind(target, _partial_prefix(target)):
        shutil.rmtree(partial, ignore_errors=True)


def _left_behind(target: Path, prefix: str) -> list[Path]:
    """Paths beside `target` whose name is the prefix and the number of a process that is no more."""
    import psutil

    def is_left(path: Path) -> bool:
        pid = path.name.removeprefix(prefix)
        if not path.name.startswith(prefix) or not pid.isdecimal():
            return False
        # Process numbers come back (in containers always the same few): our own is a leftover, too.
        return int(pid) == os.getpid() or not psutil.pid_exists(int(pid))

    return [path for path in target.parent.iterdir() if is_left(path)]


def _partial_prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _replaced_prefix(target: Path) -> str:
    return f".{target.name}.replaced-"


def _exchange(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, which is kept until then: no system replaces a full folder."""
    if not target.exists():
        new.rename(target)
        return
    old = target.with_name(f"{_replaced_prefix(target)}{os.getpid()}")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
