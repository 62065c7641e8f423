"""Tables as Markdown, for README, model card and papers: what is published is what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..folders import write_text


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, ending with a new line; cells hold plain text, of one line or more.

    Args:
        columns: headings.
        rows: as many cells each.
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def write_markdown(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """``markdown_table`` as a file, whole or not at all."""
    write_text(path, markdown_table(columns, rows))


def _cell(text: str) -> str:
    return "<br>".join(text.replace("|", r"\|").splitlines())
