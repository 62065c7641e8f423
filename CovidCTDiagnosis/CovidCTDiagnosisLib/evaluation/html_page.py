"""One HTML file with everything inside: style, tables, pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 1rem 0; }
figcaption, .beside { color: #555; font-size: 0.9rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.4rem 0.6rem; border-bottom: 1px solid #ccc; }
td { overflow-wrap: anywhere; }
.met { color: #00664a; font-weight: bold; }
.not { color: #8a3a00; font-weight: bold; }
.grids { max-width: 34rem; }
@media (max-width: 50rem) {
  .targets thead { display: none; }
  .targets tr, .targets td { display: block; border: 0; padding: 0.1rem 0; }
  .targets tr { border-bottom: 1px solid #ccc; padding: 0.6rem 0; }
  .targets td:not(:empty)::before { content: attr(data-name) ": "; color: #555; }
}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page.

    Args:
        title: as plain text.
        parts: HTML of its sections.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p><strong>For research, not for diagnosis.</strong></p>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def table(names: Iterable[str], body: Iterable[str], kind: str) -> str:
    """Rows, HTML each, under these column names; ``kind`` is the class that the style knows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n' + "\n".join(body) + "\n</tbody></table>"


def figure(data: bytes, kind: str, caption: str) -> str:
    """A picture (``png`` or ``svg+xml``) with its caption."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'
