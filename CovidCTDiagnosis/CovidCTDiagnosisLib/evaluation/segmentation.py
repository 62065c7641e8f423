"""``covid-ct evaluate segmentation``: lungs and lesions against experts, as a table, files and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ..bundle import open_bundle
from ..documents import encode_document, read_document
from ..errors import InputError, UsageError
from ..folders import replaced_file, require_parent
from ..pipeline.compute import choose_device
from ..pipeline.lesion_mask import LesionSource
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from ..tables import write_rows
from ..training.folds import (
    FOLDS,
    MASKING_NETWORKS,
    SEGMENTING_NETWORKS,
    Folds,
    SegmentingNetwork,
    recipe_fingerprint,
)
from ..training.loop import Hardware
from ..training.sources import Case, data_fingerprint, read_lesion_slices
from .grid_ceiling import GridCeiling, slice_ceiling
from .markdown import write_markdown
from .metrics import mean_dice
from .sample_ct import read_sample_ct
from .segmentation_page import write_page
from .segmentation_scores import (
    LESION,
    Results,
    SliceScore,
    ThresholdCurve,
    describe_bundle,
    precision_key,
    read_scores,
    score_ct,
    score_folds,
)
from .segmentation_targets import table
from .terminal import table_console

RESULTS, SPREADSHEET, PAGE, MASKS = "segmentation.json", "segmentation.csv", "segmentation.html", "masks"
TABLE = "segmentation.md"

_PACKAGE, _SCHEMA = "CovidCTDiagnosisLib.evaluation", "segmentation.schema.json"
FoldKinds = tuple[bool, ...]
# Shares of the width; the text of the anchors is the longest.
_COLUMNS = (
    ("What", 22),
    ("Measured, 95 % interval", 26),
    ("Without machine masks", 15),
    ("Target", 8),
    ("Verdict", 10),
    ("Anchors", 42),
)


def evaluate_segmentation(
    data: Path | None,
    output: Path | None,
    folds: FoldKinds,
    bundle: Path | None,
    device: str,
    precision: str | None = None,
    source: LesionSource = "involvement",
) -> None:
    """Measure, print the table, and write results and page where ``output`` is given.

    Args:
        data: data folder; without it only the sample CT is measured.
        output: folder for results; scores of folds that are there already join the table.
        folds: kinds of training, with machine masks (True) and without, whose folds are scored on the expert slices;
            networks that are not there yet are trained.
        bundle: whose networks; the folds take from it those that are not trained for them.
        device: where to compute.
        precision: Lightning's name of the precision that the folds' networks are trained in.
        source: ``involvement`` draws the lesion mask, or ``both`` lesion networks; the U-Net is trained for the
            folds in the second case only.

    Raises:
        UsageError: ``folds`` without ``data`` or ``output``, or ``output`` cannot be used, as it is no folder for
            results or holds those of another source or of other data.
        InputError: the data folder lacks a part, or has fewer expert slices than there are folds.
    """
    if folds and (data is None or output is None):
        raise UsageError("Folds need the data and a folder to work in.", "Give both: --data DATA --output FOLDER.")
    cases = read_lesion_slices(data) if data else []
    if folds and len(cases) < FOLDS:
        raise InputError(
            f"The data folder has {len(cases)} expert slices, too few for {FOLDS} folds.", "Add more to lesion_slices."
        )
    scores, curves, made = _earlier_folds(output, source, _folds_made(data, source, folds, precision))
    tune_allocator()
    models = Models(open_bundle(bundle), choose_device(device))
    if folds:
        pairs = FOLDS * len(folds)
        what = "three networks" if source == "both" else "lung network and 2DS"
        print(f"Trains {pairs} sets of {what} where they are not there yet: hours. Stopped, it goes on later.")
    results = _measure(models, cases)
    results.folds, results.curves, results.lesion_source = scores, curves, source
    results.folds_made = made
    _save(results, output, cases)
    for kind in folds if data and output else ():
        assert data is not None and output is not None
        networks = _fold_networks(data, output, models, kind, precision, source)
        found, curve = score_folds(cases, networks, kind, output / MASKS, source)
        results.folds = [*(s for s in results.folds if s.machine_masks is not kind), *found]
        results.curves = [*(c for c in results.curves if c.machine_masks is not kind), curve]
        # Written after either kind, so that a run which is stopped leaves what it knows.
        _save(results, output, cases)
        for fold in range(FOLDS):
            print(_fold_line([s for s in found if s.fold == fold], curve), flush=True)
    print_results(results)
    if output:
        print(f"Page: {output / PAGE}")


def _folds_made(data: Path | None, source: LesionSource, folds: FoldKinds, precision: str | None) -> dict[str, str]:
    """How the folds' networks would be made today: by which recipe and, where that is known, of which data."""
    of_data = {"data": data_fingerprint(data)} if data else {}
    used = str(Hardware(precision=precision).trainer_arguments()["precision"])
    of_training = {precision_key(machine_masks): used for machine_masks in folds}
    return {**of_data, **of_training, "recipe": recipe_fingerprint(_networks(source))}


def _networks(source: LesionSource) -> tuple[SegmentingNetwork, ...]:
    """Those that are trained for each fold."""
    return SEGMENTING_NETWORKS if source == "both" else MASKING_NETWORKS


def _earlier_folds(
    output: Path | None, source: LesionSource, wanted: dict[str, str]
) -> tuple[list[SliceScore], list[ThresholdCurve], dict[str, str]]:
    """What the output folder, which is made if it is not there, knows of folds, and how they were made."""
    if output is None:
        return [], [], wanted
    require_parent(output)
    output.mkdir(exist_ok=True)
    if not (output / RESULTS).exists():
        return [], [], wanted
    try:
        document = read_document(output / RESULTS, _PACKAGE, _SCHEMA)
    except ValueError as error:
        raise UsageError(
            f"{output / RESULTS} is not from covid-ct evaluate ({error}).", "Choose another folder for the results."
        ) from error
    if document["folds"] and document.get("lesion_source", "both") != source:
        raise UsageError(
            f"{output / RESULTS} holds scores of another lesion source.", "Choose another folder for the results."
        )
    made = document.get("folds_made", {})
    kinds = {score["machine_masks"] for score in document["folds"]}
    if "precision" in made:  # of all folds, as written until 0.13
        usual = str(Hardware().trainer_arguments()["precision"])
        precision = made.pop("precision") or usual
        made |= {precision_key(kind): precision for kind in kinds}
    if document["folds"] and not made:
        raise UsageError(
            f"{output / RESULTS} holds scores of folds by an older version, which does not say how they were made.",
            "Choose another folder for the results.",
        )
    known = {"data", "recipe", *map(precision_key, kinds)} if kinds else set()
    if any(made.get(key) != value for key, value in wanted.items() if key in known):
        raise UsageError(
            f"{output / RESULTS} holds scores of folds of other data, or of networks that were trained otherwise.",
            "Choose another folder for the results.",
        )
    curves = [ThresholdCurve(**curve) for curve in document["curves"]]
    return read_scores(document["folds"]), curves, {**(made if document["folds"] else {}), **wanted}


def _measure(models: Models, cases: list[Case]) -> Results:
    ct, expert = read_sample_ct()
    return Results(
        describe_bundle(models.bundle),
        score_ct(ct, expert, models),
        ceiling=slice_ceiling(cases, models) if cases else [],
    )


def _fold_networks(
    data: Path, output: Path, models: Models, machine_masks: bool, precision: str | None, source: LesionSource
) -> Callable[[int], Models]:
    hardware = Hardware(precision=precision)
    folds = Folds(data, output / "folds", models.bundle, machine_masks, hardware=hardware, networks=_networks(source))
    return lambda fold: Models(folds.trained(fold), models.device)


def _fold_line(scores: list[SliceScore], curve: ThresholdCurve) -> str:
    kind = "with" if curve.machine_masks else "without"
    lesion = mean_dice([score.overlaps[LESION] for score in scores])
    fold = scores[0].fold
    return (
        f"Fold {fold + 1} of {FOLDS}, {kind} machine masks: lesion Dice {lesion:.3f}, mean of {len(scores)}, "
        f"threshold {curve.chosen[fold]:.2f}"
    )


def _save(results: Results, output: Path | None, cases: list[Case]) -> None:
    if output is None:
        return
    with replaced_file(output / RESULTS) as partial:
        partial.write_bytes(encode_document(results.document(), _PACKAGE, _SCHEMA))
    _write_spreadsheet(results.folds, output / SPREADSHEET)
    write_markdown(output / TABLE, [name for name, _ in _COLUMNS], _cells(results))
    write_page(results, table(results), cases, output / MASKS, output / PAGE)


def _write_spreadsheet(scores: Iterable[SliceScore], path: Path) -> None:
    """One row per slice, variant and mask."""
    columns = ("slice", "fold", "machine_masks", "mask", "found", "expert", "shared", "dice")
    rows = [
        (score.name, score.fold + 1, int(score.machine_masks), mask, *overlap, f"{overlap.dice:.4f}")
        for score in scores
        for mask, overlap in score.overlaps.items()
    ]
    write_rows(path, columns, rows)


def print_results(results: Results) -> None:
    """The table of targets and that of working grids, on standard output."""
    console, frame = table_console()
    rows = Table(expand=True, show_lines=True, box=frame)
    for name, share in _COLUMNS:
        rows.add_column(name, ratio=share)
    for cells in _cells(results):
        rows.add_row(*map(Text, cells))
    console.print(rows)
    console.print(_grid_table("Lungs of the CT", "Dice at most", "GMAC a litre", results.ct.ceiling))
    if results.ceiling:
        console.print(_grid_table("Lesions of the slices", "Dice at most", "GMAC a dm²", results.ceiling))
    print("Machine masks leak a little: the network that drew them knew all expert slices.")
    if results.folds:
        who = "both lesion networks" if results.lesion_source == "both" else "2DS"
        print(f"Lesion masks of the expert slices: drawn by {who}.")
    if not results.folds:
        print("Lesions are measured by cross-validation: add --folds --data DATA --output FOLDER (hours, resumes).")


def _cells(results: Results) -> list[tuple[str, ...]]:
    """Of ``_COLUMNS``."""
    return [
        (
            f"{row.what}\n({row.where})",
            "\n".join(filter(None, (row.measured, row.beside))),
            row.without,
            row.target,
            row.verdict,
            row.anchors,
        )
        for row in table(results)
    ]


def _grid_table(title: str, dice: str, price: str, ceiling: list[GridCeiling]) -> Table:
    rows = Table(f"{title}: working grid", dice, price, box=box.ASCII2)
    for grid in ceiling:
        rows.add_row(f"{grid.step_mm:.2f} mm", f"{grid.dice:.3f}", f"{grid.gmac:.2f}")
    return rows
