"""The page of ``covid-ct evaluate segmentation``: one HTML file with all figures inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..folders import write_text
from ..training.sources import Case
from .drawing import png, svg
from .grid_ceiling import GridCeiling
from .html_page import document, figure, table
from .metrics import BoundaryErrors
from .segmentation_figures import (
    boundary_bars,
    dice_by_size,
    fold_boxes,
    share_above,
    slice_triptych,
    threshold_curves,
)
from .segmentation_scores import LESION, LUNGS, Results, SliceScore, mask_path, precision_key
from .segmentation_targets import MET, Row

WORST = 8

_PLANTED = (
    "Real: the 8-bit slices of COVID-19 CTs and their lesions, marked by experts or by a machine, and every CT. "
    "Planted: part of the lesions that the networks learn from, ground-glass, consolidation, crazy paving and "
    "combined pattern as textures in healthy lung of real CTs. Crazy paving and the combined pattern have no expert "
    "labels here: they are known from planted lesions alone (covid-ct evaluate planted tells what such are called). "
    "Everything on this page is measured on real images against experts."
)
_LEAK = (
    "The machine masks were drawn by a network that had learned from all expert slices, the held-out ones too: scores "
    "with them leak a little, so those of networks that never saw them stand beside. Both kinds of networks share no "
    "slice of the fold on which they are scored, and neighbouring slice numbers are in one fold, as they may be one "
    "patient. Intervals draw slices as if they were independent patients, so they are rather too narrow."
)


def write_page(results: Results, rows: Sequence[Row], cases: Sequence[Case], masks: Path, path: Path) -> None:
    """Write the page.

    Args:
        results: what was measured.
        rows: the table of targets.
        cases: expert slices, for pictures of the worst; without them the page has none.
        masks: folder of the lesion classes found.
        path: HTML file.
    """
    title = f"Segmentation by {results.bundle['name']} {results.bundle['version']}"
    parts = [
        _targets(rows),
        *_folds(results),
        *_worst(worst_slices(results.folds), cases, masks),
        *_boundary(results.ct.boundary),
        *_grids(results),
        *_training(results),
    ]
    write_text(path, document(title, parts))


def shown(scores: Sequence[SliceScore]) -> list[SliceScore]:
    """Those of networks that learned from machine masks, or of the others where there are no such."""
    return [s for s in scores if s.machine_masks] or list(scores)


def _kind(scores: Sequence[SliceScore]) -> str:
    return f"{'with' if any(s.machine_masks for s in scores) else 'without'} machine masks"


def worst_slices(scores: Sequence[SliceScore]) -> list[SliceScore]:
    """The ``WORST`` slices by lesion Dice, worst first, of the kind of training that figures show."""
    return sorted(shown(scores), key=lambda s: s.overlaps[LESION].dice)[:WORST]


def _targets(rows: Sequence[Row]) -> str:
    names = ("What", "Measured, 95 % interval", "Without machine masks", "Target", "Verdict", "Anchors")
    body = []
    for row in rows:
        cells = (
            f'{escape(row.what)}<div class="beside">{escape(row.where)}</div>',
            f'{escape(row.measured)}<div class="beside">{escape(row.beside)}</div>',
            escape(row.without),
            escape(row.target),
            f'<span class="{"met" if row.verdict == MET else "not"}">{escape(row.verdict)}</span>',
            escape(row.anchors),
        )
        tds = "".join(f'<td data-name="{name}">{cell}</td>' for name, cell in zip(names, cells, strict=True))
        body.append(f"<tr>{tds}</tr>")
    return table(names, body, "targets")


def _folds(results: Results) -> list[str]:
    scores, curves = results.folds, results.curves
    if not scores:
        return ["<h2>Expert slices</h2><p>Not measured: no folds have been trained and scored in this folder.</p>"]
    return [
        "<h2>Expert slices, five folds</h2>",
        f"<p>{escape(_LEAK)} {escape(_precisions(results))}</p>",
        figure(svg(fold_boxes(scores)), "svg+xml", "Dice of every slice: a point a slice, boxes with median, by fold."),
        figure(svg(share_above(shown(scores))), "svg+xml", f"Share of slices that reach a Dice, {_kind(scores)}."),
        figure(
            svg(threshold_curves(curves)),
            "svg+xml",
            "Mean Dice of the lesion mask against the threshold of its probability, over all slices. The numbers above "
            "use for each fold the threshold that serves the other folds best: the marks.",
        ),
        figure(svg(dice_by_size(scores)), "svg+xml", "Dice of the lesion mask against the size of the lesion."),
    ]


def _precisions(results: Results) -> str:
    """In which precision each kind of networks that were scored was trained."""
    kinds = sorted({score.machine_masks for score in results.folds}, reverse=True)
    told = {kind: results.folds_made.get(precision_key(kind), "an unknown precision") for kind in kinds}
    parts = (f"{'with' if kind else 'without'} machine masks in {precision}" for kind, precision in told.items())
    return f"Trained {', '.join(parts)} (3-D networks on a processor always in 32-true)."


def _worst(scores: Sequence[SliceScore], cases: Sequence[Case], masks: Path) -> list[str]:
    by_name = {case.name: case for case in cases}
    drawn = [(s, by_name[s.name]) for s in scores if s.name in by_name and mask_path(masks, s).is_file()]
    if not drawn:
        return []
    parts = [
        "<h2>Where the networks are worst</h2>",
        f"<p>Yellow: lesion; light blue, dashed: consolidation. Worst lesion Dice first, {_kind(scores)}.</p>",
    ]
    for score, case in drawn:
        with Image.open(mask_path(masks, score)) as image:
            lesions = np.asarray(image)
        parts.append(figure(png(slice_triptych(case, lesions)), "png", _slice_caption(score)))
    return parts


def _slice_caption(score: SliceScore) -> str:
    dices = ", ".join(f"{name} {o.dice:.2f}" for name, o in score.overlaps.items() if name != LUNGS and o.expert)
    return f"{score.name}, fold {score.fold + 1}. Dice: {dices}.{_lung_share(score)}"


def _lung_share(score: SliceScore) -> str:
    lungs = score.overlaps.get(LUNGS)
    return f" Lungs cover {lungs.sensitivity:.0%} of the lesions." if lungs and lungs.expert else ""


def _boundary(errors: BoundaryErrors) -> list[str]:
    wrong = np.asarray(errors.wrong)
    centres = (np.asarray(errors.edges_mm)[:-1] + np.asarray(errors.edges_mm)[1:]) / 2
    near = f"{wrong[np.abs(centres) < 2].sum() / max(wrong.sum(), 1):.0%}"
    return [
        "<h2>Lungs of the CT: where the errors lie</h2>",
        f"<p>{near} of all wrong voxels lie within 2 mm of the expert's boundary.</p>",
        figure(svg(boundary_bars(errors)), "svg+xml", "Share of wrong voxels by distance from the lungs' boundary."),
    ]


def _grids(results: Results) -> list[str]:
    parts = [
        "<h2>What a finer grid would buy</h2>",
        "<p>The expert's own mask, brought to a working grid and back, is the best that networks on that grid could "
        "do. The price is 10⁹ multiply-accumulates.</p>",
    ]
    if results.ceiling:
        parts.append(_grid_table("Lesions, mm in the plane", "GMAC per dm² of a slice", results.ceiling))
    parts.append(_grid_table("Lungs of the CT, mm", "GMAC per litre", results.ct.ceiling))
    return parts


def _grid_table(name: str, price: str, ceiling: Sequence[GridCeiling]) -> str:
    body = [f"<tr><td>{c.step_mm:.2f}</td><td>{c.dice:.3f}</td><td>{c.gmac:.2f}</td></tr>" for c in ceiling]
    return table((name, "Dice at most", price), body, "grids")


def _training(results: Results) -> list[str]:
    body = [
        f"<tr><td>{escape(name)}</td><td>{escape(str(facts.get('sources', 'not stated')))}</td></tr>"
        for name, facts in results.bundle["training"].items()
    ]
    return [
        "<h2>What is real and what is planted</h2>",
        f"<p>{escape(_PLANTED)}</p>",
        table(("Network of the bundle", "Learned from"), body, "sources"),
    ]
