"""What the command line shows: a live progress bar for people, JSON lines for programs, one sentence on failure."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import CovidCTError

Event = dict[str, Any]


def emit_json(event: Event) -> None:
    """One JSON object a line on standard output, flushed: a program is reading."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def leave_output() -> None:
    """Whoever read standard output is gone, and what is left in it must not fail at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        try:
            emit_json({"event": "error", "code": error.code, "message": error.message, "remedy": error.remedy})
        except OSError:
            leave_output()
    sys.stderr.write(f"{error}\n")
    return error.code


def print_findings(document: dict[str, Any], study: Any, replaced: bool) -> None:
    """The findings of analysis.json as a short report on standard output; ``replaced``: an older study was there."""
    from .ct.checks import describe_spacing

    diagnosis, measured, scan = document["diagnosis"], document["measurements"], document["input"]
    size = " x ".join(map(str, scan["size"]))
    print(f"\nScan                    {scan['name']}, {size} voxels of {describe_spacing(scan['spacing_mm'])}")
    print(
        f"COVID-19 probability  {diagnosis['probability']:.3f}  (threshold {diagnosis['threshold']:.3f}):",
        end="",
    )
    print(f"  {diagnosis['label']}\n")
    print(f"{'':24}{'right':>10}{'left':>10}{'both':>10}")
    for title, key, unit in (
        ("lung volume", "volume_ml", "ml"),
        ("mean density", "mean_hu", "HU"),
        ("involvement", "involvement_percent", "%"),
    ):
        print(f"{title:24}{_row(measured['lungs'][side][key] for side in _SIDES)}  {unit}")
    for name in dict.fromkeys(lesion["class"] for lesion in measured["lesions"]):
        by_side = {lesion["side"]: lesion for lesion in measured["lesions"] if lesion["class"] == name}
        title = "lesions, any class" if name == "any" else name
        print(f"{title:24}{_row(by_side[side]['volume_ml'] for side in _SIDES)}  ml")
    slices = [str(s["index"]) for s in document["relevance"]["slices"][:5]]
    print(f"\nMost relevant slices    {', '.join(slices) or 'none'}")
    seconds = ", ".join(f"{stage} {time:.1f}" for stage, time in document["timings_s"].items())
    print(f"Seconds                 {seconds}")
    print(f"Study                   {study}{' (replaces an older one)' if replaced else ''}")
    print("\nFor research, not for diagnosis.")


def print_slices(document: dict[str, Any], folder: Any, replaced: bool) -> None:
    """How the slice images of slices.json were read, on standard output; ``replaced``: older masks were there."""
    images = document["images"]
    counts = Counter(image["orientation"] for image in images)
    found = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    way = f"one CT, {document['order']}" if document["order"] else "each on its own"
    print(f"{len(images)} slice{'s' if len(images) > 1 else ''}, {way}; orientation: {found}")
    print(f"Masks: {folder}{' (replaces older ones)' if replaced else ''}")


def print_series(rows: Any, table: Any) -> None:
    """How many series of a table were called what, on standard output."""
    counts = Counter(row.label or "not diagnosed" for row in rows)
    print(f"{len(rows)} series: " + ", ".join(f"{count} {label}" for label, count in sorted(counts.items())))
    for row in rows:
        if row.warnings:
            print(f"{row.series}: {row.warnings}")
    print(f"Table: {table}")
    print("\nFor research, not for diagnosis.")


_SIDES = ("right", "left", "both")


def _row(values: Any) -> str:
    return "".join(f"{'-' if value is None else f'{value:.1f}':>10}" for value in values)
