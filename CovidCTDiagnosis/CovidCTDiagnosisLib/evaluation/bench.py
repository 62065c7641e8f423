"""``covid-ct bench``: seconds per stage, share of the matrix-multiply peak, memory, cost of relevance."""

from __future__ import annotations

from pathlib import Path

from ..bundle import Bundle, open_bundle
from ..ct import fetch_sample, read_scan
from ..pipeline.compute import choose_device, describe_device, matrix_gflops
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from ..pipeline.scan_input import scan_input
from .profile import profile_analysis
from .relevance_bench import relevance_costs, relevance_table

PAPER_SECONDS = 76.51


def print_bench(scan: Path | None, bundle: Path | None, device: str) -> None:
    """Print the tables for one CT (the NIfTI sample by default)."""
    tune_allocator()
    scan = scan or fetch_sample("chest-nifti")
    opened = open_bundle(bundle)
    machine = describe_device(choose_device(device))
    peak = matrix_gflops()
    profile = profile_analysis(scan, opened, device)
    print(f"{machine['name']}, {machine['threads']} threads; matrix multiply peaks at {peak:.0f} GFLOP/s")
    print(f"{'stage':12}{'seconds':>9}{'GFLOP/s':>9}{'of peak':>9}{'peak MB':>9}")
    for name, stage in profile.stages.items():
        speed = 2 * stage.macs / 1e9 / stage.seconds if stage.seconds else 0.0
        print(f"{name:12}{stage.seconds:9.1f}{speed:9.1f}{speed / peak:9.0%}{stage.peak_mb:9.0f}")
    whole = sum(stage.seconds for stage in profile.stages.values())
    print(f"{'whole':12}{whole:9.1f}{'':18}{profile.peak_mb:9.0f}")
    print(f"paper, on a TITAN Xp: {PAPER_SECONDS} s; ratio {whole / PAPER_SECONDS:.2f}")
    print()
    print("\n".join(_relevance_lines(scan, opened)))


def _relevance_lines(scan: Path, bundle: Bundle) -> list[str]:
    """On the CPU, where zennit's maps are computed too."""
    models = Models(bundle, choose_device("cpu"))
    settings = models.preprocessing("classifier")
    inputs = scan_input(read_scan(scan), models, slice_mm=settings["slice_mm"], longest_side=settings["longest_side"])
    return relevance_table(relevance_costs(models.network("classifier"), inputs))
