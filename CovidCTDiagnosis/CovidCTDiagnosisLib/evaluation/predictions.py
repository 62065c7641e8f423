"""A table of predictions beside the truth: what ``covid-ct diagnose-series`` writes, with columns added by hand.

==================================  =====================================================================
series or scan                      name, once each
probability                         of COVID-19, 0 to 1; rows without one count as not diagnosed
covid                               truth: 1 COVID-19, 0 not
co_rads, centre, split, patient     optional: 0 to 6; any text
involvement_percent                 optional: lesions' share of the lungs
label, warnings, bundle             optional, as written: what the scan was called, why not to rely on it, and
                                    what made the row (``Bundle.identity``)
==================================  =====================================================================

Splits in whose names a word begins with train, trn or dev, and those with val, calib or tun, are what a bundle has
learned from and was fitted to, in any case of letters ("Training set 2", "valset"); rows of another split, or of none,
are taken for tests. "External validation" may mean either, and is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import logit

from ..bundle import Bundle
from ..errors import InputError
from ..pipeline.appearance import UNRELIABLE
from ..tables import Row, Splits, read_rows, require_columns

NAMES = ("series", "scan")
ROUNDED = 1e-4
"""Half of a table's last digit, and some more: so near the threshold only the label tells what was called."""
SMALLEST = 1e-4
"""Probabilities closer to 0 or 1 than this are not told apart in a table."""
CALLS = {"covid-19": True, "not covid-19": False}
"""What ``covid-ct diagnose-series`` writes into the column label."""
TRAINING = ("train", "trn", "dev")
VALIDATION = ("val", "calib", "tun")
TEST, ELSEWHERE = ("test",), ("external", "temporal", "geographic", "independent", "prospective")
"""How words begin with which tables call the scans that a bundle learned from, those that its probability was fitted
to, and the others. Of validation elsewhere or later, nobody knows which of the two is meant."""


@dataclass(frozen=True)
class Prediction:
    """One scan.

    Attributes:
        name: of the scan.
        probability: of COVID-19.
        covid: truth, 1 or 0.
        co_rads: 0 to 6, or None.
        centre: as in the table, empty where not stated.
        split: in small letters, empty where not stated.
        involvement_percent: or None.
        patient: in small letters, empty where not stated; never written anywhere.
        called: COVID-19 or not, by the table; None where not stated.
        warned: the program said that the probability is not to be relied on.
        bundle: what made the prediction, empty where not stated.
    """

    name: str
    probability: float
    covid: int
    co_rads: int | None = None
    centre: str = ""
    split: str = ""
    involvement_percent: float | None = None
    patient: str = ""
    called: bool | None = None
    warned: bool = False
    bundle: str = ""

    def is_called(self, threshold: float) -> bool:
        """Whether this threshold calls it COVID-19; what the table calls it counts where rounding hides that."""
        if self.called is not None and abs(self.probability - threshold) <= ROUNDED:
            return self.called
        return self.probability >= threshold

    @property
    def is_training(self) -> bool:
        """Whether a bundle has learned from it."""
        return _names(self.split, TRAINING)

    @property
    def is_validation(self) -> bool:
        """Whether a bundle was fitted to it."""
        return _names(self.split, VALIDATION)


def _names(split: str, words: Sequence[str]) -> bool:
    """Whether a word of a split's name begins like one of these: trainset, valset."""
    return any(word.startswith(tuple(words)) for word in re.findall("[a-z]+", split))


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Of probabilities as a table tells them, none of them 0 or 1."""
    odds: np.ndarray = logit(np.clip(probability, SMALLEST, 1 - SMALLEST))
    return odds


def counted(scans: Sequence[Prediction]) -> str:
    """What counts as one: ``patients`` where each scan names one, else ``scans``."""
    return "patients" if all(s.patient for s in scans) else "scans"


@dataclass(frozen=True)
class Predictions:
    """All scans of a table.

    Attributes:
        scans: those that have a probability.
        undiagnosed: the others, their probability not a number.
    """

    scans: list[Prediction]
    undiagnosed: list[Prediction]

    @property
    def tested(self) -> Predictions:
        """Without the scans that a bundle was trained with or fitted to, by their split.

        Raises:
            InputError: one of the two kinds of cases is missing then.
        """
        return self._only(lambda scan: not (scan.is_training or scan.is_validation))

    @property
    def to_fit(self) -> Predictions:
        """Those for validation; where no split is called so, all that were not trained with.

        Raises:
            InputError: one of the two kinds of cases is missing then.
        """
        if any(s.is_validation for s in self.scans):
            return self._only(lambda scan: scan.is_validation)
        return self._only(lambda scan: not scan.is_training)

    def made_by(self, bundle: Bundle) -> bool:
        """Whether the table says of each scan that this bundle made its prediction.

        Raises:
            InputError: it says of one that another did.
        """
        others = {s.bundle for s in self.scans if s.bundle and not bundle.predicts_as(s.bundle)}
        if others:
            raise InputError(
                f"The predictions are of the bundle {min(others)}, not of {bundle.identity}.",
                "Give the bundle that made them with --bundle.",
            )
        return all(s.bundle for s in self.scans)

    def require_called_at(self, threshold: float) -> None:
        """Raise InputError if a label of the table is not what this threshold gives."""
        for scan in self.scans:
            if scan.called is not None and scan.called != scan.is_called(threshold):
                raise InputError(
                    f"The predictions are of another bundle: this one's threshold is {threshold:.3f}, but a scan of "
                    f"probability {scan.probability:g} is labelled {'' if scan.called else 'not '}COVID-19.",
                    "Give the bundle that made them with --bundle.",
                )

    def _only(self, wanted: Callable[[Prediction], bool]) -> Predictions:
        scans = [s for s in self.scans if wanted(s)]
        if len({s.covid for s in scans}) < 2:
            left_out = ", ".join(sorted({s.split or "none" for s in self.scans if not wanted(s)}))
            raise InputError(
                f"Without the scans of the split {left_out} no COVID-19 or no other scan is left.",
                "Add more scans, or correct the column split.",
            )
        return Predictions(scans, [s for s in self.undiagnosed if wanted(s)])

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
    columns, rows = read_rows(path)
    name = next((n for n in NAMES if n in columns), NAMES[0])
    remedy = "Give the table of covid-ct diagnose-series with a column covid, 1 for COVID-19 and 0 for not."
    require_columns(path, columns, (name, "probability", "covid"), remedy)
    return _checked(path.name, name, rows)


def _checked(table: str, name: str, rows: list[Row]) -> Predictions:
    scans: list[Prediction] = []
    undiagnosed: list[Prediction] = []
    seen: set[str] = set()
    splits = Splits()
    for row in rows:
        scan = row.text(name)
        if not scan or scan in seen:
            raise row.wrong(f"{name} {scan or 'is empty'}" + (" stands twice" if scan else ""))
        seen.add(scan)
        if row.text("patient"):
            splits.put(row, row.text("patient"), row.text("split").lower())
        prediction = _prediction(scan, row)
        (undiagnosed if math.isnan(prediction.probability) else scans).append(prediction)
    if len({s.covid for s in scans}) < 2:
        raise InputError(f"{table} needs COVID-19 and other scans with a probability.", "Add more scans.")
    return Predictions(scans, undiagnosed)


def _prediction(name: str, row: Row) -> Prediction:
    covid, probability, split = row.flag("covid"), row.number("probability", 0, 1), row.text("split").lower()
    if _names(split, (*TEST, *ELSEWHERE)) and _names(split, (*TRAINING, *VALIDATION)):
        raise row.wrong(f"the split is {split}: to learn from, or to test on")
    return Prediction(
        name,
        math.nan if probability is None else probability,
        int(covid),
        row.whole_number("co_rads", 0, 6),
        row.text("centre"),
        split,
        row.number("involvement_percent", 0, 100),
        row.text("patient").casefold(),
        CALLS.get(row.text("label").lower()),
        UNRELIABLE in row.text("warnings"),
        row.text("bundle"),
    )
