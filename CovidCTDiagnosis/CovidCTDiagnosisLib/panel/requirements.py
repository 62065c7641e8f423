"""Before the first analysis: the packages that it needs, and the terms of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from CovidCTDiagnosisLib.errors import UsageError

TORCH = "torch"
IMPORTED_AS = {"SimpleITK": "SimpleITK", "scikit-image": "skimage", "Pillow": "PIL"}
"""Where a package is imported by another name than its own."""

TERMS_KEY = "CovidCTDiagnosis/TermsAccepted"


class User(Protocol):
    """Whoever sits before the screen, or an option that answers for them."""

    def agrees(self, question: str) -> bool:
        """The answer to a question."""


class Installer(Protocol):
    """Puts packages into Slicer's Python."""

    def install(self, requirements: Sequence[str]) -> None:
        """Install packages; torch is never among them."""

    def install_torch(self) -> None:
        """Install PyTorch as Slicer's extension for it does."""


def missing_packages(requirements: Path, known: Callable[[str], Any] = find_spec) -> list[str]:
    """Lines of a requirements file whose package cannot be imported."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and known(_module(line)) is None]


def _module(requirement: str) -> str:
    name = requirement.split(">")[0].split("=")[0].split("[")[0].strip()
    return IMPORTED_AS.get(name, name)


def ensure_packages(requirements: Path, user: User, installer: Installer) -> None:
    """Install what is missing, if the user agrees.

    Raises:
        UsageError: the user does not, or a package is still missing afterwards.
    """
    missing = missing_packages(requirements)
    if not missing:
        return
    listed = ", ".join(missing)
    if not user.agrees(
        f"The analysis needs Python packages that are not installed yet: {listed}. Install them now? They are "
        "downloaded from the internet (PyTorch is several hundred megabytes)."
    ):
        raise UsageError(f"These packages are not installed: {listed}.", "Install them, or agree when you are asked.")
    if any(_module(line) == TORCH for line in missing):
        installer.install_torch()
    rest = [line for line in missing if _module(line) != TORCH]
    if rest:
        installer.install(rest)
    still = missing_packages(requirements)
    if still:
        raise UsageError(
            f"These packages could not be installed: {', '.join(still)}.", "Look at Slicer's error log, then try again."
        )


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
    if not user.agrees(f"{text}\nDo you accept these terms?"):
        raise UsageError("The terms of the weights are not accepted.", "Accept them to analyze a CT.")
    settings.setValue(TERMS_KEY, text)
