"""Where and how networks run: the device, and what makes them fast on it."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ResourceError, UsageError
from .memory import is_out_of_memory

OLDEST_TORCH = (2, 5)
MATRIX_SIDE, MATRIX_SECONDS = 2048, 1.0
"""Of the product that is tried for so long, to know how fast a computer is."""

Network = TypeVar("Network", bound=nn.Module)


def require_torch(version: str = torch.__version__) -> None:
    """Raise ResourceError for a PyTorch that is too old; that of Slicer on some Macs does not know NumPy 2."""
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ResourceError(
            f"PyTorch {version} is too old: {oldest} or newer is needed.",
            "Install a newer one; for Macs with Intel processors, and programs made for them, there is none.",
        )


def choose_device(name: str) -> torch.device:
    """``auto`` takes a CUDA graphics card when there is one that can be used.

    Raises:
        UsageError: CUDA was asked for and cannot be used.
        ResourceError: see ``require_torch``.
    """
    require_torch()
    available = name != "cpu" and torch.cuda.is_available() and _card_computes()
    if name == "cuda" and not available:
        raise UsageError("No CUDA graphics card can be used.", "Compute on the processor (--device cpu).")
    if name == "cpu" or not available:
        return torch.device("cpu")
    # Relevance splits sums into positive and negative parts: that needs all the bits.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def _card_computes() -> bool:
    """Whether this PyTorch can use the graphics card: it may be too old or too new for it, which shows at first use."""
    try:
        with torch.inference_mode():
            nn.Conv2d(1, 1, 3).to("cuda")(torch.zeros(1, 1, 8, 8, device="cuda")).cpu()
    except RuntimeError as error:
        return is_out_of_memory(error)  # it can, but is busy: that is told where it is needed
    except AssertionError:  # without CUDA in this PyTorch
        return False
    return True


def describe_device(device: torch.device) -> dict[str, Any]:
    """Type, name and threads, for the study."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def matrix_gflops() -> float:
    """This machine's best single-precision matrix product, 10^9 floating-point operations a second."""
    size = MATRIX_SIDE
    a, b = torch.rand(size, size), torch.rand(size, size)
    best, end = 0.0, time.perf_counter() + MATRIX_SECONDS
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - begun) / 1e9)
    return best


def channels_last(network: Network) -> Network:
    """The same network, its 2-D convolutions laid out in memory so that a CPU runs them faster."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """Fold batch normalisations into the convolutions before them, in place; exact in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for n in range(len(module) - 1):
                convolution, norm = module[n], module[n + 1]
                if isinstance(convolution, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                    module[n] = fuse_conv_bn_eval(convolution, norm)
                    module[n + 1] = nn.Identity()
    return network
