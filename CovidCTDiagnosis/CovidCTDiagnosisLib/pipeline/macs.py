"""Multiply-accumulates (MACs) of networks: counted while they run, for progress, or beforehand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

PROBE = (24, 64, 32)
"""Voxels along (k, j, i) of what ``estimate_macs`` runs: U-Nets and 2DS need no padding for it, DeepMedic little."""

_COUNTED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


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


def count_macs(network: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass on inputs of these shapes, without computing anything."""
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
