"""Run a network over a working grid tile by tile: only where it is wanted, and in what memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import nn

from ..ct.regrid import Region, bounding_region
from .macs import estimate_macs, report_macs
from .memory import CPU_TAKES_OVER, Attempt, first_that_fits, free_memory

MEMORY_USED = 0.75
"""Of the free memory, by a tile."""
BATCH_VOXELS = 200_000
"""So many voxels of equal tiles go through the network together, as one small tile cannot keep a processor busy."""
HALVINGS = 3
"""So often tiles are halved before the CPU takes over from a graphics card, or gives up."""


@dataclass(frozen=True)
class Tile:
    """A box of a working grid, along (k, j, i).

    Attributes:
        seen: what the network gets.
        core: what it answers for, within ``seen``.
    """

    seen: Region
    core: Region

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels seen along (k, j, i)."""
        k, j, i = (s.stop - s.start for s in self.seen)
        return k, j, i


Plan = Callable[[int], list[Tile]]
"""Tiles that each see at most about so many voxels."""


def affordable_voxels(device: torch.device, most: int, bytes_per_voxel: int) -> int:
    """How large a tile may be: what ``MEMORY_USED`` of the free memory holds, at least one voxel.

    Args:
        device: where the network is.
        most: voxels from which on larger tiles gain nothing.
        bytes_per_voxel: of the network's feature maps at their peak.
    """
    return min(most, max(int(free_memory(device) * MEMORY_USED) // bytes_per_voxel, 1))


def run_network(
    network: nn.Module,
    ct: np.ndarray,
    device: torch.device,
    activate: Callable[[torch.Tensor], torch.Tensor],
    report: Callable[[float], None],
    slab_voxels: int,
    overlap: int,
    warn: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """Dense inference in slabs along k.

    Of more than one slab the answer is nearly that of the whole: pathways at low resolution see farther than any
    overlap that is worth its time (up to 0.2 in a probability, at some hundred voxels of the sample CT).

    Args:
        network: (B, 1, K, J, I) to (B, C, K, J, I).
        ct: (K, J, I) float32, scaled.
        device: where the network is.
        activate: applied to the network's output.
        report: gets the fraction of the multiply-accumulates done.
        slab_voxels: at most about this many voxels at once.
        overlap: slices that a slab sees beyond those it answers for, on each side.
        warn: told when memory runs out and what is done about it.

    Returns:
        (C, K, J, I) float32.

    Raises:
        MemoryError, RuntimeError: the CPU has not enough memory either; see ``is_out_of_memory``.
    """
    plane = slice(0, ct.shape[1]), slice(0, ct.shape[2])

    def plan(voxels: int) -> list[Tile]:
        slabs = plan_slabs(ct.shape[0], max(voxels // (ct.shape[1] * ct.shape[2]), 1), overlap)
        return [Tile((seen, *plane), (kept, *plane)) for seen, kept in slabs]

    return run_tiles(network, ct, device, activate, report, plan, slab_voxels, warn=warn)


def run_tiles(
    network: nn.Module,
    ct: np.ndarray,
    device: torch.device,
    activate: Callable[[torch.Tensor], torch.Tensor],
    report: Callable[[float], None],
    plan: Plan,
    tile_voxels: int,
    blend: tuple[int, int, int] = (0, 0, 0),
    warn: Callable[[str], None] = lambda text: None,
    dtype: type[np.floating] = np.float32,
) -> np.ndarray:
    """Dense inference on tiles; without enough memory on smaller ones, then on the CPU instead of a graphics card.

    Args:
        network: (B, 1, K, J, I) to (B, C, K, J, I).
        ct: (K, J, I) float32, scaled.
        device: where the network is.
        activate: applied to the network's output.
        report: gets the fraction of the multiply-accumulates done, which never goes back.
        plan: gives the tiles for a number of voxels.
        tile_voxels: at most about this many voxels at once.
        blend: voxels along (k, j, i) on either side of a core's border over which tiles fade into each other.
        warn: told when memory runs out and what is done about it.
        dtype: of the result.

    Returns:
        (C, K, J, I), zero where no tile answers.

    Raises:
        MemoryError, RuntimeError: the CPU has not enough memory either; see ``is_out_of_memory``.
    """
    furthest = 0.0

    def forward(fraction: float) -> None:
        nonlocal furthest
        furthest = max(furthest, fraction)
        report(furthest)

    def work(device: torch.device, voxels: int) -> np.ndarray:
        return _run(network.to(device), ct, device, activate, forward, plan, voxels, blend, dtype)

    owner = "computer" if device.type == "cpu" else "graphics card"
    smaller = f"The {owner} ran out of memory: smaller tiles are used."
    attempts = [
        Attempt(device, partial(work, device, tile_voxels >> halvings), smaller) for halvings in range(HALVINGS + 1)
    ]
    if device.type != "cpu":
        cpu = torch.device("cpu")
        attempts.append(Attempt(cpu, partial(work, cpu, tile_voxels >> HALVINGS), CPU_TAKES_OVER))
    result: np.ndarray = first_that_fits(attempts, warn)
    return result


def _run(
    network: nn.Module,
    ct: np.ndarray,
    device: torch.device,
    activate: Callable[[torch.Tensor], torch.Tensor],
    report: Callable[[float], None],
    plan: Plan,
    tile_voxels: int,
    blend: tuple[int, int, int],
    dtype: type[np.floating],
) -> np.ndarray:
    tiles = plan(tile_voxels)
    planned = estimate_macs(network, (tile.size for tile in tiles), device)
    weights = _total_weight(tiles, ct.shape, blend)
    result: np.ndarray | None = None
    with report_macs(network, planned, report), torch.inference_mode():
        for batch in _batches(tiles, min(BATCH_VOXELS, tile_voxels)):
            x = torch.from_numpy(np.stack([ct[tile.seen] for tile in batch]))[:, None].to(device)
            outputs = activate(network(x)).float().cpu().numpy()
            if result is None:
                result = np.zeros((outputs.shape[1], *ct.shape), dtype)
            for tile, output in zip(batch, outputs, strict=True):
                answer, weight = _answering(tile, blend)
                k, j, i = (slice(a.start - s.start, a.stop - s.start) for a, s in zip(answer, tile.seen, strict=True))
                result[(slice(None), *answer)] += (output[:, k, j, i] * (weight / weights[answer])).astype(dtype)
    assert result is not None, "there is always a tile: lungs are never empty"
    return result


def _batches(tiles: list[Tile], most: int) -> Iterator[list[Tile]]:
    """Tiles of equal size, together at most so many voxels, or one."""
    for size, equal in groupby(sorted(tiles, key=lambda tile: tile.size), key=lambda tile: tile.size):
        together, same = max(most // math.prod(size), 1), list(equal)
        yield from (same[first : first + together] for first in range(0, len(same), together))


def _total_weight(tiles: list[Tile], shape: tuple[int, ...], blend: tuple[int, int, int]) -> np.ndarray:
    total = np.zeros(shape, np.float32)
    for tile in tiles:
        answer, weight = _answering(tile, blend)
        total[answer] += weight
    return total


def _answering(tile: Tile, blend: tuple[int, int, int]) -> tuple[Region, np.ndarray]:
    """The core widened by what is blended, and the weight there, which falls linearly across the core's border."""
    parts, ramps = [], []
    for seen, core, width in zip(tile.seen, tile.core, blend, strict=True):
        part = slice(max(core.start - width, seen.start), min(core.stop + width, seen.stop))
        centre = np.arange(part.start, part.stop) + 0.5
        inward = np.minimum(centre - core.start, core.stop - centre)
        ramps.append(np.clip(0.5 + inward / (2 * width), 0, 1) if width else np.ones(len(centre)))
        parts.append(part)
    weight = ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
    return (parts[0], parts[1], parts[2]), weight.astype(np.float32)


def plan_tiles(
    support: np.ndarray, most: int, halo: tuple[int, int, int], multiple: tuple[int, int, int] = (1, 1, 1)
) -> list[Tile]:
    """Tiles whose cores hold each voxel of a mask exactly once, each shrunk to the part of the mask in it.

    A box that is too large is cut in two where the cut costs least, across the axis longest in halos.

    Args:
        support: bool (K, J, I), where answers are wanted; not empty.
        most: a tile sees at most this many voxels, unless it would be hardly more than halo.
        halo: voxels along (k, j, i) that a tile sees beyond its core, within the grid.
        multiple: sizes along (k, j, i) that the network needs no padding for; met where the grid allows.

    Returns:
        The tiles, inferior to superior as far as they are cut along k.
    """
    k, j, i = (slice(0, n) for n in support.shape)
    return _cut(support, (k, j, i), most, halo, multiple)


def plan_slices(support: np.ndarray, most: int, halo: int, multiple: int) -> list[Tile]:
    """``plan_tiles`` for a 2-D network: each tile lies in one axial slice, halo and multiple are in plane."""
    plane = slice(0, support.shape[1]), slice(0, support.shape[2])
    return [
        tile
        for k in np.flatnonzero(support.any((1, 2)))
        for tile in _cut(support, (slice(int(k), int(k) + 1), *plane), most, (0, halo, halo), (1, multiple, multiple))
    ]


def _cut(
    support: np.ndarray, box: Region, most: int, halo: tuple[int, int, int], multiple: tuple[int, int, int]
) -> list[Tile]:
    if not support[box].any():
        return []
    within = bounding_region(support[box])
    core = tuple(slice(b.start + w.start, b.start + w.stop) for b, w in zip(box, within, strict=True))
    seen = tuple(map(_widen, core, halo, multiple, support.shape))
    length = [c.stop - c.start for c in core]
    axis = max(range(3), key=lambda a: length[a] / max(halo[a], 1) if length[a] > 1 else 0)
    voxels = np.prod([s.stop - s.start for s in seen])
    # Tiles thinner than their halo would do the same work again and again.
    if voxels <= most or length[axis] < 2 * max(halo[axis], 1):
        return [Tile((seen[0], seen[1], seen[2]), (core[0], core[1], core[2]))]
    middle = (core[axis].start + core[axis].stop) // 2
    halves = (slice(core[axis].start, middle), slice(middle, core[axis].stop))
    boxes = [(*core[:axis], half, *core[axis + 1 :]) for half in halves]
    return [tile for b in boxes for tile in _cut(support, (b[0], b[1], b[2]), most, halo, multiple)]


def _widen(core: slice, halo: int, multiple: int, size: int) -> slice:
    """The halo on both sides, and what is missing to a multiple, within the grid."""
    start, stop = max(core.start - halo, 0), min(core.stop + halo, size)
    length = min(-(-(stop - start) // multiple) * multiple, size)
    start = min(start, size - length)
    return slice(start, start + length)


def plan_slabs(slices: int, most: int, overlap: int) -> list[tuple[slice, slice]]:
    """(slices seen, slices answered for) of each slab; the answered ones tile the range."""
    if slices <= most:
        return [(slice(0, slices), slice(0, slices))]
    # Slabs thinner than their overlap would do the same work again and again.
    kept = max(most - 2 * overlap, overlap, 1)
    count = -(-slices // kept)
    edges = [round(n * slices / count) for n in range(count + 1)]
    return [(slice(max(a - overlap, 0), min(b + overlap, slices)), slice(a, b)) for a, b in pairwise(edges)]
