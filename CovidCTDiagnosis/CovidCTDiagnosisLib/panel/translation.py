"""Texts in the user's language, where Slicer has them."""

from __future__ import annotations

try:
    from slicer.i18n import tr as _
except ImportError:  # plain Python

    def _(text: str) -> str:
        """The text as it is."""
        return text


__all__ = ["_"]
