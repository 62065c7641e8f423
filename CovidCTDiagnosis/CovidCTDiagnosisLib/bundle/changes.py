"""How a changed bundle says that it is no longer the one of its version: in the version, and in the model card."""

from __future__ import annotations

import re


def changed_version(version: str, change: str) -> str:
    """A semantic version with the change among its build metadata: ``1.2.0+retrained``; once, however often made."""
    base, _, changes = version.partition("+")
    known = changes.split(".") if changes else []
    return f"{base}+{'.'.join([*known, *([change] if change not in known else [])])}"


def section(card: str, heading: str) -> str:
    """The text under a heading of second level in a model card (Markdown), or empty."""
    found = _pattern(heading).search(card)
    return found.group("text") if found else ""


def with_section(card: str, heading: str, text: str) -> str:
    """The card with this section at its end, in place of the one of the same heading."""
    return f"{_pattern(heading).sub('', card).rstrip()}\n\n## {heading}\n\n{text.strip()}\n"


def _pattern(heading: str) -> re.Pattern[str]:
    return re.compile(rf"^## {re.escape(heading)}\n+(?P<text>.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
