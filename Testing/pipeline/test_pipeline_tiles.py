"""Tiles cover the lungs once, are seamless, and shrink when a graphics card's memory runs out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.pipeline.tiles import HALVINGS, plan_slices, plan_tiles, run_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

CPU = torch.device("cpu")


def two_blobs() -> np.ndarray:
    support = np.zeros((20, 30, 50), bool)
    support[2:18, 5:25, 3:20] = support[4:16, 8:22, 30:47] = True
    return support


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(50, 3000), st.tuples(*[st.integers(0, 4)] * 3))
def test_each_wanted_voxel_lies_in_one_core(seed: int, most: int, halo: tuple[int, int, int]) -> None:
    support = np.random.default_rng(seed).random((9, 14, 17)) > 0.98
    support[4, 7, 8] = True
    answered = np.zeros(support.shape, int)
    for tile in plan_tiles(support, most, halo, (4, 4, 4)):
        answered[tile.core] += 1
        assert support[tile.core].any()
        for seen, core, width, size in zip(tile.seen, tile.core, halo, support.shape, strict=True):
            assert 0 <= seen.start <= max(core.start - width, 0)
            assert size >= seen.stop >= min(core.stop + width, size)
            assert (seen.stop - seen.start) % 4 == 0 or seen.stop - seen.start == size
    assert (answered[support] == 1).all() and answered.max() == 1


def test_slices_without_lung_are_skipped() -> None:
    tiles = plan_slices(two_blobs(), 10_000, halo=3, multiple=2)
    assert [tile.core[0].start for tile in tiles] == list(range(2, 18))
    assert all(tile.seen[0].stop - tile.seen[0].start == 1 for tile in tiles)


class Local(nn.Module):
    """Sees two voxels to either side; inputs above a size need more memory than there is."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 2, 3, padding=1))
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > self.most:
            torch.empty(1 << 50)
        return self.layers(x)


def run(network: nn.Module, ct: np.ndarray, most: int, blend: int, warnings: list[str], halo: int = 4) -> np.ndarray:
    reported: list[float] = []
    plan = partial(plan_tiles, two_blobs(), halo=(halo,) * 3)
    result = run_tiles(network, ct, CPU, torch.sigmoid, reported.append, plan, most, (blend,) * 3, warn=warnings.append)
    assert reported == sorted(reported) and reported[-1] == pytest.approx(1)
    return result


@pytest.mark.parametrize("blend", [0, 2])
def test_tiles_give_what_the_whole_gives(blend: int) -> None:
    torch.manual_seed(0)
    network, ct = Local().eval(), np.random.default_rng(0).random(two_blobs().shape, np.float32)
    with torch.inference_mode():
        whole = torch.sigmoid(network(torch.from_numpy(ct)[None, None]))[0].numpy()
    tiled = run(network, ct, 4000, blend, [])
    inside = two_blobs()
    np.testing.assert_allclose(tiled[:, inside], whole[:, inside], atol=1e-6)
    assert not tiled[:, 0, 0, 0].any()
    narrow = run(network, ct, 4000, 0, [], halo=1)
    assert np.abs(narrow[:, inside] - whole[:, inside]).max() > 1e-4


def test_equal_slices_go_together_as_far_as_they_fit() -> None:
    torch.manual_seed(0)
    support = np.zeros((24, 40, 48), bool)
    support[2:20, 8:24, 8:40] = True
    support[20:22, 8:16, 8:16] = True
    ct = np.random.default_rng(0).random(support.shape, np.float32)
    network, together = Local().eval(), list[int]()
    network.register_forward_pre_hook(lambda module, inputs: together.append(len(inputs[0])))
    plan = partial(plan_slices, support, halo=4, multiple=8)

    def run_slices(tile_voxels: int) -> np.ndarray:
        together.clear()
        return run_tiles(network, ct, CPU, torch.sigmoid, lambda f: None, plan, tile_voxels)

    alone = run_slices(1500)  # a large slice has 24 x 40 pixels
    assert together.pop(0) == 1, "this one counts the work"
    assert sorted(together) == [1] * 18 + [2]
    for most, expected in ((5000, [2, 3, 5, 5, 5]), (10**6, [2, 18])):
        np.testing.assert_allclose(run_slices(most), alone, atol=1e-6)
        assert sorted(together[1:]) == expected
    network.most = 5 * 24 * 40
    np.testing.assert_allclose(run_slices(16 * 24 * 40), alone, atol=1e-6)
    assert sorted(together[-6:]) == [2, 2, 4, 4, 4, 4]


def test_tiles_are_halved_until_they_fit() -> None:
    torch.manual_seed(0)
    ct, warnings = np.random.default_rng(0).random(two_blobs().shape, np.float32), list[str]()
    network = Local(most=9000).eval()
    result = run(network, ct, 30_000, 2, warnings)
    assert 1 <= len(warnings) <= HALVINGS
    assert set(warnings) == {"The computer ran out of memory: smaller tiles are used."}
    network.most = 10**9
    np.testing.assert_allclose(result[:, two_blobs()], run(network, ct, 30_000, 2, [])[:, two_blobs()], atol=1e-5)


def only_on_the_cpu(x: torch.Tensor) -> torch.Tensor:
    if x.device != CPU:
        raise torch.OutOfMemoryError
    return x


def test_the_cpu_takes_over_where_the_smallest_tiles_do_not_fit() -> None:
    ct, warnings = np.random.default_rng(0).random(two_blobs().shape, np.float32), list[str]()
    network, plan = nn.AvgPool3d(3, 1, 1), partial(plan_tiles, two_blobs(), halo=(1, 1, 1))
    device = torch.device("meta")
    result = run_tiles(network, ct, device, only_on_the_cpu, lambda f: None, plan, 9000, warn=warnings.append)
    expected = network(torch.from_numpy(ct)[None, None])[0].numpy()
    np.testing.assert_allclose(result[:, two_blobs()], expected[:, two_blobs()], atol=1e-6)
    assert warnings[:-1] == ["The graphics card ran out of memory: smaller tiles are used."] * HALVINGS
    assert warnings[-1].startswith("The graphics card has not enough memory: the CPU is used")


def test_without_memory_anywhere_the_error_reaches_the_caller() -> None:
    warnings: list[str] = []
    with pytest.raises(RuntimeError, match="alloc"):
        run(Local(most=10), np.zeros(two_blobs().shape, np.float32), 30_000, 0, warnings)
    assert len(warnings) == HALVINGS and not any("graphics card" in text for text in warnings)


def test_other_errors_reach_the_caller_at_once() -> None:
    warnings: list[str] = []
    two_channels = nn.Conv3d(2, 1, 1)
    with pytest.raises(RuntimeError, match="channels"):
        run(two_channels, np.zeros(two_blobs().shape, np.float32), 30_000, 0, warnings)
    assert not warnings
