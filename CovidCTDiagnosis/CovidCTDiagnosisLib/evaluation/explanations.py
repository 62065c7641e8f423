"""``covid-ct evaluate explanations``: what the heatmaps are worth, beside gradient x input and chance."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from ..bundle import open_bundle
from ..errors import InputError
from ..folders import require_parent, write_text
from ..pipeline.compute import choose_device
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from ..training.examples import prepare_examples, split_data
from ..training.sources import read_lesion_slices
from .explanation_scores import measure
from .explanations_page import page, print_table, write_table

RESULTS, TABLE, PAGE = "explanations.json", "explanations.md", "explanations.html"


def evaluate_explanations(data: Path, output: Path | None, bundle: Path | None, device: str) -> None:
    """Measure, print the table, write results and a page with figures.

    Args:
        data: data folder with expert slices and slice series.
        output: folder for results, or None.
        bundle: or the one shipped.
        device: where to segment.

    Raises:
        InputError: the data folder lacks a part.
        UsageError: ``output`` cannot be used.
    """
    if output is not None:
        require_parent(output)
    tune_allocator()
    models = Models(open_bundle(bundle), choose_device(device))
    slices, scans = read_lesion_slices(data), [s for s in split_data(data).test if s.covid]
    if not scans:
        raise InputError("No COVID-19 scan is for testing.", "Give some in the split test.")
    with tempfile.TemporaryDirectory() as cache:
        examples = prepare_examples(scans, models, Path(cache), print)
    results = measure(slices, examples, models)
    print_table(results)
    if output is not None:
        output.mkdir(exist_ok=True)
        write_text(output / RESULTS, json.dumps(asdict(results)) + "\n")
        write_table(results, output / TABLE)
        write_text(output / PAGE, page(results))
        print(f"Page with figures: {output / PAGE}")
