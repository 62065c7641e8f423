"""Put the tables of this folder into README and model card (``make numbers``).

A table stands between the comments ``results: FILE`` and ``end``. Markdown is taken as it is, text as a block of code.
The tables are written by the commands of ``covid-ct evaluate`` and by ``covid-ct complexity``; README says which.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent
README = RESULTS.parents[1] / "README.md"
TABLE = re.compile(r"(?P<begin><!-- results: (?P<file>\S+) -->\n).*?(?P<end><!-- end -->\n)", re.DOTALL)


def published(text: str, results: Path = RESULTS) -> str:
    """A document with the tables of a folder in their places.

    Raises:
        FileNotFoundError: it names a table that is not there.
    """

    def put(place: re.Match[str]) -> str:
        table = (results / place["file"]).read_text(encoding="utf-8")
        block = table if place["file"].endswith(".md") else f"```\n{table}```\n"
        return f"{place['begin']}\n{block}\n{place['end']}"

    return TABLE.sub(put, text)


def main() -> None:
    """Write README and model card anew."""
    from CovidCTDiagnosisLib.bundle import default_bundle_folder, open_bundle, revise_bundle

    README.write_text(published(README.read_text(encoding="utf-8")), encoding="utf-8")
    bundle = open_bundle()
    card = published(bundle.model_card)
    if card != bundle.model_card:
        revise_bundle(default_bundle_folder(), default_bundle_folder(), model_card=card)


if __name__ == "__main__":
    sys.exit(main())
