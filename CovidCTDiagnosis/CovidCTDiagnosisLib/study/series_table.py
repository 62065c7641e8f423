"""The table of ``covid-ct diagnose-series``: one row per series, as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from CovidCTDiagnosisLib.tables import require_own_table, write_rows


class SeriesRow(NamedTuple):
    """One series; probability and label are empty where it could not be diagnosed, and a warning says why.

    Attributes:
        series: name of its folder.
        probability: calibrated, of COVID-19, four digits.
        label: ``COVID-19`` or ``not COVID-19``.
        warnings: sentences, one after the other.
        bundle: ``Bundle.identity`` of what made the row; a column only where it is asked for.
    """

    series: str
    probability: str
    label: str
    warnings: str
    bundle: str


def check_table_output(path: Path) -> None:
    """Make sure that writing to `path` destroys nothing but an older table.

    Raises:
        UsageError: it holds something else, or its folder does not exist.
    """
    require_own_table(path, map(_columns, (False, True)), "series")


def _columns(with_bundle: bool) -> tuple[str, ...]:
    return SeriesRow._fields if with_bundle else SeriesRow._fields[:-1]


def write_table(path: Path, rows: Sequence[SeriesRow], with_bundle: bool = False) -> None:
    """Write the table, whole or not at all.

    Args:
        path: CSV file; an older table is replaced.
        rows: in order.
        with_bundle: write the column ``bundle`` too.

    Raises:
        UsageError: the file cannot be written.
        ResourceError: the disk is full.
    """
    columns = _columns(with_bundle)
    write_rows(path, columns, (row[: len(columns)] for row in rows))
