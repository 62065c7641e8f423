"""DeepMedic, 3-D and 2-D U-Net: sizes, any shape in and out, a lone slice is a slice repeated without end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from CovidCTDiagnosisLib.networks import LESION_CLASSES, DeepMedic, UNet2D, UNet2DEnsemble, UNet3D, make_2ds
from CovidCTDiagnosisLib.networks.efficientnet import EfficientNetLite0
from CovidCTDiagnosisLib.networks.layers import Convolution3d
from CovidCTDiagnosisLib.pipeline.macs import count_parameters
from torch import nn

SMALL_PATHWAYS = ((1, (4, 4)), (3, (6, 6)), (5, (8, 8)))


def trained_looking(network: nn.Module) -> nn.Module:
    """Batch normalisations that know the statistics of random volumes, evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        network.train()(torch.rand(1, 1, 10, 16, 16))
    return network.eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("make", "millions", "tolerance"),
    [
        (DeepMedic, 2.12, 0.02),
        (UNet3D, 5.23, 0.005),
        (lambda: UNet3D(widths=(48, 96, 192, 384)), 11.76, 0.01),
    ],
)
def test_parameters_are_those_the_paper_or_the_docstring_names(
    make: Callable[[], nn.Module], millions: float, tolerance: float
) -> None:
    assert count_parameters(make()) / 1e6 == pytest.approx(millions, rel=tolerance)


@pytest.mark.parametrize("size", [(1, 17, 23), (2, 8, 9), (5, 9, 16), (13, 21, 7)])
def test_3d_networks_keep_any_size(size: tuple[int, int, int]) -> None:
    x = torch.rand(2, 1, *size)
    with torch.inference_mode():
        assert DeepMedic(SMALL_PATHWAYS, joint=4).eval()(x).shape == (2, 1, *size)
        assert UNet3D(widths=(2, 4, 6, 8)).eval()(x).shape == (2, len(LESION_CLASSES), *size)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (128, 128), (30, 47)])
def test_2d_network_keeps_any_size(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert UNet2D(widths=(2, 4, 6, 8, 10)).eval()(torch.rand(3, 1, *size)).shape == (3, 1, *size)


@pytest.mark.parametrize("size", [(32, 32), (17, 33), (128, 96)])
def test_2d_network_with_a_pretrained_path_keeps_any_size(size: tuple[int, int]) -> None:
    network = UNet2D((2, 4, 6, 8, 10), "efficientnet-lite0", outputs=2).eval()
    with torch.inference_mode():
        assert network(torch.rand(3, 1, *size)).shape == (3, 2, *size)


def test_depthwise_convolutions_stay_in_single_precision_on_a_processor() -> None:
    network = EfficientNetLite0()
    kinds: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, _, y: kinds[m.groups > 1].add(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(2, 1, 32, 32))
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}


def test_efficientnet_halves_its_maps_and_has_the_published_size() -> None:
    network = EfficientNetLite0().eval()
    with torch.inference_mode():
        maps = network(torch.rand(1, 1, 64, 96))
    assert [m.shape[1] for m in maps] == list(EfficientNetLite0.widths)
    assert [tuple(m.shape[2:]) for m in maps] == [(64 >> n, 96 >> n) for n in range(1, 6)]
    # 4.652 million, without the head (320 x 1280 and its normalisation, 1280 x 1000 + 1000), for one channel of three.
    assert count_parameters(network) == 4_652_008 - 320 * 1280 - 2 * 1280 - 1280 * 1000 - 1000 - 2 * 32 * 9


def test_sizes_that_need_no_padding_are_those_that_the_lowest_level_divides() -> None:
    assert UNet2D().multiple == 16 and UNet2D(contracting="efficientnet-lite0").multiple == 32


def test_an_ensemble_says_the_mean_probability_of_its_members() -> None:
    network = UNet2DEnsemble(3, widths=(2, 4, 6), outputs=2).eval()
    x = torch.rand(2, 1, 9, 14)
    with torch.inference_mode():
        alone = torch.stack([torch.sigmoid(member(x)) for member in network.members])
        torch.testing.assert_close(torch.sigmoid(network(x)), alone.mean(0))
    assert alone.std(0).min() > 0  # no two members begin alike
    assert network.outputs == 2 and network.multiple == 4


def test_an_ensemble_that_is_certain_keeps_a_finite_logit() -> None:
    network = UNet2DEnsemble(2, widths=(2, 4)).eval()
    for member, bias in zip(network.members, (200.0, 300.0), strict=True):
        member.classify.bias.data.fill_(bias)
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 4, 4)).isfinite().all()


def test_2ds_is_one_network_unless_a_bundle_says_how_many() -> None:
    assert isinstance(make_2ds(widths=(2, 4)), UNet2D)
    assert len(make_2ds(members=2, widths=(2, 4)).members) == 2


def test_an_unknown_contracting_path_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet"):
        UNet2D(contracting="resnet")  # type: ignore[arg-type]


def test_the_paper_names_as_many_levels_and_pathways_as_are_built() -> None:
    assert len(UNet3D().down) == 4 and len(UNet2D().down) == 5 and len(DeepMedic().pathways) == 3
    assert UNet3D().down[0][0].out_channels == 32 and UNet2D().down[0][0].out_channels == 16


@pytest.mark.parametrize("size", [(5, 6, 9), (1, 7, 8)])
def test_padding_does_not_leak_into_a_multiple_sized_input(size: tuple[int, int, int]) -> None:
    """The answer for an odd size is that for the input padded by its edge, cut."""
    network = trained_looking(UNet3D(widths=(3, 5, 7)))
    x = torch.rand(1, 1, *size)
    padded = [(-n) % 4 if n > 1 else 0 for n in size]
    wide = nn.functional.pad(x, (0, padded[2], 0, padded[1], 0, padded[0]), mode="replicate")
    with torch.inference_mode():
        expected = network(wide)[:, :, : size[0], : size[1], : size[2]]
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(("kernel", "bias"), [(1, True), (3, True), (3, False), (5, True)])
def test_convolution_of_a_lone_slice_is_that_of_the_slice_repeated(kernel: int, bias: bool) -> None:
    layer = Convolution3d(3, 4, kernel, bias=bias)
    x = torch.randn(2, 3, 1, 9, 8)
    repeated = layer(x.expand(-1, -1, 2 * kernel + 1, -1, -1))
    torch.testing.assert_close(layer(x), repeated[:, :, kernel : kernel + 1], atol=1e-5, rtol=1e-4)
    # Edges are repeated, so the ends of a volume of equal slices are no exception.
    torch.testing.assert_close(layer(x), repeated[:, :, -1:], atol=1e-5, rtol=1e-4)


def test_convolution_of_a_volume_repeats_its_edges() -> None:
    layer = Convolution3d(2, 3, 3)
    x = torch.randn(1, 2, 4, 5, 6)
    padded = nn.functional.pad(x, (1,) * 6, mode="replicate")
    torch.testing.assert_close(layer(x), nn.functional.conv3d(padded, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("make", "slices"),
    [(DeepMedic, 105), (lambda: UNet3D(widths=(4, 6, 8)), 24), (lambda: UNet3D(widths=(4, 6, 8)), 21)],
)
def test_a_lone_slice_is_seen_as_the_middle_of_a_long_volume_of_it(make: Callable[[], nn.Module], slices: int) -> None:
    network = trained_looking(make())
    slice_ = torch.rand(1, 1, 1, 17, 15)
    with torch.inference_mode():
        long = network(slice_.expand(-1, -1, slices, -1, -1))
        lone = network(slice_)
        other = network(slice_.flip(4))
    torch.testing.assert_close(lone[:, :, 0], long[:, :, slices // 2], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(lone, other, atol=1e-2)


@pytest.mark.parametrize("make", [lambda: DeepMedic(SMALL_PATHWAYS, joint=4), lambda: UNet3D(widths=(4, 6, 8))])
def test_lone_slices_in_a_batch_do_not_see_each_other(make: Callable[[], nn.Module]) -> None:
    network = trained_looking(make())
    x = torch.rand(3, 1, 1, 15, 20)
    with torch.inference_mode():
        together = network(x)
        for n in range(3):
            torch.testing.assert_close(together[n : n + 1], network(x[n : n + 1]), atol=1e-5, rtol=1e-4)
