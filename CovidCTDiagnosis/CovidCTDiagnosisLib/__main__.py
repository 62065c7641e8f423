"""The command line, ``covid-ct``: see ``covid-ct --help``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import Cancelled, CovidCTError, InputError, ResourceError, UsageError

DEBUG = "COVID_CT_DEBUG"
FOLD_KINDS = {"with": (True,), "without": (False,), "both": (True, False)}
NETWORKS = ("lungs", "involvement", "lesions", "cvae", "classifier")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code (see ``errors``)."""
    from .console import report_error

    _prepare_streams()
    options = _parser().parse_args(arguments)
    _prepare_torch()
    signal.signal(signal.SIGTERM, _interrupt)
    jsonl = getattr(options, "events", None) == "jsonl"
    try:
        options.run(options)
        return 0
    except CovidCTError as error:
        return report_error(error, jsonl)
    except KeyboardInterrupt:
        return report_error(Cancelled(), jsonl)
    except BrokenPipeError:
        # Whoever read the events is gone; nothing is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Cancelled.code
    except MemoryError:
        return report_error(ResourceError("There is not enough memory.", "Close other programs."), jsonl)
    except OSError as error:
        text = f"{error.filename or 'A file'} cannot be used: {error.strerror or error}."
        return report_error(UsageError(text, "Check its name, its permissions and the disk."), jsonl)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        text = f"The program failed ({type(error).__name__}: {error})."
        return report_error(CovidCTError(text, f"Run it again with {DEBUG}=1 for the details, and report them."), jsonl)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """A terminal that cannot show a character gets its number, not a failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _prepare_torch() -> None:
    """Before torch is imported: large pages for its memory, where the kernel has them."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class _Parser(argparse.ArgumentParser):
    """Errors in one sentence that ends with where to look."""

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.code, f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="covid-ct",
        description="Explainable COVID-19 diagnosis from chest CT. For research, not for diagnosis.",
        epilog="Exit codes: 0 done, 2 wrong call, 3 not a chest CT that can be analysed, 4 weights missing or "
        "damaged, 5 out of memory or disk, 130 cancelled.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_analyze(commands)
    _add_segment_slices(commands)
    _add_diagnose_series(commands)
    _add_picture(commands)
    _add_plates(commands)
    _add_sample(commands)
    _add_complexity(commands)
    _add_bench(commands)
    _add_check(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_calibrate(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_bundle(command: Any) -> None:
    command.add_argument("--bundle", type=Path, help="folder or zip file with the weights (default: those shipped)")


def _add_events(command: Any) -> None:
    command.add_argument("--events", choices=("text", "jsonl"), default="text", help="how to report progress")


@contextlib.contextmanager
def _events(options: argparse.Namespace) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where events of long work go: JSON lines or a progress bar."""
    from .console import emit_json, progress_bar
    from .pipeline.compute import tune_allocator

    tune_allocator()
    if options.events == "jsonl":
        yield emit_json
    else:
        with progress_bar() as emit:
            yield emit


def _add_device(command: Any) -> None:
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


# analyze


def _add_analyze(commands: Any) -> None:
    command = _command(
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
    _add_events(command)
    _add_bundle(command)
    _add_device(command)


def _analyze(options: argparse.Namespace) -> None:
    from .console import emit_json, print_findings

    with _events(options) as emit:
        document, replaced = _analyze_to_study(options, emit)
    if options.events == "jsonl":
        emit_json({"event": "result", "study": str(options.output), "diagnosis": document["diagnosis"]})
    else:
        print_findings(document, options.output, replaced)


def _analyze_to_study(
    options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], bool]:
    """The content of analysis.json, and whether an older study was replaced."""
    from .bundle import open_bundle
    from .ct import read_scan
    from .pipeline import Monitor, analyze
    from .study import check_output, write_study

    if options.picture:
        _check_picture(options.picture)
        _picture_maker()
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
    with monitor.stage("writing", "Writing the study"):
        write_study(options.output, analysis.document, analysis.images)
        if options.picture:
            _picture_maker()(options.output, ct, options.picture)
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
    from .ct import read_image

    if not path.is_file():
        raise InputError(f"{path.name or path} is not a file.", "Give a NIfTI, NRRD or MetaImage file of the lungs.")
    return read_image(path)


# segment-slices


def _add_segment_slices(commands: Any) -> None:
    command = _command(
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
    _add_events(command)
    _add_bundle(command)
    _add_device(command)


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


def _segment_slices(options: argparse.Namespace) -> None:
    from .console import emit_json, print_slices

    with _events(options) as emit:
        document = _segment_slices_to_masks(options, emit)
    if options.events == "jsonl":
        emit_json({"event": "result", "masks": str(options.output), **document})
    else:
        print_slices(document, options.output)


def _slice_options(options: argparse.Namespace) -> Any:
    """How slice images are read, as ``SliceOptions``."""
    from .pipeline.slice_folder import SliceOptions

    low, high = options.window
    if not (-5000 <= low < high <= 5000):
        raise UsageError(f"{low:g} to {high:g} HU is no window.", "Give the HU of black and then that of white.")
    for name, size in (("--pixel-mm", options.pixel_mm), ("--slice-mm", options.slice_mm)):
        if not 0.1 <= size <= 50:
            raise UsageError(f"{name} cannot be {size:g}.", "Give millimetres, 0.1 to 50.")
    return SliceOptions((low, high), options.pixel_mm, options.slice_mm, options.orientation)


def _segment_slices_to_masks(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from .bundle import open_bundle
    from .ct.slice_images import read_slice_folder
    from .pipeline import Monitor
    from .pipeline.compute import choose_device
    from .pipeline.models import Models
    from .pipeline.slice_folder import SMALLEST_SIDE, segment_images
    from .study.slice_masks import check_masks_output, write_masks

    read_as = _slice_options(options)
    check_masks_output(options.output, options.images)
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
    return document


# diagnose-series


def _add_diagnose_series(commands: Any) -> None:
    command = _command(
        commands,
        "diagnose-series",
        _diagnose_series,
        "COVID-19 probability of many scans: a folder of folders, each with the 8-bit lung-window slices of one scan. "
        "Writes a table (CSV): series, probability, label, warnings, bundle. A series that cannot be read keeps its "
        "row, and its warning says why. An older table is replaced when all are done; until then this one is beside "
        "it, with .new in its name.",
    )
    command.add_argument("folder", type=Path, help="folder of series folders")
    command.add_argument("--output", type=Path, required=True, help="CSV file to write")
    _add_slice_options(command)
    _add_events(command)
    _add_bundle(command)
    _add_device(command)


def _diagnose_series(options: argparse.Namespace) -> None:
    from .console import emit_json, print_series

    with _events(options) as emit:
        rows = _diagnose_series_to_table(options, emit)
    if options.events == "jsonl":
        emit_json({"event": "result", "table": str(options.output), "series": [row._asdict() for row in rows]})
    else:
        print_series(rows, options.output)


def _diagnose_series_to_table(options: argparse.Namespace, emit: Callable[[dict[str, Any]], None]) -> Any:
    from .bundle import open_bundle
    from .ct.slice_images import find_series
    from .pipeline import Monitor
    from .pipeline.compute import choose_device
    from .pipeline.models import Models
    from .pipeline.slice_series import NETWORKS as USED
    from .study.series_table import check_table_output, write_table

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
    write_table(table, rows)
    with monitor.stage("diagnosis", "Diagnosing the series"):
        for number, folder in enumerate(folders):
            rows.append(
                _diagnose_folder(folder, models, read_as, monitor.part(number / len(folders), 1 / len(folders)))
            )
            # After each series, so that a run which is stopped leaves what it knows.
            write_table(table, rows)
    table.replace(options.output)
    failed = [row for row in rows if not row.label]
    if len(failed) == len(rows):
        raise InputError(f"No series could be diagnosed. {failed[0].series}: {failed[0].warnings}", "Check the folder.")
    return rows


def _diagnose_folder(folder: Path, models: Any, read_as: Any, report: Callable[[float], None]) -> Any:
    """The row of one series."""
    from .ct.files import readable
    from .ct.slice_images import read_slice_folder
    from .pipeline.slice_folder import SMALLEST_SIDE
    from .pipeline.slice_series import diagnose_images
    from .study.series_table import SeriesRow

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


# picture


def _add_picture(commands: Any) -> None:
    command = _command(commands, "picture", _picture, "Draw a study over its CT: a contact sheet in three planes.")
    command.add_argument("study", type=Path, help="study folder")
    command.add_argument("scan", type=Path, help="the CT that the study was made from")
    command.add_argument("--series", help="which DICOM series of the folder: number or SeriesInstanceUID")
    command.add_argument("--output", type=Path, required=True, help="PNG file to write")


def _picture(options: argparse.Namespace) -> None:
    from .ct import read_scan

    _check_picture(options.output)
    _picture_maker()(options.study, read_scan(options.scan, options.series), options.output)
    print(f"Picture: {options.output}")


# plates


def _add_plates(commands: Any) -> None:
    command = _command(
        commands,
        "plates",
        _plates,
        "Draw the slices of a study that carry the most relevance: the CT, its lungs and its lesions with the "
        "relevance of either.",
    )
    command.add_argument("study", type=Path, help="study folder")
    command.add_argument("scan", type=Path, nargs="?", help="the CT that was analyzed (without it, masks alone)")
    command.add_argument("--series", help="which DICOM series of the folder: number or SeriesInstanceUID")
    command.add_argument("--output", type=Path, required=True, help=".png or .pdf; without an ending, both")


def _plates(options: argparse.Namespace) -> None:
    from .ct import read_scan

    outputs = _plate_files(options.output)
    _picture_maker()
    from .scene.plates import plate

    plate(options.study, read_scan(options.scan, options.series) if options.scan else None, outputs)
    print(f"Plate: {' and '.join(map(str, outputs))}")


def _plate_files(output: Path) -> list[Path]:
    if not output.resolve().parent.is_dir():
        raise UsageError(f"The folder {output.parent} does not exist.", "Create it or choose another.")
    if not output.suffix:
        return [output.with_suffix(".png"), output.with_suffix(".pdf")]
    if output.suffix.lower() not in (".png", ".pdf"):
        raise UsageError(f"{output} cannot be a plate.", "Give a .png or .pdf file, or no ending for both.")
    return [output]


def _plain_name(scan: Path) -> str:
    """The scan's name without its folders, in characters that any JSON reader takes."""
    from .ct.files import readable

    return readable(scan.resolve().name.replace("\\", "_")) or "CT"


def _check_picture(picture: Path) -> None:
    if picture.suffix.lower() != ".png" or not picture.resolve().parent.is_dir():
        raise UsageError(f"{picture} cannot be a picture.", "Give a .png file in a folder that exists.")


def _picture_maker() -> Callable[[Path, Any, Path], None]:
    """The function that draws contact sheets; asked for before the long work starts."""
    try:
        from .scene.contact_sheet import contact_sheet
    except ImportError as error:
        raise UsageError(
            f"Pictures need slicer-core, which cannot be loaded ({error}).",
            "Install it: pip install '.[picture]' in the folder of this program.",
        ) from error
    return contact_sheet


# sample


def _add_sample(commands: Any) -> None:
    command = _command(commands, "sample", _sample, "Get a real sample CT into the user's cache; prints its path.")
    command.add_argument("name", nargs="?", help="which; without it the samples are listed")


def _sample(options: argparse.Namespace) -> None:
    from .ct import SAMPLES, fetch_sample

    if options.name is None:
        for name, sample in SAMPLES.items():
            print(f"{name:14} {sample.description}")
    else:
        print(fetch_sample(options.name))


# complexity and bench


def _add_complexity(commands: Any) -> None:
    command = _command(
        commands,
        "complexity",
        _complexity,
        "Print each network's size, work, time and memory beside the paper's.",
    )
    command.add_argument("scan", type=Path, nargs="?", help="CT to measure on (default: the NIfTI sample)")
    _add_bundle(command)
    _add_device(command)


def _complexity(options: argparse.Namespace) -> None:
    from .evaluation.complexity import print_complexity

    print_complexity(options.scan, options.bundle, options.device)


def _add_check(commands: Any) -> None:
    command = _command(commands, "check", _check, "Whether this computer can analyze a CT, and what to do if not.")
    _add_events(command)
    _add_bundle(command)


def _check(options: argparse.Namespace) -> None:
    from .computer_check import check_computer

    checks = check_computer(options.bundle)
    for check in checks:
        if options.events == "jsonl":
            from .console import emit_json

            emit_json({"event": "check", **vars(check)})
        else:
            print(f"{'ok ' if check.good else 'NO '} {check.name:14} {check.found} {check.remedy}".rstrip())
    if not all(check.good for check in checks):
        raise ResourceError("This computer cannot analyze a CT yet.", "See what is said above.")


def _add_bench(commands: Any) -> None:
    command = _command(
        commands,
        "bench",
        _bench,
        "Time every stage on a CT, as a share of this machine's matrix-multiply peak.",
    )
    command.add_argument("scan", type=Path, nargs="?", help="CT to measure on (default: the NIfTI sample)")
    _add_bundle(command)
    _add_device(command)


def _bench(options: argparse.Namespace) -> None:
    from .evaluation.bench import print_bench

    print_bench(options.scan, options.bundle, options.device)


# train and evaluate


def _add_train(commands: Any) -> None:
    command = _command(
        commands,
        "train",
        _train,
        "Train one network and put it into a bundle. In order: lungs, involvement, lesions, cvae, classifier.",
    )
    command.add_argument("network", choices=NETWORKS)
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="training data folder; for cvae and classifier also a table of scans (CSV: scan, label, patient, split)",
    )
    command.add_argument("--output", type=Path, required=True, help="bundle to make or to put the network into")
    command.add_argument("--run", dest="run_folder", type=Path, help="checkpoints (default: beside the bundle)")
    command.add_argument("--steps", type=int, help="optimiser steps (default: the shipped bundle's)")
    command.add_argument("--seed", type=int, default=0)
    _add_recipe(command)
    command.add_argument(
        "--sensitivity",
        type=float,
        help="that the classifier's threshold is chosen for, on the scans for validation (default: 0.9)",
    )
    command.add_argument("--fine-tune", action="store_true", help="start from the bundle's own weights")
    command.add_argument("--devices", type=int, help="graphics cards to use (default: all)")
    command.add_argument("--nodes", type=int, default=1, help="machines, each running this command (SLURM, torchrun)")
    _add_precision(command)


def _add_recipe(command: Any) -> None:
    command.add_argument(
        "--recipe",
        choices=("short", "paper"),
        default="short",
        help="how cvae and classifier learn: a few hundred steps (default), or 200 epochs as in the paper",
    )


def _add_precision(command: Any) -> None:
    command.add_argument(
        "--precision",
        choices=("32-true", "16-mixed", "bf16-mixed"),
        help="of the training: 32-true, 16-mixed (default on a graphics card), or bf16-mixed, which saves a fifth to "
        "a third of the time of 2-D networks on a processor with AVX-512 BF16 or AMX (3-D networks stay in single "
        "precision there)",
    )


def _train(options: argparse.Namespace) -> None:
    with _training_packages():
        from .training.loop import Hardware
        from .training.train import train

    if options.sensitivity is not None:
        _check_sensitivity(options.sensitivity)
    train(
        options.network,
        options.data,
        options.output,
        options.run_folder,
        options.steps,
        options.seed,
        options.fine_tune,
        Hardware(options.devices or "auto", options.nodes, options.precision),
        options.recipe,
        options.sensitivity,
    )


def _check_sensitivity(sensitivity: float) -> None:
    if not 0 < sensitivity <= 1:
        raise UsageError(f"{sensitivity:g} is no sensitivity.", "Give a number above 0, at most 1.")


def _add_evaluate(commands: Any) -> None:
    text = "Measure a bundle on data that it has not learned from, or judge a table of predictions."
    command = commands.add_parser("evaluate", help=text, description=text)
    parts = command.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_evaluate_segmentation(parts)
    _add_evaluate_planted(parts)
    _add_evaluate_diagnosis(parts)
    _add_evaluate_ablation(parts)
    _add_evaluate_explanations(parts)
    _add_evaluate_report(parts)


def _add_evaluate_segmentation(parts: Any) -> None:
    command = _command(parts, "segmentation", _evaluate_segmentation, "Lungs and lesions against experts; a table.")
    command.add_argument("--data", type=Path, help="data folder (without it only the sample CT is measured)")
    command.add_argument("--output", type=Path, help="folder for results and a page with figures")
    command.add_argument(
        "--folds",
        nargs="?",
        const="both",
        choices=FOLD_KINDS,
        help="score lesions by cross-validation, by networks that learn with machine-made masks, without, or both "
        "(default): trains what is not in OUTPUT/folds yet, which takes hours",
    )
    command.add_argument(
        "--lesion-source",
        choices=("involvement", "both"),
        default="involvement",
        help="who draws the lesion mask of the folds: 2DS (default), or both lesion networks, and then the U-Net is "
        "trained for each fold too",
    )
    _add_precision(command)
    _add_bundle(command)
    _add_device(command)


def _evaluate_segmentation(options: argparse.Namespace) -> None:
    with _training_packages():
        from .evaluation.segmentation import evaluate_segmentation

    folds = FOLD_KINDS.get(options.folds, ())
    evaluate_segmentation(
        options.data,
        options.output,
        folds,
        options.bundle,
        options.device,
        options.precision,
        options.lesion_source,
    )


def _add_evaluate_planted(parts: Any) -> None:
    text = "Lesions of each class planted in the sample CT, and what they are called; a table."
    command = _command(parts, "planted", _evaluate_planted, text)
    command.add_argument("--data", type=Path, help="data folder with expert slices, whose lesions are named too")
    _add_bundle(command)
    _add_device(command)


def _evaluate_planted(options: argparse.Namespace) -> None:
    with _training_packages():
        from .evaluation.planted import print_planted

    print_planted(options.bundle, options.device, options.data)


def _add_evaluate_diagnosis(parts: Any) -> None:
    command = _command(parts, "diagnosis", _evaluate_diagnosis, "Scans kept apart, against the truth; a table.")
    command.add_argument("--data", type=Path, required=True, help="data folder with slice series, or table of scans")
    command.add_argument("--output", type=Path, help="also write the predictions (CSV), for evaluate report")
    command.add_argument(
        "--all-splits",
        action="store_true",
        help="the table also gets the scans for training and validation, for the report's figure of involvement",
    )
    command.add_argument("--pictures", type=Path, help="also draw each scan kept apart (PNG), for evaluate report")
    command.add_argument(
        "--spoil",
        action="store_true",
        help="also invert, window, blur the series kept apart, and take abdomen and neck: how many are refused "
        "or told not to be relied on",
    )
    _add_bundle(command)
    _add_device(command)


def _evaluate_diagnosis(options: argparse.Namespace) -> None:
    with _training_packages():
        from .evaluation.diagnosis import print_diagnosis

    print_diagnosis(
        options.data,
        options.bundle,
        options.device,
        options.output,
        options.spoil,
        options.all_splits,
        options.pictures,
    )


def _add_evaluate_ablation(parts: Any) -> None:
    command = _command(
        parts,
        "ablation",
        _evaluate_ablation,
        "What each part of the classifier is worth: grouped cross-validation of the proposed model, of models without "
        "its parts and of baselines (hours; goes on where it was stopped).",
    )
    command.add_argument("--data", type=Path, required=True, help="data folder with slice series")
    command.add_argument("--output", type=Path, required=True, help="folder for results and checkpoints")
    command.add_argument("--steps", type=int, default=300, help="optimiser steps of every network (default: 300)")
    command.add_argument("--cvae-steps", type=int, help="optimiser steps of pre-training (default: as many as --steps)")
    command.add_argument("--seed", type=int, default=0, help="of first weights and batches (default: 0)")
    command.add_argument("--folds", type=int, default=5, help="how many of the five folds (default: all)")
    _add_recipe(command)
    _add_precision(command)
    _add_bundle(command)
    _add_device(command)


def _evaluate_ablation(options: argparse.Namespace) -> None:
    with _training_packages():
        from .evaluation.ablation import evaluate_ablation

    if options.steps < 1:
        raise UsageError("There must be a step.", "Give --steps 1 or more.")
    if options.cvae_steps is not None and options.cvae_steps < 1:
        raise UsageError("There must be a step of pre-training.", "Give --cvae-steps 1 or more, or leave it out.")
    if not 1 <= options.folds <= 5:
        raise UsageError(f"There are five folds, not {options.folds}.", "Give --folds 1 to 5.")
    evaluate_ablation(
        options.data,
        options.output,
        options.bundle,
        options.device,
        options.steps,
        options.precision,
        options.folds,
        options.cvae_steps,
        options.recipe,
        options.seed,
    )


def _add_evaluate_explanations(parts: Any) -> None:
    command = _command(
        parts,
        "explanations",
        _evaluate_explanations,
        "What the heatmaps are worth: relevance in an expert's lesions, pixel flipping, random weights, noise; beside "
        "gradient x input and chance.",
    )
    command.add_argument("--data", type=Path, required=True, help="data folder with expert slices and slice series")
    command.add_argument("--output", type=Path, help="folder for results and a page with figures")
    _add_bundle(command)
    _add_device(command)


def _evaluate_explanations(options: argparse.Namespace) -> None:
    with _training_packages():
        from .evaluation.explanations import evaluate_explanations

    evaluate_explanations(options.data, options.output, options.bundle, options.device)


def _add_evaluate_report(parts: Any) -> None:
    command = _command(
        parts,
        "report",
        _evaluate_report,
        "One page with figures, tables and a checklist from a table of predictions and the truth (CSV: series or scan, "
        "probability, covid 1 or 0; optional co_rads, centre, split, patient, involvement_percent).",
    )
    command.add_argument("predictions", type=Path, help="CSV file")
    command.add_argument("--output", type=Path, required=True, help="HTML file to write")
    command.add_argument("--threshold", type=float, help="COVID-19 from this probability on (default: the bundle's)")
    command.add_argument("--pictures", type=Path, help="folder of PNG files named as the scans, for the examples")
    _add_bundle(command)


def _evaluate_report(options: argparse.Namespace) -> None:
    from .bundle import open_bundle

    with _training_packages():
        from .evaluation.predictions import read_predictions
        from .evaluation.report import write_report

    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UsageError(f"{options.threshold:g} is no probability.", "Give a threshold from 0 to 1.")
    bundle = open_bundle(options.bundle)
    threshold = bundle.settings["diagnosis"]["threshold"] if options.threshold is None else options.threshold
    predictions = read_predictions(options.predictions)
    # Predictions of a bundle that is not here may be judged, at a threshold that is given.
    elsewhere = options.threshold is not None and not options.bundle
    told = not elsewhere and predictions.made_by(bundle)
    if options.threshold is None and not told:
        predictions.require_called_at(threshold)
    # Facts of a bundle belong into the checklist only if it is said to have made the predictions.
    maker = bundle if options.bundle or told else None
    write_report(predictions, threshold, options.output, maker, options.pictures)


def _add_calibrate(commands: Any) -> None:
    command = _command(
        commands,
        "calibrate",
        _calibrate,
        "Adapt a bundle to a site: its probability to the site's share of COVID-19, its threshold to a sensitivity. "
        "Takes the bundle's predictions of the site's labelled scans (see evaluate report), 50 or more.",
    )
    command.add_argument("predictions", type=Path, help="CSV file")
    command.add_argument("--output", type=Path, required=True, help="bundle to write")
    command.add_argument("--sensitivity", type=float, default=0.9, help="to aim at (default: 0.9)")
    _add_bundle(command)


def _calibrate(options: argparse.Namespace) -> None:
    from .bundle import open_bundle

    with _training_packages():
        from .evaluation.predictions import read_predictions
        from .evaluation.site_calibration import calibrate_site

    _check_sensitivity(options.sensitivity)
    predictions = read_predictions(options.predictions)
    calibrate_site(predictions, open_bundle(options.bundle), options.output, options.sensitivity)


@contextlib.contextmanager
def _training_packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"Training and evaluation need more packages ({error}).",
            "Install them: pip install '.[train]' in the folder of this program.",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
