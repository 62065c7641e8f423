"""What the command line shows: a live progress bar for people, JSON lines for programs, one sentence on failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import CovidCTError

Event = dict[str, Any]


def emit_json(event: Event) -> None:
    """One JSON object a line on standard output, flushed: a program is reading."""
    sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
    sys.stdout.flush()


@contextmanager
def progress_bar() -> Iterator[Callable[[Event], None]]:
    """A progress bar on standard error with stage and remaining time; plain lines where it is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:36}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("Starting", total=1.0)
        shown = ""

        def emit(event: Event) -> None:
            nonlocal shown
            if event["event"] == "stage":
                progress.update(task, completed=event["progress"], description=event["message"])
                if not console.is_terminal and event["message"] != shown:
                    console.print(f"{event['progress']:4.0%} {event['message']}", highlight=False)
                shown = event["message"]
            elif event["event"] == "warning":
                progress.console.print(f"Warning: {event['message']}", highlight=False, markup=False)

        yield emit


def report_error(error: CovidCTError, jsonl: bool) -> int:
    """Tell the failure on standard error (and as an event), and give the exit code."""
    if jsonl:
        emit_json({"event": "error", "code": error.code, "message": error.message, "remedy": error.remedy})
    sys.stderr.write(f"{error}\n")
    return error.code
