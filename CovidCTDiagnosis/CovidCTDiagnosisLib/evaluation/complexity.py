"""``covid-ct complexity``: size, work, time and memory of each stage beside the paper's Table 5."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..bundle import open_bundle
from ..ct import fetch_sample
from ..pipeline.compute import choose_device
from ..pipeline.macs import count_parameters
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from .profile import StageProfile, profile_analysis


class PaperRow(NamedTuple):
    """A row of Table 5: millions of parameters, "FLOPs" (G), seconds on a TITAN Xp."""

    parameters: float | None
    flops: float
    seconds: float


ROWS = {
    "lungs": ("Lung segmentation", ("lungs",), PaperRow(2.12, 4262.7, 40)),
    "lesions": ("Lesion segmentation", ("lesions", "involvement"), PaperRow(13.3, 1113.8, 32)),
    "diagnosis": ("Classification", ("classifier",), PaperRow(1.92, 3.55, 0.5)),
    "relevance": ("Visual explanations", (), PaperRow(None, 27.65, 4.01)),
}


def print_complexity(scan: Path | None, bundle: Path | None, device: str) -> None:
    """Print the table for one CT (the NIfTI sample by default)."""
    tune_allocator()
    scan = scan or fetch_sample("chest-nifti")
    opened = open_bundle(bundle)
    models = Models(opened, choose_device(device))
    profile = profile_analysis(scan, opened, device)
    print(f"{'':22}{'parameters, M':>18}{'GMAC':>20}{'seconds':>16}{'peak MB':>9}")
    print(f"{'':22}" + f"{'here':>9}{'paper':>9}{'here':>10}{'paper*':>10}{'here':>8}{'paper':>8}{'here':>9}")
    total = StageProfile()
    total_parameters = 0.0
    for stage, (title, networks, paper) in ROWS.items():
        # Built anew, as fused networks have lost their normalisations' parameters.
        parameters = sum(count_parameters(models.network(n, fused=False)) for n in networks) / 1e6
        found = profile.stages[stage]
        print(_row(title, parameters if networks else None, found, paper))
        total_parameters += parameters
        total.macs += found.macs
        total.seconds += found.seconds
    total.peak_mb = profile.peak_mb
    print(_row("Overall", total_parameters, total, PaperRow(17.34, 5407.7, 76.51)))
    print("GMAC: 10^9 multiply-accumulates, counted by torch while it ran; half its floating-point operations.")
    print("* The paper calls its numbers FLOPs; their size reads like multiply-accumulates. On a TITAN Xp.")
    print("Lesion segmentation here: 3-D U-Net and 2DS. The work depends on the lungs' size and the grids.")


def _row(title: str, parameters: float | None, found: StageProfile, paper: PaperRow) -> str:
    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"

    return (
        f"{title:22}{number(parameters, 9, 2)}{number(paper.parameters, 9, 2)}"
        f"{number(found.macs / 1e9, 10, 1)}{number(paper.flops, 10, 1)}"
        f"{number(found.seconds, 8, 1)}{number(paper.seconds, 8, 1)}{number(found.peak_mb, 9, 0)}"
    )
