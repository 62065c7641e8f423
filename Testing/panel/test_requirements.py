"""Packages are installed after a question, noted, and removed again; never by themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
from CovidCTDiagnosisLib.errors import InputError, UsageError
from CovidCTDiagnosisLib.panel import requirements as module
from CovidCTDiagnosisLib.panel.analysis_job import new_folder
from CovidCTDiagnosisLib.panel.child_process import CommandLine


class Settings(dict[str, str]):
    def value(self, key: str) -> str | None:
        return self.get(key)

    def setValue(self, key: str, value: str) -> None:
        self[key] = value


class User:
    def __init__(self, answer: bool) -> None:
        self.answer, self.asked = answer, []  # type: ignore[var-annotated]

    def agrees(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer


class Installer:
    """Packages that can be imported once they are installed."""

    source = "a folder"

    def __init__(self, fails: Exception | None = None) -> None:
        self.installed: list[str] = ["numpy"]
        self.fails = fails

    def install(self, requirements: Sequence[str]) -> None:
        if self.fails:
            raise self.fails
        self.installed += [module._module(line) for line in requirements]

    def uninstall(self, packages: Sequence[str]) -> None:
        self.installed = [name for name in self.installed if name not in [module._module(p) for p in packages]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Never the user's own."""
    monkeypatch.setenv("COVID_CT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text("numpy\nscikit-image>=0.22  # masks\ntorch>=2.2\n", encoding="utf-8")
    return path


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> Installer:
    made = Installer()
    missing = module.missing_packages
    known = lambda name: name if name in made.installed else None  # noqa: E731
    monkeypatch.setattr(module, "missing_packages", lambda path: missing(path, known))
    return made


def test_what_is_missing_is_installed_after_a_question(lines: Path, installer: Installer) -> None:
    user, settings = User(True), Settings()
    module.ensure_packages(lines, settings, user, installer)
    assert installer.installed == ["numpy", "skimage", "torch"]
    (question,) = user.asked
    assert "scikit-image>=0.22, torch>=2.2" in question and "a folder" in question and "numpy" not in question
    module.ensure_packages(lines, settings, user, installer)
    assert len(user.asked) == 1


def test_who_does_not_agree_gets_nothing(lines: Path, installer: Installer) -> None:
    with pytest.raises(UsageError, match="not installed: scikit-image"):
        module.ensure_packages(lines, Settings(), User(False), installer)
    assert installer.installed == ["numpy"]


@pytest.mark.parametrize("error", [CalledProcessError(1, "pip"), RuntimeError("no network"), ImportError("torch")])
def test_an_installation_that_fails_is_said_with_its_remedy(
    lines: Path, installer: Installer, error: Exception
) -> None:
    installer.fails = error
    settings = Settings()
    with pytest.raises(UsageError, match="could not be installed") as raised:
        module.ensure_packages(lines, settings, User(True), installer)
    assert "folder of packages" in raised.value.remedy and not settings[module.INSTALLED_KEY]


def test_only_what_was_installed_for_us_is_removed(lines: Path, installer: Installer, cache: Path) -> None:
    settings: Any = Settings()
    assert module.remove_downloads(settings, User(True), installer) == "Nothing was downloaded."
    module.ensure_packages(lines, settings, User(True), installer)
    (cache / "samples").mkdir(parents=True)
    (cache / "mine").mkdir()
    assert module.remove_downloads(settings, User(False), installer) == "Nothing was removed."
    assert "torch" in installer.installed and cache.is_dir()
    user = User(True)
    told = module.remove_downloads(settings, user, installer)
    assert "scikit-image, torch" in told and str(cache / "samples") in told and "Other extensions" in user.asked[0]
    assert installer.installed == ["numpy"] and [path.name for path in cache.iterdir()] == ["mine"]
    assert module.remove_downloads(settings, user, installer) == "Nothing was downloaded."


def test_packages_that_cannot_be_removed_stay_noted(installer: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(packages: Sequence[str]) -> None:
        raise CalledProcessError(1, "pip")

    settings: Any = Settings()
    settings.setValue(module.INSTALLED_KEY, "torch")
    monkeypatch.setattr(installer, "uninstall", fail)
    with pytest.raises(UsageError, match="could not be removed: torch"):
        module.remove_downloads(settings, User(True), installer)
    assert settings[module.INSTALLED_KEY] == "torch"


def test_terms_are_accepted_once(tmp_path: Path) -> None:
    terms, settings, user = tmp_path / "LICENSE", Settings(), User(False)
    terms.write_text("For research.", encoding="utf-8")
    with pytest.raises(UsageError, match="not accepted"):
        module.ensure_terms(terms, settings, user)
    user.answer = True
    module.ensure_terms(terms, settings, user)
    module.ensure_terms(terms, settings, user)
    assert len(user.asked) == 2 and "For research." in user.asked[0]
    terms.write_text("Other terms.", encoding="utf-8")
    module.ensure_terms(terms, settings, user)
    assert len(user.asked) == 3


def test_the_command_line_takes_no_modules_from_where_slicer_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jsonschema.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    child = CommandLine(["analyze", str(tmp_path / "none.nii"), "--output", str(tmp_path / "study")])
    deadline = time.monotonic() + 60
    while child.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert child.exit_code == InputError.code, child.log


def test_folders_are_called_in_no_more_bytes_than_file_systems_take(tmp_path: Path) -> None:
    assert len(new_folder(tmp_path, "肺" * 200).name.encode()) <= 80
    assert new_folder(tmp_path, "Anna/CT").name == "Anna_CT"
