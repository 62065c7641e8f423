"""Where and how networks run: device, memory allocator, exact work counts, progress within a forward pass."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import ResourceError, UsageError

CPU_TAKES_OVER = "The graphics card has not enough memory: the CPU is used, which takes longer."

OLDEST_TORCH = (2, 5)

PROBE = (24, 64, 32)
"""Voxels along (k, j, i) of what ``estimate_macs`` runs: U-Nets and 2DS need no padding for it, DeepMedic little."""

Network = TypeVar("Network", bound=nn.Module)

_COUNTED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


def tune_allocator() -> None:
    """Let glibc keep freed blocks of up to 64 MB: small feature maps come and go, and fresh pages cost time.

    Larger ones go back at once (kept, they cost 1.7 GB of peak memory); large pages make them cheap, see
    ``__main__``.
    """
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
        except OSError:
            return  # not glibc
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 64 << 20)
        libc.mallopt(m_trim_threshold, 256 << 20)


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
    """``auto`` takes a CUDA graphics card when there is one.

    Raises:
        UsageError: CUDA was asked for and is not there.
        ResourceError: see ``require_torch``.
    """
    require_torch()
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("No CUDA graphics card can be used.", "Compute on the processor (--device cpu).")
    if name == "cpu" or not available:
        return torch.device("cpu")
    # Relevance splits sums into positive and negative parts: that needs all the bits.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


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


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB (10^6 bytes)."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def matrix_gflops(seconds: float = 1.0, size: int = 2048) -> float:
    """This machine's best single-precision matrix product, 10^9 floating-point operations a second."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    best, end = 0.0, time.perf_counter() + seconds
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


@contextmanager
def watch_macs(network: nn.Module, advance: Callable[[int], None]) -> Iterator[None]:
    """Call ``advance`` with the multiply-accumulates of each layer as soon as it has run."""

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.ConvTranspose2d):
            advance(inputs[0].numel() * weight[0].numel())
        elif isinstance(module, nn.Conv3d) and inputs[0].shape[2] == 1:
            advance(output.numel() * weight[0].numel() // module.kernel_size[0])
        else:
            advance(output.numel() * weight[0].numel())

    hooks = [m.register_forward_hook(after) for m in network.modules() if isinstance(m, _COUNTED)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def report_macs(network: nn.Module, planned: int, report: Callable[[float], None]) -> Iterator[None]:
    """Call ``report`` with the share of the planned multiply-accumulates that is done, after each layer."""
    done = 0

    def advance(macs: int) -> None:
        nonlocal done
        done += macs
        report(min(done / planned, 1.0))

    with watch_macs(network, advance):
        yield


def estimate_macs(network: nn.Module, sizes: Iterable[tuple[int, int, int]], device: torch.device) -> int:
    """Multiply-accumulates of passes on single-channel inputs of these sizes, from one on a small input.

    Exact but for padding: sizes that a U-Net pads to a multiple come out too low by what it adds, DeepMedic by a few
    percent either way. ``count_macs`` is exact but takes seconds to get ready.
    """
    sizes = list(sizes)
    small = tuple(min(n, probe) for n, probe in zip(np.max(sizes, axis=0).tolist(), PROBE, strict=True))
    macs = 0

    def add(more: int) -> None:
        nonlocal macs
        macs += more

    # A counter that watches the real work must not see this pass.
    with watch_macs(network, add), torch.inference_mode(), _disable_current_modes():
        network(torch.zeros((1, 1, *small), device=device))
    return max(round(macs * sum(math.prod(size) for size in sizes) / math.prod(small)), 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: by a plain RuntimeError too, of torch's CPU allocator, cuDNN or cuBLAS."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    told = "out of memory" in text or "alloc_failed" in text or ("alloc" in text and "memory" in text)
    return isinstance(error, RuntimeError) and told


def give_back(device: torch.device) -> None:
    """Return a graphics card's memory that is kept for reuse; not within a handler, as the error holds on to it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def memory_errors(message: str, remedy: str) -> Iterator[None]:
    """Raise ResourceError with this message and remedy where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(message, remedy) from error


def count_macs(network: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass on inputs of these shapes, without computing anything."""
    import copy

    total = 0

    def add(macs: int) -> None:
        nonlocal total
        total += macs

    shadow = copy.deepcopy(network).to("meta")
    # A counter that watches the real work must not see this pass.
    with watch_macs(shadow, add), torch.inference_mode(), _disable_current_modes():
        shadow(*(torch.empty(shape, device="meta") for shape in shapes))
    return total


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in network.parameters())
