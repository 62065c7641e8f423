"""What is said of this computer, and of one that lacks something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from CovidCTDiagnosisLib import computer_check
from CovidCTDiagnosisLib.__main__ import main
from CovidCTDiagnosisLib.computer_check import check_computer


def test_this_computer_will_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computer_check, "NEEDED_MEMORY_GB", 0.1)
    assert main(["check", "--events", "jsonl"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} == {"check"} and all(event["good"] for event in events)
    assert [event["name"] for event in events] == ["Packages", "Graphics card", "Memory", "Weights", "Time", "Disk"]


def test_a_damaged_bundle_has_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--bundle", str(tmp_path)]) == 5
    out = capsys.readouterr().out
    assert "NO  Weights" in out and "is not a bundle" in out


def test_too_little_memory_and_disk_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computer_check, "NEEDED_MEMORY_GB", 1e6)
    monkeypatch.setattr(computer_check, "NEEDED_DISK_GB", 1e6)
    found = {check.name: check for check in check_computer()}
    for name in ("Memory", "Disk"):
        assert not found[name].good and "needed" in found[name].remedy


def test_a_missing_package_is_named_and_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computer_check, "PACKAGES", ("torch", "no_such_package"))
    packages, disk = check_computer()
    assert not packages.good and "no_such_package" in packages.found and packages.remedy and disk.name == "Disk"


@pytest.mark.parametrize("error", [OSError("WinError 126"), ImportError("libcudart.so.12"), RuntimeError()])
def test_a_pytorch_that_cannot_be_loaded_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr("CovidCTDiagnosisLib.pipeline.compute.require_torch", fails)
    packages, disk = check_computer()
    assert not packages.good and "PyTorch cannot be loaded" in packages.found and "again" in packages.remedy
    assert (str(error) or "RuntimeError") in packages.found and disk.name == "Disk"
