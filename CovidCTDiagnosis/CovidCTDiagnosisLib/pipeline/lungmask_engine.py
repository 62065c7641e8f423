"""Lungs by the optional package ``lungmask`` (Hofmanninger et al. 2020), model R231CovidWeb."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ct.volume import Volume
from ..errors import InputError, UsageError

MODEL = "R231CovidWeb"
BATCH = 4
"""Slices at once."""


def require_lungmask() -> None:
    """Raise UsageError unless ``lungmask`` can be imported."""
    _package()


def _package() -> Any:
    try:
        import lungmask.mask
    except ImportError as error:
        raise UsageError(
            f"The engine lungmask needs its package, which cannot be loaded ({error}).",
            "Install it: pip install lungmask.",
        ) from error
    return lungmask.mask


def segment_with_lungmask(
    axial: Volume, weights: Path | None, device: torch.device, report: Callable[[float], None]
) -> tuple[np.ndarray, dict[str, str]]:
    """Segment the lungs of an axial CT.

    Args:
        axial: HU, k inferior to superior, j anterior to posterior, i right to left.
        weights: a local .pth file; None downloads those of ``MODEL`` once, into torch's cache.
        device: ``cpu`` keeps it off the graphics card.
        report: gets the fraction of the work done.

    Returns:
        uint8 (K, J, I), 1 right lung, 2 left lung; and what to say of the weights in the study.

    Raises:
        UsageError: the package is missing, or the weights cannot be read without running code, are not those of
            a lung model, or cannot be downloaded.
        InputError: no lungs are found.
    """
    package = _package()
    inferer, sha256 = _inferer(package, weights, device)
    batches = -(-axial.shape[0] // BATCH)
    done = 0

    def advance(*_: object) -> None:
        nonlocal done
        done += 1
        report(min(done / batches, 1.0))

    inferer.model.register_forward_hook(advance)
    lungs = np.asarray(inferer.apply(np.ascontiguousarray(axial.voxels)), np.uint8)
    if not lungs.any():
        raise InputError("No lungs were found in this image.", "Give a CT of the chest that shows both lungs.")
    return lungs, {"model": weights.name if weights else MODEL, "sha256": sha256, "version": _version()}


def _inferer(package: Any, weights: Path | None, device: torch.device) -> tuple[Any, str]:
    """The package's own inference with weights that hold nothing but tensors, and the SHA-256 of these."""
    state = _read(weights) if weights else _download(package)
    if not _is_lung_model(state):
        raise UsageError(f"{weights or MODEL} has no weights of two lungs.", "Give the weights of R231CovidWeb.")
    sha256 = hashlib.sha256()
    for name, tensor in state.items():
        sha256.update(name.encode() + tensor.contiguous().numpy().tobytes())
    with tempfile.TemporaryDirectory() as folder:
        # The package unpickles the file that it is given: it gets one written here, of tensors alone.
        copy = Path(folder) / "weights.pth"
        torch.save(state, copy)
        try:
            inferer = package.LMInferer(
                modelname=MODEL,
                modelpath=str(copy),
                force_cpu=device.type == "cpu",
                batch_size=BATCH,
                tqdm_disable=True,
            )
        except RuntimeError as error:
            raise UsageError(
                f"{weights or MODEL} does not fit lungmask's network.", "Give the weights of R231CovidWeb."
            ) from error
    return inferer, sha256.hexdigest()


def _is_lung_model(state: Any) -> bool:
    """Whether these are named tensors whose last one has the three classes background, right and left."""
    if not isinstance(state, dict) or not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
        return False
    last = list(state.values())[-1]
    return last.ndim > 0 and len(last) == 3


def _read(weights: Path) -> Any:
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(
            f"{weights.name} cannot be read as weights: it is damaged or holds more than numbers.",
            "Give a .pth file of lungmask as its makers publish it.",
        ) from error


def _download(package: Any) -> Any:
    address = package.MODEL_URLS[MODEL][0]
    try:
        return torch.hub.load_state_dict_from_url(
            address, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"The weights of lungmask cannot be downloaded ({error}).",
            f"Get {address} and give it with --lungmask-weights.",
        ) from error


def _version() -> str:
    try:
        return version("lungmask")
    except PackageNotFoundError:
        return "unknown"
