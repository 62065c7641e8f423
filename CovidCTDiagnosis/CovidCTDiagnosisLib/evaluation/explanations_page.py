"""The table and the page of ``covid-ct evaluate explanations``."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from . import html_page
from .drawing import BLUE, GREEN, ORANGE, WIDTH, plain, svg
from .explanation_scores import (
    CT,
    DRAWS,
    GRADIENT,
    INPUTS,
    METHODS,
    RANDOM,
    RELEVANCE,
    SHARES,
    Localisation,
    Results,
)
from .markdown import write_markdown
from .metrics import Interval, interval_text
from .segmentation_targets import MET, MISSED, NOT_MEASURED

_STYLES = {RELEVANCE: (BLUE, "-", "o"), GRADIENT: (ORANGE, "--", "^"), RANDOM: (GREEN, ":", "s")}
_COLUMNS = ("What", "Relevance", "Gradient x input", "Random", "Target", "")
_NOTE = (
    "Expert slices: positive relevance in the expert's lesions, by the bundle's own lungs and lesion mask, whose "
    "networks may have learned from them. Flipping, randomisation and stability: held-out COVID-19 series; pixels of "
    "both inputs are made ordinary lung without a lesion, the most relevant first; layers are drawn anew "
    f"{DRAWS} times. Means with 95 % intervals of bootstrap replicates over slices or scans, and drawings."
)


class Row(NamedTuple):
    """One row, as text; ``measured`` in the order of ``METHODS``."""

    what: str
    measured: tuple[str, ...]
    target: str = ""
    verdict: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """One text per column."""
        return self.what, *self.measured, self.target, self.verdict


def rows(results: Results) -> list[Row]:
    """The table."""
    found = []
    for name, get in (
        ("Relevance mass in lesions", lambda r: r.mass),
        ("Relevance rank in lesions", lambda r: r.rank),
        ("Pointing game", lambda r: float(r.points)),
    ):
        for source in INPUTS:
            values = _localised(results, source, get)
            aimed = source == CT and name != "Pointing game"
            found.append(_row(f"{name}, {source}", values, aimed))
    areas = {m: np.array([f.area for f in results.flipping if f.method == m]) for m in METHODS}
    found.append(_row("Pixel flipping, area over the curve", areas, True))
    found += _randomisation_rows(results)
    stable = {m: np.array([s.correlation for s in results.stability if s.method == m]) for m in METHODS}
    found.append(_row("Stability under noise, rank correlation", stable, False))
    return found


def _localised(results: Results, source: str, get: Callable[[Localisation], float]) -> dict[str, np.ndarray]:
    chosen = [r for r in results.localisation if r.input == source]
    return {m: np.array([get(r) for r in chosen if r.method == m]) for m in METHODS}


def _row(what: str, values: dict[str, np.ndarray], aimed: bool) -> Row:
    """``aimed``: relevance should be better than gradient x input, in the mean."""
    measured = tuple(_mean_text(values[m]) for m in METHODS)
    if not aimed:
        return Row(what, measured)
    difference = values[RELEVANCE] - values[GRADIENT]
    if np.isnan(difference).all():
        return Row(what, measured, "above gradient x input", NOT_MEASURED)
    return Row(what, measured, "above gradient x input", MET if _mean(difference).value > 0 else MISSED)


def _layers(results: Results) -> list[str]:
    """In the order in which they were drawn anew."""
    return list(dict.fromkeys(r.layer for r in results.randomisation))


def _correlation_sizes(results: Results, layer: str, method: str) -> np.ndarray:
    """(scans, draws), 0 to 1: the same map with its sign turned is not another map."""
    found = [r for r in results.randomisation if (r.layer, r.method) == (layer, method)]
    scans = dict.fromkeys(r.scan for r in found)
    return np.abs([[r.correlation for r in found if r.scan == scan] for scan in scans])


def _randomisation_rows(results: Results) -> list[Row]:
    """After the first layer that was drawn anew, the classifier's last, and after all; the figure shows each."""
    layers = _layers(results)
    if not layers:
        return []
    size, verdict = _correlation_sizes(results, layers[0], RELEVANCE), NOT_MEASURED
    if not np.isnan(size).all():
        verdict = MET if np.nanmean(size) < 0.5 else MISSED
    return [
        Row(
            f"Last layer drawn anew ({layers[0]}), size of the rank correlation",
            _correlation_texts(results, layers[0]),
            "below 0.5",
            verdict,
        ),
        Row("All layers drawn anew, size of the rank correlation", _correlation_texts(results, layers[-1])),
    ]


def _correlation_texts(results: Results, layer: str) -> tuple[str, ...]:
    return *(_mean_text(_correlation_sizes(results, layer, m)) for m in (RELEVANCE, GRADIENT)), ""


def _mean_text(values: np.ndarray) -> str:
    """Empty where nothing was measured."""
    return "" if np.isnan(values).all() else interval_text(_mean(values))


def _mean(values: np.ndarray, replicates: int = 2000) -> Interval:
    """The mean of what is a number, with the percentile interval of bootstrap replicates.

    Args:
        values: (cases,) or (cases, draws); replicates draw cases, and draws as well.
        replicates: how many.
    """
    table = values[~np.isnan(values)][:, None] if values.ndim == 1 else values
    rng = np.random.default_rng(0)
    cases, draws = (rng.integers(n, size=(replicates, n)) for n in table.shape)
    means = np.nanmean(table[cases[:, :, None], draws[:, None]], axis=(1, 2))
    return Interval.of_draws(np.nanmean(table), means)


def print_table(results: Results) -> None:
    """On the terminal."""
    from .terminal import table_console

    console, frame = table_console()
    table = Table(*_COLUMNS, box=frame)
    for row in rows(results):
        table.add_row(*row.cells)
    console.print(table)
    print(_NOTE)


def write_table(results: Results, path: Path) -> None:
    """As Markdown."""
    write_markdown(path, _COLUMNS, [row.cells for row in rows(results)])


def page(results: Results) -> str:
    """Self-contained HTML: the table and its curves."""
    body = []
    for row in rows(results):
        kind = {MET: "met", MISSED: "not"}.get(row.verdict, "")
        cells = [
            f'<td data-name="{escape(n)}">{escape(c)}</td>' for n, c in zip(_COLUMNS[:-1], row.cells[:-1], strict=True)
        ]
        body.append(f'<tr>{"".join(cells)}<td class="{kind}">{escape(row.verdict)}</td></tr>')
    figures = [
        (flipping_figure(results), "Score of COVID-19 scans while the most relevant pixels are made ordinary."),
        (
            randomisation_figure(results),
            "What stays of the heatmap when layers are drawn anew, from the scores down.",
        ),
    ]
    return html_page.document(
        f"Heatmaps of {results.bundle}",
        [
            f"<p>{escape(_NOTE)}</p>",
            html_page.table(_COLUMNS, body, "targets"),
            *(html_page.figure(svg(figure), "svg+xml", caption) for figure, caption in figures),
        ],
    )


def flipping_figure(results: Results) -> Figure:
    """Mean drop of the score against the share of pixels flipped."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        curves = np.array([f.scores for f in results.flipping if f.method == method])
        colour, line, marker = _STYLES[method]
        axes.plot(100 * SHARES, (curves - curves[:, :1]).mean(0), line, color=colour, marker=marker, label=method)
    axes.set(xlabel="pixels of the lungs flipped, %", ylabel="change of the COVID-19 score")
    axes.legend(frameon=False)
    plain(axes)
    return figure


def randomisation_figure(results: Results) -> Figure:
    """Mean size of the rank correlation after each layer."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    layers = _layers(results)
    for method in (RELEVANCE, GRADIENT):
        colour, line, marker = _STYLES[method]
        sizes = [_correlation_sizes(results, layer, method) for layer in layers]
        means = [np.nan if np.isnan(size).all() else np.nanmean(size) for size in sizes]
        axes.plot(range(len(layers)), means, line, color=colour, marker=marker, label=method)
    axes.set(ylabel="size of the rank correlation", ylim=(0, 1.03))
    axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
    axes.legend(frameon=False)
    plain(axes)
    return figure
