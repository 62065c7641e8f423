"""Slicer itself behind the seams that the panel has for it: its Python, its dialogs, its package installation."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import slicer

from CovidCTDiagnosisLib.errors import UsageError
from CovidCTDiagnosisLib.panel.child_process import Child, CommandLine


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
    """Asks in a window; without one nobody agrees, unless that was said before.

    Args:
        accepts: the answer where there is no window.
    """

    def __init__(self, accepts: bool = False) -> None:
        self._accepts = accepts

    def agrees(self, question: str) -> bool:
        """See ``User``."""
        if slicer.util.mainWindow() is None:
            return self._accepts
        return slicer.util.confirmOkCancelDisplay(question, windowTitle="CovidCTDiagnosis")


class SlicerInstaller:
    """Installs into Slicer's Python."""

    def install(self, requirements: Sequence[str]) -> None:
        """See ``Installer``."""
        slicer.util.pip_install(list(requirements))

    def install_torch(self) -> None:
        """See ``Installer``."""
        try:
            import PyTorchUtils
        except ImportError as error:
            raise UsageError(
                "PyTorch is installed by Slicer's extension PyTorch, which is missing.",
                "Install it in the Extensions Manager and start Slicer again.",
            ) from error
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False)
