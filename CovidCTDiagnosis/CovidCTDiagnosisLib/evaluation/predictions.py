"""A table of predictions beside the truth: what ``covid-ct diagnose-series`` writes, with columns added by hand.

==================================  =====================================================================
series or scan                      name, once each
probability                         of COVID-19, 0 to 1; rows without one count as not diagnosed
covid                               truth: 1 COVID-19, 0 not
co_rads, centre, split, patient     optional: 1 to 6; any text
involvement_percent                 optional: lesions' share of the lungs
==================================  =====================================================================
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError

NAMES = ("series", "scan")


@dataclass(frozen=True)
class Prediction:
    """One scan.

    Attributes:
        name: of the scan.
        probability: of COVID-19.
        covid: truth, 1 or 0.
        co_rads: 1 to 6, or None.
        centre, split: as in the table, empty where not stated.
        involvement_percent: or None.
    """

    name: str
    probability: float
    covid: int
    co_rads: int | None = None
    centre: str = ""
    split: str = ""
    involvement_percent: float | None = None


@dataclass(frozen=True)
class Predictions:
    """All scans of a table.

    Attributes:
        scans: those that have a probability.
        undiagnosed: names of the others.
    """

    scans: list[Prediction]
    undiagnosed: list[str]

    @property
    def probability(self) -> np.ndarray:
        """(N,) of COVID-19."""
        return np.array([s.probability for s in self.scans])

    @property
    def covid(self) -> np.ndarray:
        """(N,) truth, 1 or 0."""
        return np.array([s.covid for s in self.scans])


def read_predictions(path: Path) -> Predictions:
    """Read and check a table.

    Raises:
        InputError: it cannot be read, lacks a column, a value is none, a scan stands twice, a patient stands in two
            splits, or one of the two kinds of cases is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path.name} cannot be read as a table.", "Give a CSV file in UTF-8.") from error
    name = next((n for n in NAMES if n in columns), None)
    for column in (name, "probability", "covid"):
        if column is None or column not in columns:
            raise InputError(
                f"{path.name} has no column {column or 'series'}.",
                "Give the table of covid-ct diagnose-series with a column covid, 1 for COVID-19 and 0 for not.",
            )
    assert name is not None
    return _checked(path.name, name, rows)


def _checked(table: str, name: str, rows: list[tuple[int, dict[str, str | None]]]) -> Predictions:
    scans, undiagnosed = [], []
    seen: set[str] = set()
    splits: dict[str, str] = {}
    for number, row in rows:
        if not any(isinstance(cell, str) and cell.strip() for cell in row.values()):
            continue
        cells = _Row(table, number, row)
        scan = cells.text(name)
        if not scan or scan in seen:
            raise cells.wrong(f"{name} {scan or 'is empty'}" + (" stands twice" if scan else ""))
        seen.add(scan)
        patient, split = cells.text("patient"), cells.text("split")
        if patient and splits.setdefault(patient, split) != split:
            raise cells.wrong(
                f"patient {patient} stands in the splits {splits[patient] or 'none'} and {split or 'none'}"
            )
        if cells.text("probability") == "":
            undiagnosed.append(scan)
            continue
        scans.append(_prediction(scan, cells))
    if len({s.covid for s in scans}) < 2:
        raise InputError(f"{table} needs COVID-19 and other scans with a probability.", "Add more scans.")
    return Predictions(scans, undiagnosed)


def _prediction(name: str, cells: _Row) -> Prediction:
    probability, covid = cells.number("probability", 0, 1), cells.number("covid", 0, 1)
    co_rads, involvement = cells.number("co_rads", 1, 6), cells.number("involvement_percent", 0, 100)
    if probability is None or covid not in (0, 1):
        raise cells.wrong("covid must be 1 or 0")
    if co_rads is not None and co_rads != int(co_rads):
        raise cells.wrong("co_rads must be a whole number")
    return Prediction(
        name,
        probability,
        int(covid),
        None if co_rads is None else int(co_rads),
        cells.text("centre"),
        cells.text("split"),
        involvement,
    )


class _Row:
    """One row's cells, and errors that say where it stands."""

    def __init__(self, table: str, line: int, cells: Mapping[str, str | None]) -> None:
        self.table, self.line, self.cells = table, line, cells

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.table}, line {self.line}: {what}.", "Mend the table.")

    def text(self, column: str) -> str:
        return (self.cells.get(column) or "").strip()

    def number(self, column: str, least: float, most: float) -> float | None:
        """None where the cell is empty or there is no such column."""
        text = self.text(column)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise self.wrong(f"{column} is {text}, not a number from {least:g} to {most:g}")
        return value
