"""The table of ``covid-ct diagnose-series``: one row per series, as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from CovidCTDiagnosisLib.errors import UsageError
from CovidCTDiagnosisLib.folders import require_parent
from CovidCTDiagnosisLib.tables import write_rows

_REMEDY = "Choose another name for the table."


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
    require_parent(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", _REMEDY)
    header = path.read_bytes().split(b"\n", 1)[0].rstrip(b"\r") if path.exists() else b""
    if header not in (b"", *(_header(_columns(with_bundle)) for with_bundle in (False, True))):
        raise UsageError(f"{path} exists and is no table of series.", _REMEDY)


def _columns(with_bundle: bool) -> tuple[str, ...]:
    return SeriesRow._fields if with_bundle else SeriesRow._fields[:-1]


def _header(columns: Sequence[str]) -> bytes:
    return ",".join(columns).encode("ascii")


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
