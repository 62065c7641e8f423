"""``covid-ct sample``, ``complexity``, ``bench`` and ``check``: what this computer has, and how fast it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ResourceError
from .common import add_bundle, add_command, add_device, add_events


def add_sample(commands: Any) -> None:
    """``covid-ct sample``."""
    command = add_command(commands, "sample", _sample, "Get a real sample CT into the user's cache; prints its path.")
    command.add_argument("name", nargs="?", help="which; without it the samples are listed")


def _sample(options: argparse.Namespace) -> None:
    from ..ct import SAMPLES, fetch_sample

    if options.name is None:
        for name, sample in SAMPLES.items():
            print(f"{name:14} {sample.description}")
    else:
        print(fetch_sample(options.name))


def add_complexity(commands: Any) -> None:
    """``covid-ct complexity``."""
    command = add_command(
        commands,
        "complexity",
        _complexity,
        "Print each network's size, work, time and memory beside the paper's.",
    )
    command.add_argument("scan", type=Path, nargs="?", help="CT to measure on (default: the NIfTI sample)")
    add_bundle(command)
    add_device(command)


def _complexity(options: argparse.Namespace) -> None:
    from ..evaluation.complexity import print_complexity

    print_complexity(options.scan, options.bundle, options.device)


def add_bench(commands: Any) -> None:
    """``covid-ct bench``."""
    command = add_command(
        commands,
        "bench",
        _bench,
        "Time every stage on a CT, as a share of this machine's matrix-multiply peak.",
    )
    command.add_argument("scan", type=Path, nargs="?", help="CT to measure on (default: the NIfTI sample)")
    add_bundle(command)
    add_device(command)


def _bench(options: argparse.Namespace) -> None:
    from ..evaluation.bench import print_bench

    print_bench(options.scan, options.bundle, options.device)


def add_check(commands: Any) -> None:
    """``covid-ct check``."""
    command = add_command(commands, "check", _check, "Whether this computer can analyze a CT, and what to do if not.")
    add_events(command)
    add_bundle(command)


def _check(options: argparse.Namespace) -> None:
    from ..computer_check import check_computer

    checks = check_computer(options.bundle)
    for check in checks:
        if options.events == "jsonl":
            from ..console import emit_json

            emit_json({"event": "check", **vars(check)})
        else:
            print(f"{'ok ' if check.good else 'NO '} {check.name:14} {check.found} {check.remedy}".rstrip())
    if not all(check.good for check in checks):
        raise ResourceError("This computer cannot analyze a CT yet.", "See what is said above.")
