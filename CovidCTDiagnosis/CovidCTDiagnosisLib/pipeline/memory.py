"""Memory of the computer and of a graphics card: how much there is, and what is done where it runs out."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import ResourceError

_NO_MEMORY = (
    "out of memory",
    "alloc_failed",
    "cudnn_status_not_initialized",
    "cublas_status_not_initialized",
    "unable to find an engine",
)
CPU_TAKES_OVER = "The graphics card has not enough memory: the CPU is used, which takes longer."


class ContainerLimit(NamedTuple):
    """Names of the files that tell a control group's memory, below ``CONTROL_GROUP``."""

    limit: str
    used: str
    statistics: str


CONTROL_GROUP = Path("/sys/fs/cgroup")
CONTAINER_LIMITS = (
    ContainerLimit("memory.max", "memory.current", "memory.stat"),
    ContainerLimit("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Of control groups, version 2 and 1."""


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


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB (10^6 bytes)."""
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; within a container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min(psutil.virtual_memory().available, *map(_free_in_container, CONTAINER_LIMITS))


def _free_in_container(files: ContainerLimit) -> float:
    """Bytes below a control group's limit, infinite where there is none."""
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in (files.limit, files.used))
        statistics = (CONTROL_GROUP / files.statistics).read_text()
    except (OSError, ValueError):  # "max" is no number
        return math.inf
    # What was read from files counts as used, and is given back where it is needed.
    cached = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return max(limit - used + (int(cached[1]) if cached else 0), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: by a plain RuntimeError too, of torch's CPU allocator, cuDNN or cuBLAS.

    Where a card's memory is nearly full already, its libraries cannot start, and say that instead.
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    told = any(sign in text for sign in _NO_MEMORY) or ("alloc" in text and "memory" in text)
    return isinstance(error, RuntimeError) and told


def give_back(device: torch.device) -> None:
    """Return a graphics card's memory that is kept for reuse; not within a handler, as the error holds on to it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Attempt(NamedTuple):
    """One way to do a work.

    Attributes:
        device: whose memory it needs.
        work: does it.
        told: what the user is told before, where an earlier way did not fit.
    """

    device: torch.device
    work: Callable[[], Any]
    told: str = ""


def first_that_fits(attempts: Sequence[Attempt], warn: Callable[[str], None]) -> Any:
    """What the first of these attempts gives that has enough memory.

    Args:
        attempts: the best one first.
        warn: told before each further one.

    Raises:
        MemoryError, RuntimeError: the last one has not enough memory either; see ``is_out_of_memory``.
    """
    for attempt, following in pairwise(attempts):
        try:
            return attempt.work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        give_back(attempt.device)
        warn(following.told)
    return attempts[-1].work()


@contextmanager
def memory_errors(message: str, remedy: str) -> Iterator[None]:
    """Raise ResourceError with this message and remedy where memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(message, remedy) from error
