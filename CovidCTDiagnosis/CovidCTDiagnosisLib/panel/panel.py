"""The panel's behaviour: its buttons, the running analysis, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer

from CovidCTDiagnosisLib.errors import CovidCTError
from CovidCTDiagnosisLib.panel.analysis_job import CANCELLED, DONE, FAILED, RUNNING, AnalysisJob, Progress
from CovidCTDiagnosisLib.panel.child_process import Launcher
from CovidCTDiagnosisLib.panel.computer_view import ComputerView
from CovidCTDiagnosisLib.panel.display import Display, Logics
from CovidCTDiagnosisLib.panel.findings_view import show_findings, slice_index
from CovidCTDiagnosisLib.panel.parameters import (
    EXPLAINED,
    chosen_path,
    computer_choices,
    display_choices,
    note_choices,
)
from CovidCTDiagnosisLib.panel.translation import _
from CovidCTDiagnosisLib.scene.agreement import ABSENT, CHANGED, INCOMPLETE, PRESENT, agreement, present_study
from CovidCTDiagnosisLib.scene.layers import jump_to
from CovidCTDiagnosisLib.scene.nodes import lesion_maps, study_volumes
from CovidCTDiagnosisLib.scene.places import peak_ras
from CovidCTDiagnosisLib.scene.report import kept_state
from CovidCTDiagnosisLib.scene.study_nodes import put_study

POLL_MS = 100
_AGREEMENTS = {
    ABSENT: _("Ready."),
    PRESENT: _("Ready."),
    CHANGED: _("This CT was moved or changed since it was analyzed, so nothing is shown of that. Analyze it again."),
    INCOMPLETE: _("Images of this CT's analysis were removed, so nothing is shown of it. Analyze it again."),
}
_NOTHING: tuple[str | None, str] = (None, "")
"""Nothing has been shown yet, not even that no CT is chosen."""


class Panel:
    """Binds the widgets of the .ui file to an analysis and its display.

    Args:
        ui: the widgets by name.
        parameters: gives the user's choices (a new scene has new ones).
        launch: starts the command line.
        check: starts it without installing anything first.
        remove: takes away what was downloaded and says what that was.
        logics: gives the slice logics of all views.
    """

    def __init__(
        self,
        ui: Any,
        parameters: Callable[[], Any],
        *,
        launch: Launcher,
        check: Launcher,
        remove: Callable[[], str],
        logics: Logics,
    ) -> None:
        self._ui, self._parameters, self._launch, self._logics = ui, parameters, launch, logics
        self._job: AnalysisJob | None = None
        self._starting = self._filling = False
        self._log = ""
        self._shown, self._agreement, self._displayed = _NOTHING, ABSENT, dict[str, Any]()
        self._lungs_of, self._of_computer = "", dict[str, str]()
        self.display = Display(logics)
        self._computer = ComputerView(ui, lambda arguments: check([*arguments, *_weights(parameters())]), remove)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)
        ui.analyzeButton.connect("clicked(bool)", self._on_analyze)
        ui.logButton.connect("clicked(bool)", self._on_log)
        ui.restoreButton.connect("clicked(bool)", self._on_restore)
        ui.slicesTable.connect("cellClicked(int,int)", self._on_slice)
        ui.slicesTable.connect("cellActivated(int,int)", self._on_slice)
        ui.slicesTable.connect("currentCellChanged(int,int,int,int)", self._on_slice_by_key)
        ui.logButton.visible = False
        ui.progressBar.visible = False
        self.update()

    @property
    def running(self) -> bool:
        """Whether an analysis is going on, or packages are installed for one."""
        return self._starting or self._job is not None

    # What is shown

    def enter(self) -> None:
        """The panel is shown again, or for a scene that was read."""
        parameters = self._parameters()
        if parameters is not None:
            if self._lungs_of and slicer.mrmlScene.GetNodeByID(self._lungs_of) is None:
                parameters.lungMask = None  # the CT that it was for was removed
            self._lungs_of, self._of_computer = _id(parameters.inputVolume), computer_choices(parameters)
            self._displayed = display_choices(parameters)
        self.update(views=False)

    def keep_true(self, ct: slicer.vtkMRMLScalarVolumeNode) -> None:
        """The CT may have been moved or changed while another module is open: what lies over it follows, or goes."""
        if not self.display.keep_true(ct):
            self._shown = _NOTHING  # to be shown again where it becomes true again

    def on_change(self) -> None:
        """The user, or a program, has chosen something else."""
        parameters = self._parameters()
        if parameters is not None and not slicer.mrmlScene.IsImporting():
            before, self._lungs_of = self._lungs_of, _id(parameters.inputVolume)
            if before and before != self._lungs_of:
                parameters.lungMask = None  # lungs of one CT are not those of another
            known, self._of_computer = self._of_computer, computer_choices(parameters)
            note_choices(dict(self._of_computer.items() - known.items()), slicer.app.userSettings())
            before_this, self._displayed = self._displayed, display_choices(parameters)
            # Other choices leave the views to the user, who may look at something else in them.
            self.update(views=before_this != self._displayed)

    def update(self, views: bool = True) -> None:
        """Show what belongs to the chosen CT.

        Args:
            views: in all slice views, too, also where nothing has changed since; the user may have turned these to
                other things in other modules. Otherwise in those that a layout has added.
        """
        parameters = self._parameters()
        if parameters is None:
            return  # another module is open
        if slicer.mrmlScene.IsImporting():
            return  # of a scene that is being read some nodes are there, others not yet
        ct = parameters.inputVolume
        self._ui.analyzeButton.enabled = not self._starting and (self.running or ct is not None)
        self._ui.removeButton.enabled = not self.running
        self._ui.analyzeButton.text = _("Cancel") if self.running else _("Analyze")
        shown = ("", "") if ct is None else (ct.GetID(), kept_state(ct))
        if shown != self._shown:
            now = agreement(ct)
            if not self.running and (_AGREEMENTS[now], shown[0]) != (_AGREEMENTS[self._agreement], self._shown[0]):
                self._ui.statusLabel.text = _AGREEMENTS[now] if ct else _("Choose a chest CT.")
            self._filling = True
            show_findings(self._ui, present_study(ct))
            self._filling = False
            views, self._agreement = True, now
        self._shown = shown
        if views:
            self.display.update(parameters)
        else:
            self.display.update_new_views(parameters)
        self._ui.restoreButton.enabled = self.display.remembers
        _hide(self._ui.inputSelector, study_volumes(slicer.mrmlScene))
        _hide(self._ui.lungMaskSelector, lesion_maps(slicer.mrmlScene))

    def forget_scene(self) -> None:
        """End a running analysis; the next scene's nodes may have the same names as those of this one."""
        self.cancel()
        self._shown, self._lungs_of = _NOTHING, ""
        self.display.forget()

    def close(self) -> None:
        """End whatever runs."""
        self.cancel()
        self._computer.cancel()

    # The analysis

    def _on_analyze(self, clicked: bool = False) -> None:
        if self._job is not None:
            self.cancel()
            return
        if self._starting:
            return  # Slicer stays alive while it installs packages
        parameters = self._parameters()
        self._starting, self._log = True, ""
        self._ui.logButton.visible = False
        try:
            self.update(views=False)
            self._job = AnalysisJob(
                parameters.inputVolume,
                self._launch,
                _options(parameters),
                parameters.lungMask,
                chosen_path(parameters.keepFiles),
            )
        except (CovidCTError, OSError) as error:
            self._ui.statusLabel.text = str(error)
            return
        finally:
            self._starting = False
            self.update(views=False)
        self._ui.progressBar.visible = True
        self._timer.start()
        self._poll()
        self.update(views=False)

    def cancel(self) -> None:
        """End a running analysis; the scene stays as it is."""
        if self._job is not None:
            self._job.cancel()
            self._finish(self._job)

    def _poll(self) -> None:
        job = self._job
        if job is None:
            return
        progress = job.poll()
        self._ui.progressBar.value = round(100 * progress.share)
        self._ui.statusLabel.text = _status(progress)
        if progress.state != RUNNING:
            self._finish(job)

    def _finish(self, job: AnalysisJob) -> None:
        self._timer.stop()
        self._job, self._log = None, job.log
        self._ui.progressBar.visible = False
        progress = job.progress
        try:
            if progress.state == DONE:
                self._load(job)
        finally:
            job.close()
            self.update(views=False)
        self._ui.statusLabel.text = self._of_ct(job, _status(progress))
        self._ui.logButton.visible = progress.state not in (DONE, CANCELLED)

    def _of_ct(self, job: AnalysisJob, status: str) -> str:
        """With the name of the CT that was analyzed, where another one is chosen by now."""
        parameters = self._parameters()
        if parameters is None or parameters.inputVolume is job.ct:
            return status
        return f"{job.ct.GetName()}: {status}"

    def _load(self, job: AnalysisJob) -> None:
        try:
            put_study(job.study, job.ct, job.analyzed)
        except CovidCTError as error:
            job.progress.state, job.progress.error = FAILED, str(error)
            return
        except Exception as error:  # memory, or anything that VTK has to say
            job.progress.state = FAILED
            job.progress.error = _("The result cannot be shown ({error}).").format(
                error=str(error) or type(error).__name__
            )
            job.progress.remedy = _("Close other data and analyze again.")
            return
        self.update()
        parameters = self._parameters()
        if parameters is not None and parameters.inputVolume is job.ct:
            self._go_to(job.ct, 0)

    # Buttons

    def _on_slice(self, row: int, column: int) -> None:
        self._go_to(self._parameters().inputVolume, row)

    def _on_slice_by_key(self, row: int, column: int, row_before: int, column_before: int) -> None:
        # Not when the list is filled, nor when it gets the focus and with it its first current row.
        if row >= 0 and row_before >= 0 and row != row_before and not self._filling:
            self._go_to(self._parameters().inputVolume, row)

    def _go_to(self, ct: slicer.vtkMRMLScalarVolumeNode | None, row: int) -> None:
        """Bring all views to a row of the list of slices."""
        found = present_study(ct)
        if found is None:
            return
        nodes, analysis = found
        if row < len(analysis["relevance"]["slices"]):
            jump_to(self._logics(), peak_ras(nodes, analysis, slice_index(analysis, row)))

    def _on_log(self, clicked: bool = False) -> None:
        slicer.app.clipboard().setText(self._log)

    def _on_restore(self, clicked: bool = False) -> None:
        self.display.restore()


def _options(parameters: Any) -> tuple[str, ...]:
    """Of ``covid-ct analyze``."""
    return ("--device", parameters.device, "--explain", EXPLAINED[parameters.explain], *_weights(parameters))


def _weights(parameters: Any) -> tuple[str, ...]:
    bundle = chosen_path(parameters.bundle)
    return () if bundle is None else ("--bundle", str(bundle))


def _id(node: slicer.vtkMRMLNode | None) -> str:
    return "" if node is None else node.GetID()


def _hide(selector: Any, ids: list[str]) -> None:
    """Offer all nodes but these."""
    selector.sortFilterProxyModel().hiddenNodeIDs = ids


def _status(progress: Progress) -> str:
    """One line in plain words."""
    if progress.state == RUNNING:
        if progress.remaining_s is None:
            return progress.message
        seconds = max(round(progress.remaining_s), 1)
        return _("{message}, about {seconds} s to go").format(message=progress.message, seconds=seconds)
    if progress.state == DONE:
        return _("Done.")
    if progress.state == CANCELLED:
        return _("Cancelled.")
    return f"{progress.error} {progress.remedy}".strip()
