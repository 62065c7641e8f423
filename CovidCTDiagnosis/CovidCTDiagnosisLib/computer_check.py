"""Whether this computer can analyze a CT, and what to do where it cannot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .errors import CovidCTError, ResourceError

PACKAGES = ("torch", "numpy", "SimpleITK", "scipy", "skimage", "safetensors", "jsonschema", "rich", "psutil", "PIL")
NEEDED_MEMORY_GB, NEEDED_DISK_GB = 4.5, 1.0
REFERENCE_SECONDS, REFERENCE_GFLOPS = 13.0, 185.0
"""Of a 512 x 512 x 133 CT, on a processor with this speed of matrix products."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        good: whether it will do.
        found: what was found, in plain words.
        remedy: what to do where it will not; may be empty.
    """

    name: str
    good: bool
    found: str
    remedy: str = ""


def check_computer(bundle: Path | None = None) -> Iterator[Check]:
    """All checks, one after the other; those that need a missing package say so.

    Args:
        bundle: folder with weights, or None for those shipped.
    """
    packages = _packages()
    yield packages
    if packages.good:
        yield _graphics()
        yield _memory()
        yield _weights(bundle)
        yield _time()
    yield _disk()


def _packages(known: Callable[[str], object] = find_spec) -> Check:
    missing = [name for name in PACKAGES if known(name) is None]
    if missing:
        remedy = "Let the panel install them, or install this program again with pip."
        return Check("Packages", False, f"Missing: {', '.join(missing)}.", remedy)
    try:
        import torch

        from .pipeline.compute import require_torch

        require_torch()
    except ResourceError as error:
        return Check("Packages", False, error.message, error.remedy)
    except Exception as error:  # as where a library of the system is missing, or an antivirus program has taken one
        remedy = "Install PyTorch again; on Windows also the Visual C++ Redistributable."
        return Check("Packages", False, f"PyTorch cannot be loaded ({str(error) or type(error).__name__}).", remedy)
    return Check("Packages", True, f"All are there; PyTorch {torch.__version__}.")


def _graphics() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("Graphics card", True, "None that PyTorch can use; the processor will do.")
    free, total = (size / 1e9 for size in torch.cuda.mem_get_info())
    name = torch.cuda.get_device_name()
    remedy = "" if free >= NEEDED_MEMORY_GB else "Too little: close programs that use it, or the processor takes over."
    return Check("Graphics card", True, f"{name}, {free:.1f} of {total:.1f} GB free.", remedy)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 1e9, memory.total / 1e9
    good = free >= NEEDED_MEMORY_GB
    remedy = "" if good else f"Close other programs: {NEEDED_MEMORY_GB:g} GB are needed."
    return Check("Memory", good, f"{free:.1f} of {total:.1f} GB free.", remedy)


def _disk() -> Check:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 1e9
    good = free >= NEEDED_DISK_GB
    remedy = "" if good else f"Free some space: {NEEDED_DISK_GB:g} GB are needed."
    return Check("Disk", good, f"{free:.1f} GB free for temporary files.", remedy)


def _weights(bundle: Path | None) -> Check:
    from .bundle import open_bundle

    try:
        opened = open_bundle(bundle)
    except CovidCTError as error:
        return Check("Weights", False, error.message, error.remedy)
    count = len(opened.sha256)
    return Check("Weights", True, f"{opened.name} {opened.version}: {count} files, all as they were published.")


def _time() -> Check:
    import torch

    from .pipeline.compute import matrix_gflops

    if torch.cuda.is_available():
        return Check("Time", True, "A CT takes a few seconds on the graphics card.")
    seconds = REFERENCE_SECONDS * REFERENCE_GFLOPS / matrix_gflops()
    return Check("Time", True, f"A CT of 512 x 512 x 133 voxels takes about {seconds:.0f} s.")
