"""Tables (CSV): those that users write by hand, read so that an error says in which line it stands; and our own."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .errors import InputError, UsageError
from .folders import replaced_file, require_parent

ALIASES = {"center": "centre", "corads": "co_rads"}
"""Other names of columns."""
_PATIENT = re.compile(
    r"((anon|de_?ident|pseudonym)\w*_|study_|research_)?(patients?|pat|subjects?|participants?)(_s)?"
    r"_?(u?id|ids|no|nr|num|number|name|identifier|code|key|hash|index|pseudonym)?"
    r"|mrn|medical_record_number|pid|pseudonym"
)
"""What a column is called that says who a scan is of; such a one must not be overlooked."""


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all.

    Raises:
        UsageError: the file cannot be written.
        ResourceError: the disk is full.
    """
    with replaced_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def require_own_table(path: Path, headers: Iterable[Sequence[str]], what: str) -> None:
    """Make sure that writing to `path` destroys nothing but an older table of one of these headers.

    Args:
        path: to be written.
        headers: columns of our own tables.
        what: such a table is, as in "no table of series".

    Raises:
        UsageError: it holds something else, or its folder does not exist.
    """
    require_parent(path)
    remedy = "Choose another name for the table."
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", remedy)
    header = path.read_bytes().split(b"\n", 1)[0].rstrip(b"\r") if path.exists() else b""
    if header not in (b"", *(",".join(columns).encode("ascii") for columns in headers)):
        raise UsageError(f"{path} exists and is no table of {what}.", remedy)


class Row:
    """One row's cells by the table's column names.

    Attributes:
        table, line: where it stands.
    """

    def __init__(self, table: str, line: int, cells: Mapping[str, str | None]) -> None:
        self.table, self.line, self.cells = table, line, cells

    def wrong(self, what: str) -> InputError:
        """The error that this is wrong with the row, a sentence without its full stop."""
        return InputError(f"{self.table}, line {self.line}: {what}.", "Correct the table.")

    def text(self, column: str) -> str:
        """Empty where the cell is empty or there is no such column."""
        return (self.cells.get(column) or "").strip()

    def number(self, column: str, least: float, most: float) -> float | None:
        """None where the cell is empty or there is no such column.

        Raises:
            InputError: it is no number within these bounds.
        """
        text = self.text(column)
        if not text:
            return None
        try:
            value = float(text.replace(",", "."))
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise self.wrong(f"{column} is {text}, not a number from {least:g} to {most:g}")
        return value

    def whole_number(self, column: str, least: int, most: int) -> int | None:
        """As `number`, and whole."""
        value = self.number(column, least, most)
        if value is not None and value != int(value):
            raise self.wrong(f"{column} must be a whole number")
        return None if value is None else int(value)

    def flag(self, column: str) -> bool:
        """Whether it is 1; it must be 1 or 0.

        Raises:
            InputError: it is neither.
        """
        value = self.number(column, 0, 1)
        if value not in (0, 1):
            raise self.wrong(f"{column} must be 1 or 0")
        return bool(value)


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Columns of a table (in small letters, with _ for - and spaces, by their usual names), and its rows.

    Cells are separated as in the first line: by commas, semicolons (as spreadsheets do where a comma is the decimal
    sign) or tabs. Empty rows are left out, and a first line ``sep=;`` as Excel writes it.

    Raises:
        InputError: it is not there or cannot be read, a quote is not closed, a column stands twice, or a row has more
            cells than columns.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file.", "Give a CSV file in UTF-8.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = file.readlines()
        if any("\0" in line for line in lines):
            raise csv.Error("no text")
        before = 0
        while before < len(lines) and (not lines[before].strip() or lines[before].lower().startswith("sep=")):
            before += 1
        delimiter = max(",;\t", key="".join(lines[before : before + 1]).count)
        # Strictly: a quote that is not closed would swallow the rows after it without a word.
        reader = csv.DictReader(lines[before:], delimiter=delimiter, strict=True)
        reader.fieldnames = columns = [_plain(column) for column in reader.fieldnames or []]
        try:
            rows = [Row(path.name, before + reader.line_num, cells) for cells in reader]
        except csv.Error as error:
            raise InputError(
                f"{path.name}, line {before + reader.line_num + 1}: a quote is not closed, or text follows one.",
                "Correct the table.",
            ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path.name} cannot be read as a table.", "Give a CSV file in UTF-8.") from error
    for column in columns:
        if column and columns.count(column) > 1:
            raise InputError(f"{path.name} has two columns {column}.", "Leave one of them.")
    for row in rows:
        if None in row.cells:
            raise row.wrong('there are more cells than columns: put text that holds the separator in quotes, "A, B"')
    usual = _usual_names(columns, rows)
    for row in rows:
        row.cells = {usual[column]: cell for column, cell in row.cells.items()}
    filled = [row for row in rows if any(isinstance(c, str) and c.strip() for c in row.cells.values())]
    return [usual[column] for column in columns], filled


def require_columns(path: Path, columns: Collection[str], needed: Collection[str], remedy: str) -> None:
    """Raise InputError unless the table has these columns."""
    for column in needed:
        if column not in columns:
            raise InputError(f"{path.name} has no column {column}.", remedy)


def spelled_alike(patients: Iterable[str]) -> list[str]:
    """The same names, each in the first of its spellings by the alphabet: in any case of letters it is one patient."""
    names = list(patients)
    chosen: dict[str, str] = {}
    for name in sorted(names):
        chosen.setdefault(name.casefold(), name)
    return [chosen[name.casefold()] for name in names]


class Splits:
    """Sees to it that no patient stands in two splits; names lines, as a patient may be known by a DICOM tag."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, int]] = {}

    def put(self, row: Row, patient: str, split: str, known_by: str = "") -> None:
        """Raise InputError if the patient, in any case of letters, already stands in another split.

        Args:
            row: of the patient.
            patient: name or number.
            split: that the row is in.
            known_by: says where the name comes from if it does not stand in the table.
        """
        first, line = self._of.setdefault(patient.casefold(), (split, row.line))
        if first != split:
            wrong = f"the patient of line {line} stands in the splits {first or 'none'} and {split or 'none'}"
            raise row.wrong(wrong + known_by)


def _plain(column: str) -> str:
    """``CO-RADS`` becomes ``co_rads``."""
    return column.strip().lower().replace("-", "_").replace(" ", "_")


def _names_patient(column: str) -> bool:
    """Whether a plain name says who a scan is of, whatever stands around it: ``patient_no.``."""
    return _PATIENT.fullmatch(re.sub(r"[\W_]+", "_", column).strip("_")) is not None


def _usual_names(columns: Sequence[str], rows: Sequence[Row]) -> dict[str, str]:
    """Of plain names the usual ones, so ``patient`` for ``patientid``.

    Where several mean the patient, the one of that name does, else one that is no name in letters, else the first; but
    one that is empty in all rows never does, as in tables that were anonymised. The others say nothing.
    """
    usual = {column: column for column in columns}
    for alias, name in ALIASES.items():
        if alias in columns and name not in columns:
            usual[alias] = name
    filled = [c for c in columns if _names_patient(c) and any(row.text(c) for row in rows)]
    if filled:
        if "patient" in columns:
            usual["patient"] = "patient (not used)"
        usual[min(filled, key=lambda column: (column != "patient", "name" in column))] = "patient"
    return usual
