"""Options and contexts that several commands share."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
    """A command of that name, its help the text."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def add_bundle(command: Any) -> None:
    """``--bundle``."""
    command.add_argument("--bundle", type=Path, help="folder or zip file with the weights (default: those shipped)")


def add_events(command: Any) -> None:
    """``--events``."""
    command.add_argument("--events", choices=("text", "jsonl"), default="text", help="how to report progress")


@contextlib.contextmanager
def event_sink(options: argparse.Namespace) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where events of long work go: JSON lines or a progress bar."""
    from ..console import emit_json, progress_bar
    from ..pipeline.memory import tune_allocator

    tune_allocator()
    if options.events == "jsonl":
        yield emit_json
    else:
        with progress_bar() as emit:
            yield emit


def add_device(command: Any) -> None:
    """``--device``."""
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def add_recipe(command: Any) -> None:
    """``--recipe``, of CVAE and classifier."""
    command.add_argument(
        "--recipe",
        choices=("short", "paper"),
        default="short",
        help="how cvae and classifier learn: a few hundred steps (default), or 200 epochs as in the paper",
    )


def add_precision(command: Any) -> None:
    """``--precision``, of the training."""
    command.add_argument(
        "--precision",
        choices=("32-true", "16-mixed", "bf16-mixed"),
        help="of the training: 32-true, 16-mixed (default on a graphics card), or bf16-mixed, which saves a fifth to "
        "a third of the time of 2-D networks on a processor with AVX-512 BF16 or AMX (3-D networks stay in single "
        "precision there)",
    )


def check_sensitivity(sensitivity: float) -> None:
    """Refuse what is no share, with a UsageError."""
    if not 0 < sensitivity <= 1:
        raise UsageError(f"{sensitivity:g} is no sensitivity.", "Give a number above 0, at most 1.")


def check_at_least(least: int, **options: int | None) -> None:
    """Refuse options (by their names, None where left out) that are smaller, with a UsageError."""
    for name, value in options.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}.", "Give a larger number.")


@contextlib.contextmanager
def training_packages() -> Iterator[None]:
    """Imports of the extra ``train``; a UsageError says how to get them."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"Training and evaluation need more packages ({error}).",
            "Install them: pip install '.[train]' in the folder of this program.",
        ) from error
