"""*Check my computer*: runs the check as a child process and shows what it says; removes what was downloaded."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import qt

from CovidCTDiagnosisLib.errors import CovidCTError
from CovidCTDiagnosisLib.panel.child_process import Child, Event, Launcher
from CovidCTDiagnosisLib.panel.translation import _

POLL_MS = 100


class ComputerView:
    """The button and what is shown below it.

    Args:
        ui: the widgets by name.
        launch: starts the command line as it is, without installing anything first.
        remove: takes away what was downloaded and says what that was.
    """

    def __init__(self, ui: Any, launch: Launcher, remove: Callable[[], str]) -> None:
        self._ui, self._launch, self._remove = ui, launch, remove
        self._child: Child | None = None
        self._found: list[Event] = []
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)
        ui.checkButton.connect("clicked(bool)", self._on_check)
        ui.removeButton.connect("clicked(bool)", self._on_remove)

    def _on_check(self, clicked: bool = False) -> None:
        self.cancel()
        self._found = []
        self._ui.checkLabel.text = _("Checking …")
        try:
            self._child = self._launch(["check", "--events", "jsonl"])
        except (CovidCTError, OSError) as error:
            self._ui.checkLabel.text = escape(str(error))
            return
        self._timer.start()

    def _on_remove(self, clicked: bool = False) -> None:
        self.cancel()
        try:
            self._ui.checkLabel.text = escape(self._remove())
        except (CovidCTError, OSError) as error:
            self._ui.checkLabel.text = escape(str(error))

    def cancel(self) -> None:
        """End a running check."""
        self._timer.stop()
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _poll(self) -> None:
        assert self._child is not None
        code = self._child.exit_code
        self._found += [event for event in self._child.events() if event["event"] == "check"]
        if self._found:
            self._ui.checkLabel.text = "<br>".join(_line(check) for check in self._found)
        if code is None:
            return
        if not self._found:
            self._ui.checkLabel.text = _("The check could not run: {log}").format(log=escape(self._child.log[-500:]))
        self.cancel()


def _line(check: Event) -> str:
    mark = "✔" if check["good"] else "✘"
    return f"{mark} <b>{escape(check['name'])}</b>: {escape(check['found'])} {escape(check['remedy'])}"
