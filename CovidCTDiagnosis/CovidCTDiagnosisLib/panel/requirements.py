"""Before the first analysis: the packages that it needs, and the terms of the weights; and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib import invalidate_caches
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, Protocol

from CovidCTDiagnosisLib.errors import UsageError
from CovidCTDiagnosisLib.folders import cache_folder
from CovidCTDiagnosisLib.panel.translation import _

TORCH = "torch"
IMPORTED_AS = {"SimpleITK": "SimpleITK", "scikit-image": "skimage", "Pillow": "PIL"}
"""Where a package is imported by another name than its own."""

CACHED = ("samples", "bundles")
"""Our folders in the cache, which may hold other things of the user's."""

TERMS_KEY = "CovidCTDiagnosis/TermsAccepted"
INSTALLED_KEY = "CovidCTDiagnosis/Installed"
"""Packages that were installed for us, in Slicer's settings, with commas between them."""


class User(Protocol):
    """Whoever sits before the screen, or an option that answers for them."""

    def agrees(self, question: str) -> bool:
        """The answer to a question."""


class Installer(Protocol):
    """Puts packages into Slicer's Python.

    Attributes:
        source: where they come from, in words.
    """

    source: str

    def install(self, requirements: Sequence[str]) -> None:
        """Install packages; torch as Slicer's extension for it does, unless it comes from a folder, too."""

    def uninstall(self, packages: Sequence[str]) -> None:
        """Remove packages."""


def missing_packages(requirements: Path, known: Callable[[str], Any] = find_spec) -> list[str]:
    """Lines of a requirements file whose package cannot be imported."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and known(_module(line)) is None]


def package_name(requirement: str) -> str:
    """Of a line of a requirements file."""
    return requirement.split(">")[0].split("=")[0].split("[")[0].strip()


def _module(requirement: str) -> str:
    name = package_name(requirement)
    return IMPORTED_AS.get(name, name)


def ensure_packages(requirements: Path, settings: Any, user: User, installer: Installer) -> None:
    """Install what is missing, if the user agrees, and note it for ``remove_downloads``.

    Raises:
        UsageError: the user does not, or a package is still missing afterwards.
    """
    missing = missing_packages(requirements)
    if not missing:
        return
    listed = ", ".join(missing)
    question = _(
        "The analysis needs Python packages that are not installed yet: {packages}. Install them now? They come from "
        "{source} (PyTorch is several hundred megabytes)."
    )
    if not user.agrees(question.format(packages=listed, source=installer.source)):
        raise UsageError(f"These packages are not installed: {listed}.", "Install them, or agree when you are asked.")
    reason, before = "", _distributions()
    try:
        installer.install(missing)
    except UsageError:
        raise
    except Exception as error:  # PyTorch's installer imports it at once, and so may raise anything
        reason = f" ({error})"
    still = missing_packages(requirements)
    wanted = [package_name(line) for line in missing if line not in still]
    # And what these, or Slicer's installer of PyTorch, brought with them.
    _note(settings, [*wanted, *sorted(_distributions() - before - {name.lower() for name in wanted})])
    if still:
        raise UsageError(
            f"These packages could not be installed: {', '.join(still)}{reason}.",
            "Look at Slicer's error log, then try again; without internet, choose a folder of packages under Advanced.",
        )


def _distributions() -> set[str]:
    """Names of all Python packages that are installed, in small letters."""
    invalidate_caches()
    return {str(found.metadata["Name"]).lower() for found in distributions()}


def _note(settings: Any, packages: Sequence[str]) -> None:
    settings.setValue(INSTALLED_KEY, ",".join(dict.fromkeys([*_installed(settings), *packages])))


def _installed(settings: Any) -> list[str]:
    return [name for name in str(settings.value(INSTALLED_KEY) or "").split(",") if name]


def remove_downloads(settings: Any, user: User, installer: Installer) -> str:
    """Remove the packages that were installed for us and the samples and weights in the cache, if the user agrees.

    Returns:
        What was done, one sentence.

    Raises:
        UsageError: pip could not remove the packages.
    """
    packages = _installed(settings)
    folders = [folder for folder in (cache_folder() / name for name in CACHED) if folder.is_dir()]
    found = [*packages, *map(str, folders)]
    if not found:
        return _("Nothing was downloaded.")
    listed = ", ".join(found)
    question = _("Remove what was downloaded for CovidCTDiagnosis: {found}? Other extensions may use packages, too.")
    if not user.agrees(question.format(found=listed)):
        return _("Nothing was removed.")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if packages:
        try:
            installer.uninstall(packages)
        except (CalledProcessError, RuntimeError) as error:
            raise UsageError(
                f"These packages could not be removed: {', '.join(packages)} ({error}).",
                "Start Slicer again and remove them before the first analysis.",
            ) from error
        settings.setValue(INSTALLED_KEY, "")
    return _("Removed: {found}. Start Slicer again before the next analysis.").format(found=listed)


def ensure_terms(terms: Path, settings: Any, user: User) -> None:
    """Have the terms of the weights accepted once.

    Args:
        terms: the text.
        settings: Slicer's, with ``value`` and ``setValue``.
        user: is asked.

    Raises:
        UsageError: they are not accepted.
    """
    text = terms.read_text(encoding="utf-8")
    if settings.value(TERMS_KEY) == text:
        return
    if not user.agrees(text + "\n" + _("Do you accept these terms?")):
        raise UsageError("The terms of the weights are not accepted.", "Accept them to analyze a CT.")
    settings.setValue(TERMS_KEY, text)
