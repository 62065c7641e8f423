"""``covid-ct sample``: real CTs to try the program on."""

from __future__ import annotations

import argparse
from typing import Any

from .common import add_command


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
