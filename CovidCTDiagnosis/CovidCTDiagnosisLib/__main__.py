"""The command line, ``covid-ct``: see ``covid-ct --help``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from . import __version__
from .commands.analyze import add_analyze
from .commands.computer import add_bench, add_check, add_complexity
from .commands.evaluate import add_evaluate
from .commands.pictures import add_picture, add_plates
from .commands.samples import add_sample
from .commands.slices import add_diagnose_series, add_segment_slices
from .commands.train import add_calibrate, add_train
from .errors import Cancelled, CovidCTError, ResourceError, UsageError
from .folders import is_disk_full

DEBUG = "COVID_CT_DEBUG"
_COMMANDS = (
    add_analyze,
    add_segment_slices,
    add_diagnose_series,
    add_picture,
    add_plates,
    add_sample,
    add_complexity,
    add_bench,
    add_check,
    add_train,
    add_evaluate,
    add_calibrate,
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code (see ``errors``)."""
    from .console import leave_output, report_error

    _prepare_streams()
    options = _parser().parse_args(arguments)
    _prepare_torch()
    signal.signal(signal.SIGTERM, _interrupt)
    jsonl = getattr(options, "events", None) == "jsonl"
    try:
        options.run(options)
        # Here, where a failure is told of, not at the end of the interpreter.
        sys.stdout.flush()
        return 0
    except CovidCTError as error:
        return report_error(error, jsonl)
    except KeyboardInterrupt:
        return report_error(Cancelled(), jsonl)
    except BrokenPipeError:
        leave_output()
        return Cancelled.code
    except MemoryError:
        return report_error(ResourceError("There is not enough memory.", "Close other programs."), jsonl)
    except OSError as error:
        if is_disk_full(error):
            return report_error(ResourceError("The disk is full.", "Free some space."), jsonl)
        text = f"{error.filename or 'A file'} cannot be used: {error.strerror or error}."
        return report_error(UsageError(text, "Check its name, its permissions and the disk."), jsonl)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        text = f"The program failed ({type(error).__name__}: {error})."
        return report_error(CovidCTError(text, f"Run it again with {DEBUG}=1 for the details, and report them."), jsonl)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Escape characters that the terminal cannot show; where there is no stream, write to nowhere."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - as long as the program
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _prepare_torch() -> None:
    """Before torch is imported: large pages for its memory, where the kernel has them."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class _Parser(argparse.ArgumentParser):
    """Errors in one sentence that ends with where to look."""

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.code, f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="covid-ct",
        description="Explainable COVID-19 diagnosis from chest CT. For research, not for diagnosis.",
        epilog="Exit codes: 0 done, 1 any other failure, 2 wrong call, 3 not a chest CT that can be analysed, 4 "
        "weights missing or damaged, 5 out of memory or disk, 130 cancelled.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
