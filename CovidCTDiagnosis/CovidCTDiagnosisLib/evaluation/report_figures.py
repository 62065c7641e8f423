"""Figures of the diagnosis report; see ``drawing``. Numbers of figures in brackets are the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .confusion import Confusion
from .drawing import BLUE, GREEN, ORANGE, WIDTH, as_written, plain
from .predictions import Prediction, counted
from .reliability import Bin, NetBenefit
from .roc import GRID, Roc

_STATUS = ((1, "COVID-19", ORANGE, "//"), (0, "not COVID-19", BLUE, ""))


def _axes(width: float = WIDTH, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def roc_figure(curve: Roc, area: str, call: tuple[float, float]) -> Figure:
    """ROC curve with its 95 % band (figures 5 and 7).

    Args:
        curve: what to draw.
        area: text for the legend.
        call: false and true positive rate at the threshold in use.
    """
    figure, axes = _axes(5.0, 5.0)
    axes.fill_between(GRID, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0, label="95 % band")
    # Straight from corner to corner: where cases are tied the area lies below the slope.
    axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=BLUE, label=area)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.plot(*call, color=ORANGE, marker="D", linestyle="none", label="threshold in use")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(loc="lower right", frameon=False)
    return figure


def reliability_figure(curve: Sequence[Bin]) -> Figure:
    """Share of COVID-19 cases against the predicted probability, with intervals; the number of cases at each point."""
    figure, axes = _axes(5.0, 5.0)
    x = [b.predicted for b in curve]
    y = np.array([b.observed.value for b in curve])
    errors = np.clip([y - [b.observed.low for b in curve], [b.observed.high for b in curve] - y], 0, None)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.errorbar(x, y, yerr=errors, color=BLUE, marker="o", linestyle="-", capsize=3)
    for b in curve:
        axes.annotate(
            str(b.cases), (b.predicted, b.observed.value), textcoords="offset points", xytext=(6, -10), size=8
        )
    axes.set(xlabel="predicted probability", ylabel="share that is COVID-19", xlim=(0, 1), ylim=(-0.02, 1.02))
    return figure


def decision_figure(curve: NetBenefit) -> Figure:
    """Net benefit against the threshold probability."""
    figure, axes = _axes(height=3.5)
    axes.plot(curve.thresholds, curve.model, color=BLUE, label="by the program")
    axes.plot(curve.thresholds, curve.everybody, color=ORANGE, linestyle="--", label="all taken for COVID-19")
    axes.axhline(0, color="grey", linestyle=":", label="none taken for COVID-19")
    top = max(float(np.max(curve.model)), float(np.max(curve.everybody)), 0.05)
    axes.set(xlabel="threshold probability", ylabel="net benefit a case", xlim=(0, 1), ylim=(-0.25 * top, 1.1 * top))
    axes.legend(frameon=False)
    return figure


def co_rads_counts(scans: Sequence[Prediction]) -> Figure:
    """Patients (see ``counted``) by CO-RADS class and status (figure 2)."""
    figure, axes = _axes(height=3.0)
    classes = sorted({s.co_rads for s in scans if s.co_rads is not None})
    below = np.zeros(len(classes))
    unit = "patient" if counted(scans) == "patients" else "name"
    for covid, name, colour, hatch in _STATUS:
        of_status = [s for s in scans if s.covid == covid]
        counts = np.array([len({getattr(s, unit) for s in of_status if s.co_rads == c}) for c in classes])
        axes.bar(range(len(classes)), counts, bottom=below, color=colour, hatch=hatch, edgecolor="white", label=name)
        below += counts
    axes.set(xticks=range(len(classes)), xticklabels=[str(c) for c in classes], xlabel="CO-RADS", ylabel=counted(scans))
    _legend_above(axes, 2)
    return figure


def group_bars(groups: Sequence[tuple[str, Confusion]], name: str) -> Figure:
    """Accuracy, sensitivity and specificity of each group, with intervals (figure 6)."""
    figure, axes = _axes(height=3.5)
    measures = (("accuracy", GREEN, "o"), ("sensitivity", ORANGE, "^"), ("specificity", BLUE, "s"))
    for shift, (measure, colour, marker) in zip((-0.2, 0.0, 0.2), measures, strict=True):
        points = [
            (place + shift, getattr(confusion, measure))
            for place, (_, confusion) in enumerate(groups)
            if has_measure(confusion, measure)
        ]
        if points:
            y = np.array([i.value for _, i in points])
            errors = np.clip([y - [i.low for _, i in points], [i.high for _, i in points] - y], 0, None)
            x = [place for place, _ in points]
            axes.errorbar(x, y, yerr=errors, color=colour, marker=marker, linestyle="none", capsize=3, label=measure)
    axes.set(xticks=range(len(groups)), xticklabels=[as_written(g) for g, _ in groups], xlabel=name, ylim=(-0.02, 1.02))
    _legend_above(axes, 3)
    return figure


def has_measure(confusion: Confusion, measure: str) -> bool:
    """Whether a group has the cases that the measure divides by."""
    covid = confusion.true_positive + confusion.false_negative
    other = confusion.true_negative + confusion.false_positive
    return bool({"accuracy": covid + other, "sensitivity": covid, "specificity": other}[measure])


def involvement_boxes(scans: Sequence[Prediction]) -> Figure:
    """Percentage of involvement by split and status (figure 1)."""
    figure, axes = _axes(height=3.5)
    known = [(s.split, s.covid, s.involvement_percent) for s in scans if s.involvement_percent is not None]
    splits = sorted({split for split, *_ in known})
    for shift, (covid, name, colour, _) in zip((-0.2, 0.2), _STATUS, strict=True):
        for place, split in enumerate(splits):
            values = [percent for where, status, percent in known if (where, status) == (split, covid)]
            if values:
                axes.boxplot(
                    values,
                    positions=[place + shift],
                    widths=0.3,
                    patch_artist=True,
                    manage_ticks=False,
                    boxprops={"facecolor": colour, "alpha": 0.4},
                    medianprops={"color": "black"},
                )
        axes.plot([], [], color=colour, linewidth=6, alpha=0.4, label=name)
    unnamed = "not stated" if any(splits) else "all"
    names = [as_written(s or unnamed) for s in splits]
    axes.set(xticks=range(len(splits)), xticklabels=names, xlabel="split", ylabel="lesions, % of the lungs")
    _legend_above(axes, 2)
    return figure
