"""Figures of the segmentation page; see ``drawing``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..ct.windows import LUNG_WINDOW
from ..pipeline.slices import NOMINAL_PIXEL_MM
from ..training.sources import Case
from .drawing import BLUE, GREEN, ORANGE, SKY, WIDTH, YELLOW, plain
from .metrics import BoundaryErrors
from .segmentation_scores import CONSOLIDATION, GROUND_GLASS, LESION, SliceScore, ThresholdCurve
from .segmentation_targets import overlaps_of

MASKS = (LESION, GROUND_GLASS, CONSOLIDATION)

_VARIANTS = ((True, "with machine masks", BLUE, "o"), (False, "without", ORANGE, "^"))
_LINES = {LESION: (BLUE, "-"), GROUND_GLASS: (ORANGE, "--"), CONSOLIDATION: (GREEN, ":")}


def fold_boxes(scores: Sequence[SliceScore]) -> Figure:
    """Dice of every slice by fold, with and without machine masks: one row per mask, boxes under the points."""
    figure = Figure((WIDTH, 8.5), layout="constrained")
    folds = sorted({s.fold for s in scores})
    for axes, mask in zip(figure.subplots(len(MASKS), 1, sharex=True), MASKS, strict=True):
        for side, (kind, label, colour, marker) in zip((-0.2, 0.2), _VARIANTS, strict=True):
            first = True
            for fold in folds:
                chosen = [s for s in scores if s.fold == fold and s.machine_masks is kind]
                values = [o.dice for o in overlaps_of(chosen, mask)]
                if values:
                    _box(axes, fold + 1 + side, values, colour, marker, label if first else None)
                    first = False
        axes.set(ylabel=f"Dice, {mask}", ylim=(-0.03, 1.03))
        plain(axes)
    axes.set(xlabel="fold", xticks=[f + 1 for f in folds], xticklabels=[str(f + 1) for f in folds])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=2)
    return figure


def _box(axes: Axes, x: float, values: list[float], colour: str, marker: str, label: str | None) -> None:
    axes.boxplot(
        values,
        positions=[x],
        widths=0.3,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.2},
        medianprops={"color": colour},
    )
    spread = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else [0.0]
    axes.scatter(x + np.asarray(spread), values, s=14, color=colour, marker=marker, label=label, zorder=3)


def dice_by_size(scores: Sequence[SliceScore]) -> Figure:
    """Dice of the lesion mask against the expert's lesion size."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    for kind, label, colour, marker in _VARIANTS:
        overlaps = overlaps_of([s for s in scores if s.machine_masks is kind], LESION)
        if overlaps:
            sizes = [o.expert * NOMINAL_PIXEL_MM**2 / 100 for o in overlaps]
            axes.scatter(sizes, [o.dice for o in overlaps], s=22, color=colour, marker=marker, label=label, alpha=0.8)
    axes.set(
        xscale="log",
        xlabel=f"expert's lesion, cm² at a nominal pixel of {NOMINAL_PIXEL_MM} mm",
        ylabel="Dice, lesion",
        ylim=(-0.03, 1.03),
    )
    axes.legend(loc="lower right", frameon=False)
    plain(axes)
    return figure


def share_above(scores: Sequence[SliceScore]) -> Figure:
    """Share of slices whose Dice reaches a value, for each mask; of one kind of training."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    for mask, (colour, style) in _LINES.items():
        values = np.sort([o.dice for o in overlaps_of(scores, mask)])
        if len(values):
            reached = 1 - np.arange(len(values) + 1) / len(values)
            axes.step([0, *values], reached, where="post", color=colour, linestyle=style, label=mask)
    axes.set(xlabel="Dice", ylabel="share of slices that reach it", xlim=(0, 1), ylim=(0, 1.03))
    axes.legend(loc="lower left", frameon=False)
    plain(axes)
    return figure


def threshold_curves(curves: Sequence[ThresholdCurve]) -> Figure:
    """Mean lesion Dice against the threshold of the lesion probability; marks stand at the folds' thresholds."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    for kind, label, colour, marker in _VARIANTS:
        for curve in (c for c in curves if c.machine_masks is kind):
            axes.plot(curve.thresholds, curve.mean_dice, color=colour, label=label)
            at = np.interp(curve.chosen, curve.thresholds, curve.mean_dice)
            axes.scatter(curve.chosen, at, color=colour, marker=marker, zorder=3)
    axes.set(xlabel="threshold of the lesion probability", ylabel="mean Dice", ylim=(0, 1))
    axes.legend(loc="lower left", frameon=False)
    plain(axes)
    return figure


def boundary_bars(errors: BoundaryErrors) -> Figure:
    """Share of wrong voxels by distance from the lungs' boundary, and the share of all errors within it."""
    edges, wrong = np.asarray(errors.edges_mm), np.asarray(errors.wrong)
    centres = (edges[:-1] + edges[1:]) / 2
    share = wrong / np.maximum(errors.voxels, 1)
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    inside = centres < 0
    axes.bar(centres[inside], 100 * share[inside], 0.9, color=BLUE, label="lung missed")
    axes.bar(centres[~inside], 100 * share[~inside], 0.9, color=ORANGE, hatch="//", label="taken for lung")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="mm from the expert's boundary (negative: inside the lungs; outermost bars: and beyond)",
        ylabel="wrong voxels, %",
    )
    axes.legend(frameon=False)
    plain(axes)
    return figure


def slice_triptych(case: Case, lesions: np.ndarray) -> Figure:
    """A slice as it is, with the expert's lesions and with those found, side by side.

    Args:
        case: an expert slice.
        lesions: lesion classes found, (J, I).
    """
    assert case.labels is not None
    rows, columns = case.hu.shape[1:]
    figure = Figure((WIDTH, WIDTH / 3 * rows / columns + 0.3), layout="constrained")
    titles = ("CT", "expert", "found")
    for axes, title, labels in zip(figure.subplots(1, 3), titles, (None, case.labels[0], lesions), strict=True):
        axes.imshow(case.hu[0], cmap="gray", vmin=LUNG_WINDOW[0], vmax=LUNG_WINDOW[1], interpolation="nearest")
        if labels is not None:
            _contour(axes, labels > 0, YELLOW, "solid")
            _contour(axes, labels == 2, SKY, "dashed")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def _contour(axes: Axes, mask: np.ndarray, colour: str, style: str) -> None:
    if mask.any():
        axes.contour(mask, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.2)
