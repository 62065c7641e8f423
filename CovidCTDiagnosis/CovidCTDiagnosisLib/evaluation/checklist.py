"""CLAIM, the checklist for AI in medical imaging (Mongan, Moy and Kahn 2020), filled with what is on record.

Numbers of STARD 2015, which STARD-AI extends, stand beside where an item is also there; what STARD alone asks for
follows. What no file knows is left to the authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

AUTHORS = "to be stated by the authors"


class Item(NamedTuple):
    """One item.

    Attributes:
        number: in CLAIM, or None.
        stard: in STARD 2015, or empty.
        what: is asked for.
    """

    number: int | None
    stard: str
    what: str

    @property
    def key(self) -> int | str:
        """Facts are known by this: the number in CLAIM, or else in STARD, as text."""
        return self.stard if self.number is None else self.number


ITEMS = tuple(
    Item(number, stard, what)
    for number, (stard, what) in enumerate(
        (
            ("1", "Named as a study of AI, with its category"),
            ("2", "Structured summary"),
            ("3", "Background, intended use and clinical role"),
            ("4", "Aims and hypotheses"),
            ("5", "Prospective or retrospective"),
            ("", "Goal of the study"),
            ("8", "Sources of data"),
            ("6", "Eligibility: how, where and when scans were chosen"),
            ("", "Preprocessing"),
            ("", "Subsets of the data"),
            ("", "Definitions of data elements"),
            ("", "De-identification"),
            ("16", "Missing data"),
            ("10b", "Reference standard"),
            ("11", "Why this reference standard"),
            ("", "Who annotated, with what qualification"),
            ("", "Annotation tools"),
            ("", "Variability between and within readers"),
            ("18", "Sample size and how it was chosen"),
            ("", "How data were split"),
            ("", "At which level splits are disjoint"),
            ("10a", "The model, in detail"),
            ("", "Software and its versions"),
            ("", "Initial weights"),
            ("", "Training"),
            ("", "How the final model was chosen"),
            ("", "Ensembles"),
            ("14", "Measures of performance"),
            ("", "Uncertainty and significance"),
            ("17", "Robustness and sensitivity analyses"),
            ("", "Explainability"),
            ("", "External validation"),
            ("19", "Flow of participants"),
            ("20", "Demographic and clinical characteristics of each split"),
            ("23", "Performance on all splits"),
            ("24", "Accuracy with intervals"),
            ("", "Failures"),
            ("26", "Limits: bias, uncertainty, generalisation"),
            ("27", "What follows for practice"),
            ("28", "Registration"),
            ("29", "Where protocol, code and data are"),
            ("30", "Funding"),
        ),
        start=1,
    )
) + tuple(
    Item(None, stard, what)
    for stard, what in (
        ("7", "How participants who might be eligible were identified"),
        ("9", "Whether they are a consecutive, random or convenience series"),
        ("12a", "What counts as positive, chosen beforehand or afterwards"),
        ("12b", "What counts as positive in the reference standard"),
        ("13a", "Whether clinical facts and the reference were known to those who performed the test"),
        ("13b", "Whether clinical facts and the test were known to those who assessed the reference"),
        ("15", "Indeterminate results"),
        ("21a", "Severity of disease in those who have it"),
        ("21b", "Other diagnoses in those who have not"),
        ("22", "Time and treatment between test and reference"),
        ("25", "Adverse events"),
    )
)

_ALWAYS: dict[int | str, str] = {
    28: "discrimination, calls at a threshold, calibration and net benefit: on this page",
    29: "95 % intervals on this page; scans count as independent patients",
    36: "on this page",
    37: "misjudged scans: on this page",
}


def filled(facts: Mapping[int | str, str]) -> list[tuple[Item, str]]:
    """Every item with what is known of it.

    Args:
        facts: by the item's key, what this report knows.
    """
    return [(item, facts.get(item.key, _ALWAYS.get(item.key, AUTHORS))) for item in ITEMS]
