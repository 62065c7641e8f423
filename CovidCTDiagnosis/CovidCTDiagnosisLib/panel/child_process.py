"""The command line as a child process: its events as they come, and an end within a second when asked."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

Event = dict[str, Any]

LIBRARY = Path(__file__).resolve().parents[2]
"""The folder that holds ``CovidCTDiagnosisLib``."""
PATIENCE_S = 0.5
"""How long a process may take to end by itself once it was asked to."""


class Child(Protocol):
    """A started command."""

    def events(self) -> list[Event]:
        """Those that came since the last call."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""

    def kill(self) -> None:
        """End it and all that it started, within a second."""

    @property
    def log(self) -> str:
        """Everything that it said."""


class Launcher(Protocol):
    """Starts commands of the command line."""

    def __call__(self, arguments: Sequence[str]) -> Child:
        """Start ``covid-ct`` with these arguments."""


class CommandLine:
    """``python -m CovidCTDiagnosisLib …`` in a process group of its own; raises OSError where it cannot start.

    Args:
        arguments: of the command; ``--events jsonl`` among them.
        python: the interpreter: in Slicer, Slicer's own.
    """

    def __init__(self, arguments: Sequence[str], python: str = sys.executable) -> None:
        paths = [str(LIBRARY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
        # No modules from where Slicer was started, which may be a folder of data (from Python 3.11 on).
        environment["PYTHONSAFEPATH"] = "1"
        self._lines: list[str] = []
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [python, "-m", "CovidCTDiagnosisLib", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
            **_own_group(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            event = _event(line)
            if event is not None:
                self._events.put(event)

    def events(self) -> list[Event]:
        """See ``Child``."""
        found = []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    @property
    def exit_code(self) -> int | None:
        """See ``Child``; not before the last line was read."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        """See ``Child``."""
        if self._process.poll() is not None:
            return
        _end(self._process, gently=True)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            _end(self._process, gently=False)
            self._process.wait()

    @property
    def log(self) -> str:
        """See ``Child``."""
        return "".join(self._lines)


def _own_group() -> dict[str, Any]:
    """So that the whole tree can be ended, and no window opens."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _end(process: subprocess.Popen[str], gently: bool) -> None:
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        return
    try:
        os.killpg(process.pid, signal.SIGTERM if gently else signal.SIGKILL)
    except ProcessLookupError:
        return


def _event(line: str) -> Event | None:
    """The event of a line; None for what libraries print."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
