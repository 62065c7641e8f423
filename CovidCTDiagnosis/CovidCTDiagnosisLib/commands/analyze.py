"""``covid-ct analyze``: a CT to a study folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from .common import add_bundle, add_command, add_device, add_events, event_sink
from .pictures import check_picture, picture_maker


def add_analyze(commands: Any) -> None:
    """``covid-ct analyze``."""
    command = add_command(
        commands,
        "analyze",
        _analyze,
        "Find lungs, lesions, COVID-19 probability and relevance in a chest CT.",
    )
    command.add_argument("scan", type=Path, help="DICOM folder, or NIfTI, NRRD or MetaImage file")
    command.add_argument("--output", type=Path, required=True, help="study folder to write")
    command.add_argument("--series", help="which DICOM series of the folder: number or SeriesInstanceUID")
    command.add_argument(
        "--lesion-source",
        choices=("both", "lesions", "involvement"),
        help="who draws the lesion mask: 2DS (involvement; usual), the 3-D U-Net (lesions) or both together (usual for "
        "an older 2DS, which does not tell consolidation from ground glass)",
    )
    command.add_argument("--lungs", type=Path, help="ready lung mask to use (any label above 0; 1 right, 2 left)")
    command.add_argument(
        "--lung-engine",
        choices=("network", "lungmask"),
        default="network",
        help="who segments the lungs: the bundle's network (default) or the package lungmask (R231CovidWeb)",
    )
    command.add_argument("--lungmask-weights", type=Path, help="local .pth file for lungmask (default: downloaded)")
    command.add_argument(
        "--explain",
        choices=("covid", "not-covid", "difference"),
        default="covid",
        help="which score the heatmaps explain: that for COVID-19 (default), that against it, or their difference",
    )
    command.add_argument("--picture", type=Path, help="also write a contact sheet (PNG; needs slicer-core)")
    add_events(command)
    add_bundle(command)
    add_device(command)


def _analyze(options: argparse.Namespace) -> None:
    from ..console import emit_json, print_findings

    with event_sink(options) as emit:
        document, replaced = _analyze_to_study(options, emit)
    if options.events == "jsonl":
        emit_json({"event": "result", "study": str(options.output), "diagnosis": document["diagnosis"]})
    else:
        print_findings(document, options.output, replaced)


def _analyze_to_study(
    options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], bool]:
    """The content of analysis.json, and whether an older study was replaced."""
    from ..bundle import open_bundle
    from ..ct import read_scan
    from ..pipeline import Monitor, analyze
    from ..study import check_output, write_study

    if options.picture:
        check_picture(options.picture, options.output)
        picture_maker()
    replaced = check_output(options.output)
    _check_lung_options(options)
    bundle = open_bundle(options.bundle)
    monitor = Monitor(emit=emit)
    with monitor.stage("reading", "Reading the CT"):
        ct = read_scan(options.scan, options.series)
    analysis = analyze(
        ct,
        bundle,
        name=_plain_name(options.scan),
        device=options.device,
        lesion_source=options.lesion_source,
        lungs=_read_lungs(options.lungs),
        lung_engine=options.lung_engine,
        lungmask_weights=options.lungmask_weights,
        explain=options.explain,
        monitor=monitor,
    )

    def draw(study: Path) -> None:
        if options.picture:
            picture_maker()(study, ct, options.picture)

    with monitor.stage("writing", "Writing the study"):
        write_study(options.output, analysis.document, analysis.images, finish=draw)
    return analysis.document, replaced


def _check_lung_options(options: argparse.Namespace) -> None:
    if options.lungs and options.lung_engine != "network":
        raise UsageError("The lungs come from a mask or from an engine.", "Leave out --lungs or --lung-engine.")
    if options.lungmask_weights and options.lung_engine != "lungmask":
        raise UsageError("Weights for lungmask need lungmask.", "Add --lung-engine lungmask.")


def _read_lungs(path: Path | None) -> Any:
    """The lung mask as a Volume, or None."""
    if path is None:
        return None
    from ..ct import read_image
    from ..ct.files import IMAGE_SUFFIXES

    if not path.is_file() or not path.name.lower().endswith(IMAGE_SUFFIXES):
        what = "no NIfTI, NRRD or MetaImage file" if path.is_file() else "not a file"
        raise InputError(f"{path.name or path} is {what}.", "Give a NIfTI, NRRD or MetaImage file of the lungs.")
    return read_image(path)


def _plain_name(scan: Path) -> str:
    """The scan's name without its folders, in characters that any JSON reader takes."""
    from ..ct.files import readable

    # Without following links: one may hide a patient's name.
    return readable(Path(os.path.abspath(scan)).name.replace("\\", "_")) or "CT"  # noqa: PTH100
