"""``covid-ct segment-slices`` and ``diagnose-series``: 8-bit slice images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, ResourceError, UsageError
from .common import add_bundle, add_command, add_device, add_events, event_sink


def add_segment_slices(commands: Any) -> None:
    """``covid-ct segment-slices``."""
    command = add_command(
        commands,
        "segment-slices",
        _segment_slices,
        "Find lungs and lesions in a folder of 8-bit lung-window slices (PNG, JPEG, BMP or TIFF). Writes PNG masks "
        "of the same names and sizes: lungs/ and infection/ 0 or 255, classes/ 1 ground-glass opacity, 2 "
        "consolidation. Crazy paving and the combined pattern count as whichever of the two is likelier. "
        "Images of one size that continue each other in the order of their names are taken as one CT.",
    )
    command.add_argument("images", type=Path, help="folder of slice images")
    command.add_argument("--output", type=Path, required=True, help="folder of masks to write")
    _add_slice_options(command)
    add_events(command)
    add_bundle(command)
    add_device(command)


def _segment_slices(options: argparse.Namespace) -> None:
    from ..console import emit_json, print_slices

    with event_sink(options) as emit:
        document, replaced = _segment_slices_to_masks(options, emit)
    if options.events == "jsonl":
        emit_json({"event": "result", "masks": str(options.output), **document})
    else:
        print_slices(document, options.output, replaced)


def _segment_slices_to_masks(
    options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], bool]:
    """The content of slices.json, and whether older masks were replaced."""
    from ..bundle import open_bundle
    from ..ct.slice_images import read_slice_folder
    from ..pipeline import Monitor
    from ..pipeline.compute import choose_device
    from ..pipeline.models import Models
    from ..pipeline.slice_segmentation import SMALLEST_SIDE, segment_images
    from ..study.slice_masks import check_masks_output, write_masks

    read_as = _slice_options(options)
    replaced = check_masks_output(options.output, options.images)
    models = Models(open_bundle(options.bundle), choose_device(options.device))
    models.require("lungs", "lesions", "involvement")
    monitor = Monitor(emit=emit)
    with monitor.stage("reading", "Reading the images"):
        paths, images, left_out = read_slice_folder(options.images, SMALLEST_SIDE)
        for text in left_out:
            monitor.warn(text)
    found = segment_images(images, models, read_as, monitor)
    document = found.document(read_as, [path.name for path in paths], models.bundle)
    without = [path.name for path, mask in zip(paths, found.lungs, strict=True) if not mask.any()]
    if without:
        monitor.warn(f"No lungs were found in {len(without)} of {len(paths)} images: {', '.join(without[:5])}.")
    document["warnings"] = list(monitor.warnings)
    with monitor.stage("writing", "Writing the masks"):
        write_masks(options.output, [path.stem for path in paths], found.lungs, found.lesions, document)
    return document, replaced


def add_diagnose_series(commands: Any) -> None:
    """``covid-ct diagnose-series``."""
    command = add_command(
        commands,
        "diagnose-series",
        _diagnose_series,
        "COVID-19 probability of many scans: a folder of folders, each with the 8-bit lung-window slices of one scan. "
        "Writes a table (CSV): series, probability, label, warnings. A series that cannot be read keeps its "
        "row, and its warning says why. An older table is replaced when all are done; until then this one is beside "
        "it, with .new in its name.",
    )
    command.add_argument("folder", type=Path, help="folder of series folders")
    command.add_argument("--output", type=Path, required=True, help="CSV file to write")
    command.add_argument(
        "--with-bundle",
        action="store_true",
        help="also a column that names the weights, by which reports and calibrations refuse those of others",
    )
    _add_slice_options(command)
    add_events(command)
    add_bundle(command)
    add_device(command)


def _diagnose_series(options: argparse.Namespace) -> None:
    from ..console import emit_json, print_series

    with event_sink(options) as emit:
        rows = _diagnose_series_to_table(options, emit)
    if options.events == "jsonl":
        emit_json({"event": "result", "table": str(options.output), "series": [row._asdict() for row in rows]})
    else:
        print_series(rows, options.output)


def _diagnose_series_to_table(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> Any:
    from ..bundle import open_bundle
    from ..ct.slice_images import find_series
    from ..pipeline import Monitor
    from ..pipeline.compute import choose_device
    from ..pipeline.models import Models
    from ..pipeline.slice_series import NETWORKS as USED
    from ..study.series_table import check_table_output, write_table

    read_as = _slice_options(options)
    folders = find_series(options.folder)
    check_table_output(options.output)
    models = Models(open_bundle(options.bundle), choose_device(options.device))
    models.require(*USED)
    monitor = Monitor(emit=emit, stages={"diagnosis": 1.0})
    rows: list[Any] = []
    # The table of a run before stays until this one is done.
    table = options.output
    if table.exists():
        table = table.with_name(f"{table.stem}.new{table.suffix}")
        check_table_output(table)
    # At once, so that a place that cannot be written to costs no work.
    write_table(table, rows, options.with_bundle)
    with monitor.stage("diagnosis", "Diagnosing the series"):
        for number, folder in enumerate(folders):
            rows.append(
                _diagnose_folder(folder, models, read_as, monitor.part(number / len(folders), 1 / len(folders)))
            )
            # After each series, so that a run which is stopped leaves what it knows.
            write_table(table, rows, options.with_bundle)
    failed = [row for row in rows if not row.label]
    if len(failed) == len(rows):
        raise InputError(f"No series could be diagnosed. {failed[0].series}: {failed[0].warnings}", "Check the folder.")
    table.replace(options.output)
    return rows


def _diagnose_folder(folder: Path, models: Any, read_as: Any, report: Callable[[float], None]) -> Any:
    """The row of one series."""
    from ..ct.files import readable
    from ..ct.slice_images import read_slice_folder
    from ..pipeline.slice_segmentation import SMALLEST_SIDE
    from ..pipeline.slice_series import diagnose_images
    from ..study.series_table import SeriesRow

    name, maker = readable(folder.name), models.bundle.identity
    try:
        try:
            _, images, left_out = read_slice_folder(folder, SMALLEST_SIDE)
        except OSError as error:
            raise InputError(f"It cannot be read: {error.strerror or error}.") from error
        found = diagnose_images(images, models, read_as, report)
    except (InputError, ResourceError) as error:
        return SeriesRow(name, "", "", readable(error.message), maker)
    warnings = readable(" ".join([*left_out, *found.warnings]))
    return SeriesRow(name, f"{found.probability:.4f}", found.label, warnings, maker)


def _add_slice_options(command: Any) -> None:
    command.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=(-1000.0, 400.0),
        metavar=("LOW", "HIGH"),
        help="HU of black and white (default: -1000 400)",
    )
    command.add_argument("--pixel-mm", type=float, default=0.7, help="pixel size (default: 0.7)")
    command.add_argument("--slice-mm", type=float, default=3.0, help="distance of slices of a CT (default: 3)")
    command.add_argument(
        "--orientation",
        choices=("auto", "upright", "upside-down", "back-left", "back-right"),
        default="auto",
        help="where the patient's back lies in the images: found (auto), below, above, left or right",
    )


def _slice_options(options: argparse.Namespace) -> Any:
    """How slice images are read, as ``SliceOptions``."""
    from ..pipeline.slice_segmentation import SliceOptions

    low, high = options.window
    if not (-5000 <= low < high <= 5000):
        raise UsageError(f"{low:g} to {high:g} HU is no window.", "Give the HU of black and then that of white.")
    for name, size in (("--pixel-mm", options.pixel_mm), ("--slice-mm", options.slice_mm)):
        if not 0.1 <= size <= 50:
            raise UsageError(f"{name} cannot be {size:g}.", "Give millimetres, 0.1 to 50.")
    return SliceOptions((low, high), options.pixel_mm, options.slice_mm, options.orientation)
