"""Work counts, folded normalisations and slabs change how networks run, never what they answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.errors import ResourceError, UsageError
from CovidCTDiagnosisLib.networks import CVAE, DeepMedic, UNet2D, UNet2DEnsemble, UNet3D, VolumeClassifier, make_2ds
from CovidCTDiagnosisLib.pipeline.compute import choose_device, fuse_batch_norm, require_torch
from CovidCTDiagnosisLib.pipeline.macs import count_macs, estimate_macs, watch_macs
from CovidCTDiagnosisLib.pipeline.memory import free_memory, is_out_of_memory, memory_errors
from CovidCTDiagnosisLib.pipeline.tiles import plan_slabs, run_network
from CovidCTDiagnosisLib.training.lesions import INVOLVEMENT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Make = Callable[[], nn.Module]
Size = tuple[int, int, int]
CPU = torch.device("cpu")
MORE_THAN_THERE_IS = 1 << 50


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def with_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 3)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


@pytest.mark.parametrize(
    ("make", "shapes", "uncounted"),
    [
        (DeepMedic, [(1, 1, 9, 15, 17)], 0),
        (DeepMedic, [(2, 1, 1, 15, 17)], 0),
        (UNet3D, [(1, 1, 8, 16, 9)], 0),
        (UNet3D, [(3, 1, 1, 16, 9)], 0),
        (UNet2D, [(3, 1, 32, 40)], 0),
        (lambda: UNet2D(contracting="efficientnet-lite0"), [(3, 1, 32, 64)], 0),
        (UNet2DEnsemble, [(3, 1, 32, 64)], 0),
        # NetVLAD's sum over slices is a product of matrices, no layer: slices x clusters x neurons.
        (VolumeClassifier, [(4, 1, 40, 30)] * 2, 4 * 64 * 512),
    ],
)
def test_multiply_accumulates_are_those_that_torch_counts(
    make: Make, shapes: list[tuple[int, ...]], uncounted: int
) -> None:
    network = make().eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network(*(torch.rand(shape) for shape in shapes))
    assert count_macs(network, *shapes) + uncounted == counter.get_total_flops() // 2


def test_transposed_convolutions_are_counted() -> None:
    network = CVAE((16, 24)).eval()
    inputs = (torch.rand(2, 1, 16, 24), torch.rand(2, 1, 16, 24), torch.tensor([0, 1]))
    done: list[int] = []
    counter = FlopCounterMode(display=False)
    with counter, watch_macs(network, done.append), torch.inference_mode():
        network(*inputs)
    assert sum(done) == counter.get_total_flops() // 2


def test_counting_neither_computes_nor_changes_the_network() -> None:
    network = UNet3D()
    count_macs(network, (1, 1, 4000, 4000, 4000))  # 10^15 voxels: could not be computed
    assert next(network.parameters()).device.type == "cpu"
    assert not any(m._forward_hooks for m in network.modules())


class Slicewise(nn.Module):
    """2DS on (1, 1, K, J, I), slice by slice."""

    def __init__(self, **architecture: Any) -> None:
        super().__init__()
        self.network = make_2ds(**architecture)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x[0].transpose(0, 1)).transpose(0, 1)[None]


def test_the_estimate_does_not_count_as_work() -> None:
    """Of the counter by which the table of complexity is made."""
    with FlopCounterMode(display=False) as counter:
        assert estimate_macs(nn.Conv3d(1, 2, 3), [(8, 8, 8)], CPU) > 0
    assert counter.get_total_flops() == 0


def estimated_share(make: Make, sizes: list[Size]) -> float:
    """The estimate over what is counted."""
    network = make().eval()
    return estimate_macs(network, sizes, CPU) / sum(count_macs(network, (1, 1, *size)) for size in sizes)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (DeepMedic, [(52, 43, 61)]),  # the whole chest, coarse
        (DeepMedic, [(110, 104, 121)]),  # the lungs, fine
        (DeepMedic, [(90, 104, 121), (67, 104, 121)]),  # in slabs
        (UNet3D, [(40, 112, 96), (24, 200, 160), (32, 72, 104)]),
        (Slicewise, [(1, 160, 208), (1, 112, 96), (1, 32, 48)]),
        (partial(Slicewise, **INVOLVEMENT), [(1, 160, 192), (1, 96, 128)]),
    ],
)
def test_estimated_work_is_within_three_percent(make: Make, sizes: list[Size]) -> None:
    assert estimated_share(make, sizes) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("make", "size", "padded"),
    [(UNet3D, (61, 125, 173), (64, 128, 176)), (Slicewise, (1, 125, 173), (1, 128, 176))],
)
def test_what_a_u_net_pads_is_missing_from_the_estimate(make: Make, size: Size, padded: Size) -> None:
    assert estimated_share(make, [size]) == pytest.approx(np.prod(size) / np.prod(padded), abs=0.005)


def test_tiles_smaller_than_the_probe_are_estimated_by_their_own_size() -> None:
    assert estimated_share(UNet3D, [(8, 16, 24)] * 3) == pytest.approx(1, abs=1e-6)


def test_running_out_of_memory_becomes_one_sentence_with_a_remedy() -> None:
    with pytest.raises(ResourceError, match="Too little") as caught, memory_errors("Too little.", "Buy more."):
        torch.empty(MORE_THAN_THERE_IS)
    assert caught.value.code == 5 and caught.value.remedy == "Buy more."
    assert is_out_of_memory(caught.value.__cause__) and type(caught.value.__cause__) is RuntimeError
    with pytest.raises(ResourceError), memory_errors("Too little.", ""):
        np.empty(MORE_THAN_THERE_IS)
    assert is_out_of_memory(torch.OutOfMemoryError())
    for told in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"):
        assert is_out_of_memory(RuntimeError(told))


def test_other_errors_are_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="size") as caught, memory_errors("Too little.", ""):
        torch.zeros(2) @ torch.zeros(3, 3, 4)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("cannot allocate memory"))


@pytest.mark.parametrize(
    ("make", "shape", "left"),
    [
        # DeepMedic normalises the sum of its pathways: no convolution stands right before that.
        (lambda: DeepMedic(((1, (4, 4)), (3, (6, 6))), joint=5), (1, 1, 7, 9, 8), 1),
        (lambda: DeepMedic(((1, (4, 4)), (3, (6, 6))), joint=5), (2, 1, 1, 9, 8), 1),
        (lambda: UNet2D(widths=(4, 6, 8)), (2, 1, 17, 20), 0),
        (lambda: UNet2D((4, 6, 8, 8, 8), "efficientnet-lite0"), (2, 1, 17, 20), 0),
        (lambda: UNet2DEnsemble(2, widths=(4, 6, 8)), (2, 1, 17, 20), 0),
        (lambda: UNet3D(widths=(4, 6)), (1, 1, 4, 9, 8), 0),
    ],
    ids=["DeepMedic", "DeepMedic, lone slices", "UNet2D", "UNet2D, pretrained path", "ensemble", "UNet3D"],
)
def test_folded_batch_normalisation_gives_the_same_answer(make: Make, shape: tuple[int, ...], left: int) -> None:
    network, x = with_statistics(make()), torch.rand(shape)
    with torch.inference_mode():
        before = network(x).clone()
        fused = fuse_batch_norm(network)
        torch.testing.assert_close(fused(x), before, atol=1e-6, rtol=1e-4)
    assert before.std() > 1e-4
    assert sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in fused.modules()) == left


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 700), st.integers(1, 200), st.integers(0, 40))
def test_slabs_answer_for_every_slice_once_and_see_their_surroundings(slices: int, most: int, overlap: int) -> None:
    slabs = plan_slabs(slices, most, overlap)
    answered = [k for _, kept in slabs for k in range(kept.start, kept.stop)]
    assert answered == list(range(slices))
    for seen, kept in slabs:
        assert seen.start == max(kept.start - overlap, 0) or len(slabs) == 1
        assert seen.stop == min(kept.stop + overlap, slices)
        assert kept.stop > kept.start
        assert seen.stop - seen.start <= max(most, 3 * overlap, 1)


class Local(nn.Module):
    """Sees three slices to either side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 3, 3, padding=1), nn.Conv3d(3, 2, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("slab_slices", [8, 11, 25, 100])
def test_slabs_give_what_the_whole_gives(slab_slices: int) -> None:
    network = Local().eval()
    ct = np.random.default_rng(0).random((25, 6, 7), np.float32)
    reported: list[float] = []
    with torch.inference_mode():
        whole = torch.sigmoid(network(torch.from_numpy(ct)[None, None]))[0].numpy()
    slabs = run_network(
        network, ct, torch.device("cpu"), torch.sigmoid, reported.append, slab_slices * 6 * 7, overlap=3
    )
    np.testing.assert_allclose(slabs, whole, atol=1e-6)
    assert reported == sorted(reported) and reported[-1] == pytest.approx(1)
    assert len(reported) == 3 * len(plan_slabs(25, slab_slices, 3))


def test_too_small_an_overlap_would_be_seen() -> None:
    """The comparison above can fail: with an overlap of 2 the answer is another one."""
    network, device = Local().eval(), torch.device("cpu")
    ct = np.random.default_rng(0).random((25, 6, 7), np.float32)
    whole, cut = (
        run_network(network, ct, device, torch.sigmoid, lambda f: None, slices * 42, overlap=2) for slices in (100, 9)
    )
    assert np.abs(whole - cut).max() > 1e-5


def test_a_pytorch_that_is_too_old_is_said() -> None:
    for version in ("2.5.0", "2.13.0+cpu", "3.0"):
        require_torch(version)
    for version in ("2.2.2", "2.4.1+cu121", "1.13.1"):
        with pytest.raises(ResourceError, match=r"is too old: 2\.5"):
            require_torch(version)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA card")
def test_cuda_is_refused_where_there_is_none() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="CUDA") as caught:
        choose_device("cuda")
    assert caught.value.code == 2 and "--device cpu" in caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA card")
def test_a_card_that_is_there_and_cannot_be_used_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="can be used"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (
            {"memory.max": "3000000", "memory.current": "1000000", "memory.stat": "anon 7\ninactive_file 400000\n"},
            2400000,
        ),
        ({"memory.max": "max", "memory.current": "1000000", "memory.stat": ""}, None),
        (
            {
                "memory/memory.limit_in_bytes": "3000000",
                "memory/memory.usage_in_bytes": "2999999",
                "memory/memory.stat": "inactive_file 3\ntotal_inactive_file 5",
            },
            4,
        ),
        ({}, None),
    ],
    ids=["version 2", "no limit", "version 1", "no container"],
)
def test_a_containers_limit_is_kept(
    files: dict[str, str], free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("CovidCTDiagnosisLib.pipeline.memory.CONTROL_GROUP", tmp_path)
    found = free_memory(torch.device("cpu"))
    assert found == free if free is not None else found > 10**7
