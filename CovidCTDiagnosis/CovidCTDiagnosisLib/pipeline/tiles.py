"""Run a 3-D network over a working grid, in slabs along k when it is too large for memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from .compute import count_macs, watch_macs


def run_network(
    network: nn.Module,
    ct: np.ndarray,
    device: torch.device,
    activate: Callable[[torch.Tensor], torch.Tensor],
    report: Callable[[float], None],
    slab_voxels: int,
    overlap: int,
) -> np.ndarray:
    """Dense inference.

    Args:
        network: (1, 1, K, J, I) to (1, C, K, J, I).
        ct: (K, J, I) float32, scaled.
        device: where the network is.
        activate: applied to the network's output.
        report: gets the fraction of the multiply-accumulates done.
        slab_voxels: at most about this many voxels at once.
        overlap: slices that a slab sees beyond those it answers for, on each side.

    Returns:
        (C, K, J, I) float32.
    """
    slabs = plan_slabs(ct.shape[0], max(slab_voxels // (ct.shape[1] * ct.shape[2]), 1), overlap)
    planned = sum(count_macs(network, (1, 1, seen.stop - seen.start, *ct.shape[1:])) for seen, _ in slabs)
    done = 0

    def advance(macs: int) -> None:
        nonlocal done
        done += macs
        report(done / planned)

    results = []
    with watch_macs(network, advance), torch.inference_mode():
        for seen, kept in slabs:
            x = torch.from_numpy(np.ascontiguousarray(ct[seen]))[None, None].to(device)
            output = activate(network(x))[0, :, kept.start - seen.start : kept.stop - seen.start]
            results.append(output.float().cpu().numpy())
    return results[0] if len(results) == 1 else np.concatenate(results, axis=1)


def plan_slabs(slices: int, most: int, overlap: int) -> list[tuple[slice, slice]]:
    """(slices seen, slices answered for) of each slab; the answered ones tile the range."""
    if slices <= most:
        return [(slice(0, slices), slice(0, slices))]
    # Slabs thinner than their overlap would do the same work again and again.
    kept = max(most - 2 * overlap, overlap, 1)
    count = -(-slices // kept)
    edges = [round(n * slices / count) for n in range(count + 1)]
    return [(slice(max(a - overlap, 0), min(b + overlap, slices)), slice(a, b)) for a, b in pairwise(edges)]
