"""How figures are drawn: by matplotlib without a display, as SVG or PNG.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; markers and line styles tell
the same.
"""

from __future__ import annotations

import io
import warnings

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#F0E442"
WIDTH = 8.0
"""Inches."""


def svg(figure: Figure) -> bytes:
    """The figure as SVG; the same numbers give the same bytes."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "covid-ct", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Letters that matplotlib's font lacks are in the browser's: the SVG keeps text as text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()


def as_written(text: str) -> str:
    """A text of the user's, in which dollars do not begin a formula, and nothing is no letter (SVG forbids some)."""
    return "".join(letter for letter in text if letter.isprintable()).replace("$", r"\$")


def plain(axes: Axes) -> None:
    """A faint grid, and no frame above or right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
