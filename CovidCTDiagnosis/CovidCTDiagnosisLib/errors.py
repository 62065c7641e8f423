"""The errors a user can meet: each has one clear sentence, a remedy, and the command line's exit code."""

from __future__ import annotations


class CovidCTError(Exception):
    """An expected failure: shown to the user as one sentence and a remedy, never as a traceback.

    Args:
        message: what is wrong, one sentence.
        remedy: what the user can do about it, one sentence; may be empty.
    """

    code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class UsageError(CovidCTError):
    """The call is wrong (exit code 2)."""

    code = 2


class InputError(CovidCTError):
    """The input is not a chest CT that can be analysed (exit code 3)."""

    code = 3


class BundleError(CovidCTError):
    """The weights are missing or damaged (exit code 4)."""

    code = 4


class ResourceError(CovidCTError):
    """Out of memory or disk (exit code 5)."""

    code = 5


class Cancelled(CovidCTError):
    """The user stopped the run (exit code 130)."""

    code = 130

    def __init__(self, message: str = "Cancelled.", remedy: str = "") -> None:
        super().__init__(message, remedy)
