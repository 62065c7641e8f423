"""``covid-ct complexity``, ``bench`` and ``check``: how fast this computer is, and whether it has what is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ResourceError
from .common import add_bundle, add_command, add_device, add_events


def add_complexity(commands: Any) -> None:
    """``covid-ct complexity``."""
    text = "Print each network's size, work, time and memory beside the paper's."
    _add_measuring(commands, "complexity", _complexity, text)


def _complexity(options: argparse.Namespace) -> None:
    from ..evaluation.complexity import print_complexity

    print_complexity(options.scan, options.bundle, options.device)


def add_bench(commands: Any) -> None:
    """``covid-ct bench``."""
    text = "Time every stage on a CT, as a share of this machine's matrix-multiply peak."
    _add_measuring(commands, "bench", _bench, text)


def _bench(options: argparse.Namespace) -> None:
    from ..evaluation.bench import print_bench

    print_bench(options.scan, options.bundle, options.device)


def _add_measuring(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> None:
    command = add_command(commands, name, run, text)
    command.add_argument("scan", type=Path, nargs="?", help="CT to measure on (default: the NIfTI sample)")
    add_bundle(command)
    add_device(command)


def add_check(commands: Any) -> None:
    """``covid-ct check``."""
    command = add_command(commands, "check", _check, "Whether this computer can analyze a CT, and what to do if not.")
    add_events(command)
    add_bundle(command)


def _check(options: argparse.Namespace) -> None:
    from ..computer_check import check_computer
    from ..console import emit_json

    good = True
    for check in check_computer(options.bundle):
        good = good and check.good
        if options.events == "jsonl":
            emit_json({"event": "check", **vars(check)})
        else:
            print(f"{'ok ' if check.good else 'NO '} {check.name:14} {check.found} {check.remedy}".rstrip())
    if not good:
        raise ResourceError("This computer cannot analyze a CT yet.", "See what is said above.")
