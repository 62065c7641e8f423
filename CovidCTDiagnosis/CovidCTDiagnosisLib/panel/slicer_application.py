"""Slicer itself behind the seams that the panel has for it: its Python, its dialogs, its package installation."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import slicer

from CovidCTDiagnosisLib.errors import UsageError
from CovidCTDiagnosisLib.panel.child_process import Child, CommandLine
from CovidCTDiagnosisLib.panel.requirements import TORCH, package_name
from CovidCTDiagnosisLib.panel.translation import _


def launch(arguments: Sequence[str]) -> Child:
    """Start the command line with Slicer's own Python."""
    return CommandLine(arguments, shutil.which("PythonSlicer") or sys.executable)


def slice_logics() -> Iterable[slicer.vtkMRMLSliceLogic]:
    """Of all slice views."""
    found = slicer.app.applicationLogic().GetSliceLogics()
    return [found.GetItemAsObject(index) for index in range(found.GetNumberOfItems())]


def load_terminology(path: Path) -> None:
    """Make the terms of our segments known where Slicer has its module for them."""
    terminologies = getattr(slicer.modules, "terminologies", None)
    if terminologies is not None:
        terminologies.logic().LoadTerminologyFromFile(str(path))


class SlicerUser:
    """Asks in a window; without one, and in Slicer's self-tests, nobody agrees unless that was said before.

    Args:
        accepts: the answer where nobody is there.
    """

    def __init__(self, accepts: bool = False) -> None:
        self._accepts = accepts

    def agrees(self, question: str) -> bool:
        """See ``User``."""
        if slicer.util.mainWindow() is None or slicer.app.testingEnabled():
            return self._accepts
        return slicer.util.confirmOkCancelDisplay(question, windowTitle="CovidCTDiagnosis")


class SlicerInstaller:
    """Installs into Slicer's Python.

    Args:
        wheels: a folder with the packages, for a computer without internet; None: the package index.
    """

    def __init__(self, wheels: Path | None = None) -> None:
        self._wheels = wheels
        self.source = _("the internet") if wheels is None else str(wheels)

    def install(self, requirements: Sequence[str]) -> None:
        """See ``Installer``."""
        rest = list(requirements)
        if self._wheels is None:
            torch = [line for line in rest if package_name(line) == TORCH]
            if torch:
                _torch_logic().installTorch(askConfirmation=False)
            rest = [line for line in rest if line not in torch]
        else:
            rest = ["--no-index", "--find-links", str(self._wheels), *rest]
        if rest:
            slicer.util.pip_install(rest)

    def uninstall(self, packages: Sequence[str]) -> None:
        """See ``Installer``."""
        slicer.util.pip_uninstall(list(packages))


def _torch_logic() -> Any:
    try:
        import PyTorchUtils
    except ImportError as error:
        raise UsageError(
            "PyTorch is installed by Slicer's extension PyTorch, which is missing.",
            "Install it in the Extensions Manager and start Slicer again.",
        ) from error
    return PyTorchUtils.PyTorchUtilsLogic()
