"""``covid-ct evaluate report``: everything that a table of predictions tells, on one page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..bundle import Bundle
from ..errors import UsageError
from ..folders import write_text
from .checklist import AUTHORS, filled
from .checklist_facts import facts_of_bundle, facts_of_predictions
from .confusion import Confusion
from .drawing import svg
from .html_page import document, figure, table
from .metrics import Interval, interval_text
from .predictions import Prediction, Predictions, counted, log_odds
from .reliability import (
    brier_interval,
    calibration_error_by_chance,
    decision_curve,
    expected_calibration_error,
    reliability_curve,
)
from .report_figures import (
    co_rads_counts,
    decision_figure,
    group_bars,
    has_measure,
    involvement_boxes,
    reliability_figure,
    roc_figure,
)
from .roc import REPLICATES, delong, demidenko, false_positive_rate_at, roc

NOT_STATED = "not stated"
EXAMPLES = 3
"""Scans shown of each kind of call."""

POSITIVES_AT_95 = 40
"""COVID-19 scans from which on the bootstrap says well what happens where 0.95 of them are found."""

_CALLS = (
    ("False positives", 0, True),
    ("False negatives", 1, False),
    ("True positives", 1, True),
    ("True negatives", 0, False),
)


def report(
    predictions: Predictions,
    threshold: float,
    bundle: Bundle | None = None,
    pictures: Path | None = None,
    replicates: int = REPLICATES,
) -> str:
    """The page as HTML.

    Args:
        predictions: scans with their truth; those of the splits train and validation stand in the figure of
            involvement alone.
        threshold: COVID-19 is called from this probability on.
        bundle: what made the predictions, for the checklist.
        pictures: folder of PNG files named as the scans, for the examples.
        replicates: of the bootstrap.
    """
    tested = predictions.tested
    scans = tested.scans
    confusion = _confusion(scans, threshold)
    parts = [
        _facts(tested, threshold, len(predictions.scans) - len(scans)),
        *_discrimination(tested, confusion, threshold, replicates),
        *_probabilities(tested),
        *_groups(scans, threshold, "CO-RADS", lambda s: "" if s.co_rads is None else str(s.co_rads)),
        *_groups(scans, threshold, "Centre", lambda s: s.centre),
        *_involvement(predictions.scans),
        *_examples(scans, threshold, pictures),
        _checklist(predictions, confusion, threshold, bundle),
    ]
    return document("COVID-19 diagnosis", parts)


def _confusion(scans: Sequence[Prediction], threshold: float) -> Confusion:
    return Confusion.of(np.array([s.is_called(threshold) for s in scans]), np.array([s.covid for s in scans]))


def _facts(predictions: Predictions, threshold: float, learned: int) -> str:
    covid = int(predictions.covid.sum())
    text = (
        f"{len(predictions.scans)} scans, {covid} of them COVID-19; called COVID-19 from a probability of "
        f"{threshold:g} on. Intervals are of 95 % and take scans for independent patients."
    )
    if learned:
        text += f" {learned} scans for training or validation count nowhere but in the figure of involvement."
    warned = sum(s.warned for s in predictions.scans)
    if warned:
        text += f" Of {warned} the program warned not to rely on the probability; they count like the others."
    judged = sorted({s.split or NOT_STATED for s in predictions.scans})
    if judged != [NOT_STATED]:
        text += f" They are of the split {', '.join(judged)}."
    return f"<p>{escape(text + _undiagnosed(predictions, threshold))}</p>"


def _undiagnosed(predictions: Predictions, threshold: float) -> str:
    """That some scans have no answer, and what becomes of the rest's sensitivity and specificity if they count."""
    lost = predictions.undiagnosed
    if not lost:
        return ""
    names = ", ".join(s.name for s in lost[:10]) + (" …" if len(lost) > 10 else "")
    covid = sum(s.covid for s in lost)
    found = _confusion(predictions.scans, threshold)
    missed = found._replace(
        false_negative=found.false_negative + covid, false_positive=found.false_positive + len(lost) - covid
    )
    return (
        f" {len(lost)} more ({covid} COVID-19) have no probability and count nowhere: {names}. Were all of them called "
        f"wrongly, sensitivity would be {missed.sensitivity.value:.3f} and specificity {missed.specificity.value:.3f}."
    )


def _rows(values: Sequence[tuple[str, str]]) -> list[str]:
    return [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in values]


def _discrimination(predictions: Predictions, confusion: Confusion, threshold: float, replicates: int) -> list[str]:
    probability, covid = predictions.probability, predictions.covid
    values = _areas(probability, covid)
    area = f"AUC {values[0][1]}" if values else "ROC"
    at_95 = interval_text(false_positive_rate_at(probability, covid, 0.95, replicates))
    if covid.sum() < POSITIVES_AT_95:
        at_95 += f" (a rough interval: below {POSITIVES_AT_95} COVID-19 scans hardly one is missed)"
    values += [
        ("False positive rate where sensitivity is 0.95", at_95),
        *((name.capitalize(), interval_text(getattr(confusion, name))) for name in ("sensitivity", "specificity")),
        ("Accuracy", interval_text(confusion.accuracy)),
        ("F1", interval_text(confusion.f1)),
        ("True and false positives", f"{confusion.true_positive} and {confusion.false_positive}"),
        ("True and false negatives", f"{confusion.true_negative} and {confusion.false_negative}"),
    ]
    call = (1 - confusion.specificity.value, confusion.sensitivity.value)
    drawn = roc_figure(roc(probability, covid, replicates), area, call)
    caption = f"ROC curve; the band holds 95 % of {replicates} stratified bootstrap replicates."
    if min(covid.sum(), (1 - covid).sum()) < POSITIVES_AT_95:
        caption += f" With fewer than {POSITIVES_AT_95} scans of either kind it is too narrow."
    return [
        "<h2>How well it tells them apart</h2>",
        table(("Measure", f"Value, at threshold {threshold:g}"), _rows(values), "sources"),
        figure(svg(drawn), "svg+xml", caption),
    ]


def _areas(probability: np.ndarray, covid: np.ndarray) -> list[tuple[str, str]]:
    """Areas under the curve with their intervals, as far as the scans allow."""
    found = []
    odds = log_odds(probability)  # nearer to normal than probabilities
    areas = (
        ("AUC (DeLong)", delong, probability, ""),
        ("AUC (binormal, Demidenko)", demidenko, odds, "; supposes that the log odds of either kind are normal"),
    )
    for name, area, scores, supposed in areas:
        with contextlib.suppress(ValueError):
            found.append((name, interval_text(area(scores, covid)) + supposed))
    return found


def _probabilities(predictions: Predictions) -> list[str]:
    probability, covid = predictions.probability, predictions.covid
    values = [
        ("Brier score", interval_text(brier_interval(probability, covid))),
        ("Expected calibration error", f"{expected_calibration_error(probability, covid):.3f}"),
        ("The same by chance, were all probabilities right", f"{calibration_error_by_chance(probability):.3f}"),
    ]
    return [
        "<h2>Whether probabilities mean what they say</h2>",
        table(("Measure", "Value"), _rows(values), "sources"),
        figure(
            svg(reliability_figure(reliability_curve(probability, covid))),
            "svg+xml",
            "Reliability: share of COVID-19 among scans of about one probability; numbers count scans.",
        ),
        figure(
            svg(decision_figure(decision_curve(probability, covid))),
            "svg+xml",
            "Decision curve: what acting from a probability on is worth, true positives a scan.",
        ),
    ]


def _groups(scans: Sequence[Prediction], threshold: float, name: str, key: Callable[[Prediction], str]) -> list[str]:
    """A table and figures of each group, if the predictions name any."""
    known = [s for s in scans if key(s)]
    if not known:
        return []
    names = sorted({key(s) or NOT_STATED for s in scans}, key=lambda name: (name == NOT_STATED, name))
    groups = [(g, _confusion([s for s in scans if (key(s) or NOT_STATED) == g], threshold)) for g in names]
    body = [
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in (group, str(sum(found)), *_measures(found))) + "</tr>"
        for group, found in groups
    ]
    parts = [
        f"<h2>By {escape(name if name.isupper() or '-' in name else name.lower())}</h2>",
        table((name, "Scans", "Accuracy", "Sensitivity", "Specificity"), body, "sources"),
        figure(svg(group_bars(groups, name)), "svg+xml", f"Accuracy, sensitivity and specificity by {name}."),
    ]
    if name == "CO-RADS":
        caption = f"{counted(known).capitalize()} by CO-RADS class and status."
        parts.append(figure(svg(co_rads_counts(known)), "svg+xml", caption))
    return parts


def _measures(confusion: Confusion) -> list[str]:
    return [
        interval_text(getattr(confusion, measure)) if has_measure(confusion, measure) else "-"
        for measure in ("accuracy", "sensitivity", "specificity")
    ]


def _involvement(scans: Sequence[Prediction]) -> list[str]:
    if all(s.involvement_percent is None for s in scans):
        return []
    caption = "Percentage of involvement by split and status."
    return ["<h2>Involvement</h2>", figure(svg(involvement_boxes(scans)), "svg+xml", caption)]


def _examples(scans: Sequence[Prediction], threshold: float, pictures: Path | None) -> list[str]:
    """The surest scans of each kind of call, wrong ones first (figure 9 of the paper)."""
    known = {path.stem: path for path in pictures.glob("*.png")} if pictures else {}
    parts = ["<h2>Examples</h2>"]
    for title, covid, called in _CALLS:
        chosen = [s for s in scans if s.covid == covid and s.is_called(threshold) == called]
        chosen = sorted(chosen, key=lambda s: s.probability, reverse=called)[:EXAMPLES]
        parts.append(f"<h3>{title}</h3>")
        if not chosen:
            parts.append("<p>None.</p>")
        parts += [_example(scan, known) for scan in chosen]
    return parts


def _example(scan: Prediction, pictures: dict[str, Path]) -> str:
    caption = f"{scan.name}: probability {scan.probability:.4f}"
    if scan.name not in pictures:
        return f"<p>{escape(caption)}</p>"
    return figure(pictures[scan.name].read_bytes(), "png", caption)


def _checklist(predictions: Predictions, confusion: Confusion, threshold: float, bundle: Bundle | None) -> str:
    sources = [facts_of_predictions(predictions, confusion, threshold), *([facts_of_bundle(bundle)] if bundle else [])]
    facts = {key: "; ".join(s[key] for s in sources if key in s) for key in set().union(*sources)}
    body = []
    for item, text in filled(facts):
        state = ' class="not"' if AUTHORS in text else ""
        body.append(
            f"<tr><td>{item.number or ''}</td><td>{item.stard}</td><td>{escape(item.what)}</td>"
            f"<td><span{state}>{escape(text)}</span></td></tr>"
        )
    head = "<h2>Checklist: CLAIM, with the numbers of STARD</h2>"
    return head + table(("CLAIM", "STARD", "Item", "On record"), body, "sources")


def write_report(
    predictions: Predictions, threshold: float, path: Path, bundle: Bundle | None = None, pictures: Path | None = None
) -> None:
    """Write the page, and print the numbers that matter most.

    Args:
        predictions, threshold, bundle, pictures: see ``report``.
        path: HTML file.

    Raises:
        UsageError: the file cannot be an HTML page, or there is no such folder of pictures.
    """
    if path.suffix.lower() not in (".html", ".htm") or not path.resolve().parent.is_dir():
        raise UsageError(f"{path} cannot be a page.", "Give a .html file in a folder that exists.")
    if pictures is not None and not pictures.is_dir():
        raise UsageError(f"There is no folder {pictures}.", "Give a folder of PNG files, or leave out --pictures.")
    page = report(predictions, threshold, bundle, pictures)
    tested = predictions.tested
    write_text(path, page)
    print(f"{len(tested.scans)} scans ({tested.covid.sum()} COVID-19), threshold {threshold:g}, 95 % intervals")
    for name, interval in _summary(tested, threshold):
        print(f"  {name:36} {interval_text(interval)}")
    print(f"Page: {path}")


def _summary(predictions: Predictions, threshold: float) -> list[tuple[str, Interval]]:
    """What a terminal shows."""
    confusion = _confusion(predictions.scans, threshold)
    measures = [("sensitivity", confusion.sensitivity), ("specificity", confusion.specificity), ("F1", confusion.f1)]
    with contextlib.suppress(ValueError):
        measures.insert(0, ("AUC", delong(predictions.probability, predictions.covid)))
    return measures
