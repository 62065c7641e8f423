"""Where tables are printed: as wide as the terminal, or as a page where the output goes to a file."""

from __future__ import annotations

from rich import box
from rich.console import Console

_PAGE = 120


def table_console() -> tuple[Console, box.Box]:
    """A console, and the frame for tables that it can show."""
    console = Console()
    return (console, box.SQUARE) if console.is_terminal else (Console(width=_PAGE), box.ASCII2)
