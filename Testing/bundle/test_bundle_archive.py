"""A bundle in a zip file: the same weights, checked as any, unpacked once."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from CovidCTDiagnosisLib.bundle import open_bundle
from CovidCTDiagnosisLib.errors import BundleError

METADATA = "configs/metadata.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COVID_CT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def zipped(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(top: str = "", damage: str = "", extra: str = "") -> Path:
        path = tmp_path / "bundle.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(tiny_bundle.rglob("*")):
                if file.is_file():
                    name = file.relative_to(tiny_bundle).as_posix()
                    data = file.read_bytes()
                    archive.writestr(top + name, data[:-1] + b"?" if name == damage else data)
            if extra:
                archive.writestr(extra, b"")
        return path

    return make


@pytest.mark.parametrize("top", ["", "covid-ct/", "a/b/"])
def test_a_zip_file_serves_as_the_folder_does(zipped: Callable[..., Path], tiny_bundle: Path, top: str) -> None:
    bundle, folder = open_bundle(zipped(top)), open_bundle(tiny_bundle)
    assert bundle.sha256 == folder.sha256
    assert set(bundle.weights("classifier")) == set(folder.weights("classifier"))


def test_it_is_unpacked_once_and_checked_every_time(zipped: Callable[..., Path], cache: Path) -> None:
    archive = zipped()
    folder = open_bundle(archive).folder
    assert folder.is_relative_to(cache) and open_bundle(archive).folder == folder
    assert len(list((cache / "bundles").iterdir())) == 1
    weights = folder / "models" / "classifier.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(folder)
    assert open_bundle(archive).folder == folder  # mended from the zip file
    open_bundle(folder)
    shutil.rmtree(cache)
    assert open_bundle(archive).folder == folder


def test_damaged_weights_are_refused(zipped: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(zipped(damage="models/lungs.safetensors"))


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "models/../../evil.txt", "C:/evil.txt", "..\\\\evil.txt"])
def test_nothing_leaves_the_folder(zipped: Callable[..., Path], cache: Path, name: str) -> None:
    with pytest.raises(BundleError, match="outside"):
        open_bundle(zipped(extra=name))
    assert not list(cache.rglob("evil.txt")) and not list((cache).rglob("*.safetensors"))


def test_a_file_cut_in_its_middle_is_said(zipped: Callable[..., Path], tiny_bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "deflated"), "zip", tiny_bundle))
    data = bytearray(archive.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    archive.write_bytes(data)
    with pytest.raises(BundleError):
        open_bundle(archive)


def test_a_pickle_in_it_is_refused(zipped: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="pickled"):
        open_bundle(zipped(extra="models/more.pt"))


def test_what_is_no_bundle_is_said(
    zipped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", b"")
    with pytest.raises(BundleError, match="no bundle"):
        open_bundle(other)
    two = tmp_path / "two.zip"
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr(f"a/{METADATA}", b"")
        archive.writestr(f"b/{METADATA}", b"")
    with pytest.raises(BundleError, match="2 bundles"):
        open_bundle(two)
    other.write_bytes(b"PK nothing")
    with pytest.raises(BundleError, match="no zip file"):
        open_bundle(other)
    monkeypatch.setattr("CovidCTDiagnosisLib.bundle.archive.LARGEST_BYTES", 100)
    with pytest.raises(BundleError, match="more than"):
        open_bundle(zipped())


def test_what_file_managers_leave_in_a_zip_file_does_not_matter(zipped: Callable[..., Path], tiny_bundle: Path) -> None:
    for extra in ("__MACOSX/models/._lungs.safetensors", "models/.DS_Store", "models/Thumbs.db"):
        assert open_bundle(zipped(extra=extra)).sha256 == open_bundle(tiny_bundle).sha256
