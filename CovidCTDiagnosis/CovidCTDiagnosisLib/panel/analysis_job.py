"""One analysis of a CT of the scene, by a child process; its study is kept until it is loaded."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import slicer

from CovidCTDiagnosisLib.errors import InputError, ResourceError
from CovidCTDiagnosisLib.folders import remove_leftovers
from CovidCTDiagnosisLib.panel.child_process import Child, Event, Launcher
from CovidCTDiagnosisLib.panel.translation import _
from CovidCTDiagnosisLib.scene.agreement import voxels_state
from CovidCTDiagnosisLib.scene.nodes import is_bent
from CovidCTDiagnosisLib.scene.segmentation import lungs_of

RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"

MOST_BYTES = 80
"""Of a folder's name."""


@dataclass
class Progress:
    """Where an analysis stands.

    Attributes:
        state: ``RUNNING``, ``DONE``, ``FAILED`` or ``CANCELLED``.
        share: of the work done, 0 to 1, never less than before.
        message: what is being done, in plain words.
        remaining_s: about how long it still takes; None until that can be said.
        warnings: of the analysis so far.
        error, remedy: one sentence each, where it failed.
    """

    state: str = RUNNING
    share: float = 0.0
    message: str = ""
    remaining_s: float | None = None
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    remedy: str = ""


class AnalysisJob:
    """Starts at once; ``poll`` until its state is no longer ``RUNNING``, then ``close``.

    Args:
        ct: to be analyzed, on its own grid, without its transform.
        launch: starts the command line.
        options: further arguments of ``covid-ct analyze``.
        lungs: a mask to use, label map or segmentation (see ``scene.segmentation.lungs_of``), or None.
        keep: folder that the study goes to and stays in; None: a temporary one.

    Attributes:
        study: where the study is once the analysis is done; until ``close``, unless it is kept.
        analyzed: which voxels were handed over, for ``put_study``.

    Raises:
        InputError: the CT has no voxels or is bent by its transform; the segmentation holds no lungs, or the label map
            has another transform than the CT.
        ResourceError: the CT cannot be written to the temporary folder.
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        ct: slicer.vtkMRMLScalarVolumeNode,
        launch: Launcher,
        options: tuple[str, ...] = (),
        lungs: slicer.vtkMRMLLabelMapVolumeNode | slicer.vtkMRMLSegmentationNode | None = None,
        keep: Path | None = None,
    ) -> None:
        self.ct = ct
        self.progress = Progress(message=_("Starting"))
        self._folder = Path(tempfile.mkdtemp(prefix="CovidCTDiagnosis-"))
        self.study = self._folder / "study" if keep is None else new_folder(keep, ct.GetName())
        self._begun = time.monotonic()
        self._child: Child | None = None
        try:
            _check(ct)
            # Named as in the scene, in a folder of its own, where no other file can have that name.
            scan = self._folder / "ct" / f"{_file_name(ct.GetName())}.nrrd"
            scan.parent.mkdir()
            _write(ct, scan)
            self.analyzed = voxels_state(ct)
            arguments = ["analyze", str(scan), "--output", str(self.study), "--events", "jsonl"]
            if lungs is not None:
                _write_lungs(lungs, ct, self._folder / "lungs.nrrd")
                arguments += ["--lungs", str(self._folder / "lungs.nrrd")]
            self._child = launch([*arguments, *options])
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        """What the process said."""
        return self._started.log

    @property
    def _started(self) -> Child:
        assert self._child is not None
        return self._child

    def poll(self) -> Progress:
        """Take in what came since the last call."""
        if self.progress.state != RUNNING:
            return self.progress
        code = self._started.exit_code
        for event in self._started.events():
            self._take(event)
        if code is not None:
            self._finish(code)
        return self.progress

    def _take(self, event: Event) -> None:
        if event["event"] == "stage":
            self.progress.share = max(self.progress.share, float(event["progress"]))
            self.progress.message = event["message"]
            self.progress.remaining_s = self._remaining_s()
        elif event["event"] == "warning":
            self.progress.warnings.append(event["message"])
        elif event["event"] == "error":
            self.progress.error, self.progress.remedy = event["message"], event["remedy"]

    def _remaining_s(self) -> float | None:
        """From what is done; the start, when libraries are loaded, says little."""
        if self.progress.share < 0.1:
            return None
        return (time.monotonic() - self._begun) * (1 - self.progress.share) / self.progress.share

    def _finish(self, code: int) -> None:
        if code == 0:
            self.progress.state, self.progress.share = DONE, 1.0
            return
        self.progress.state = FAILED
        if not self.progress.error:
            self.progress.error = _("The analysis stopped unexpectedly (exit code {code}).").format(code=code)
            self.progress.remedy = _("Look at the log and report it.")

    def cancel(self) -> None:
        """End the process and everything that it started; nothing is left behind."""
        self.progress.state = CANCELLED
        self.close()

    def close(self) -> None:
        """Remove the temporary files; a process that still runs ends."""
        try:
            if self._child is not None and self._child.exit_code is None:
                self._child.kill()
                # It may have had no time to clear up.
                remove_leftovers(self.study)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def new_folder(parent: Path, title: str) -> Path:
    """A folder that is not there yet, called after a node: names of scans need not differ, and no study is lost."""
    name = _file_name(title)
    names = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
    return next(parent / n for n in names if not (parent / n).exists())


def _file_name(title: str) -> str:
    """A node's name in characters that every file system takes, not too many bytes of them."""
    plain = "".join(c if c.isalnum() or c in "-_ " else "_" for c in title)
    return plain.encode()[:MOST_BYTES].decode(errors="ignore").strip() or "CT"


def _check(ct: slicer.vtkMRMLScalarVolumeNode) -> None:
    if ct.GetImageData() is None:
        raise InputError(f"{ct.GetName()} holds no image.", "Load it again.")
    if is_bent(ct):
        raise InputError(
            f"A transform bends {ct.GetName()}: irregular slices, a tilted gantry, or a registration.",
            "Harden the transform where it corrects the slices (module Transforms), else take the CT out of it.",
        )


def _write_lungs(
    lungs: slicer.vtkMRMLLabelMapVolumeNode | slicer.vtkMRMLSegmentationNode,
    ct: slicer.vtkMRMLScalarVolumeNode,
    path: Path,
) -> None:
    if lungs.IsA("vtkMRMLSegmentationNode"):
        with lungs_of(lungs, ct) as labels:
            _write(labels, path)
        return
    if lungs.GetTransformNodeID() != ct.GetTransformNodeID():
        raise InputError(
            f"{lungs.GetName()} and {ct.GetName()} have different transforms.",
            "Harden the transform of the lung mask, or give both the same.",
        )
    _write(lungs, path)


def _write(node: slicer.vtkMRMLVolumeNode, path: Path) -> None:
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(False)
    if not storage.WriteData(node):
        raise ResourceError(f"{node.GetName()} cannot be written to {path.parent}.", "Free some space on the disk.")
