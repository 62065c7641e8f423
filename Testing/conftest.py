"""Fixtures for all rooms: synthetic chest CT, paths of the real sample CTs and training data, tiny bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from CovidCTDiagnosisLib.ct import Volume, fetch_sample
from CovidCTDiagnosisLib.ct.phantom import make_chest

if TYPE_CHECKING:
    import torch
    from CovidCTDiagnosisLib.networks import DeepMedic, UNet2D, UNet3D
    from torch import nn


@pytest.fixture(scope="session")
def chest_phantom() -> Callable[..., Volume]:
    """Make a chest phantom: `chest_phantom(size_mm=…, spacing=…, direction=…, centre=…, seed=…)`."""
    return make_chest


@pytest.fixture(scope="session")
def nifti_ct_path() -> Path:
    """A real chest CT, 512 x 512 x 133 voxels."""
    return fetch_sample("chest-nifti")


@pytest.fixture(scope="session")
def dicom_ct_path() -> Path:
    """A folder with a real chest CT, a DICOM series of 64 slices."""
    return fetch_sample("chest-dicom")


@pytest.fixture(scope="session")
def training_data() -> Path:
    """The folder with the real training data; tests that need it are skipped where it is absent."""
    given = os.environ.get("COVID_CT_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "series.csv").is_file():
        pytest.skip(f"no training data in {folder}: set COVID_CT_DATA to the folder that holds series.csv")
    return folder


def _only(weight: torch.Tensor, values: dict[tuple[int, int], float]) -> None:
    """A convolution that looks at the middle of its kernel alone: zero but for (output, input): value."""
    weight.zero_()
    for (output, channel), value in values.items():
        weight[(output, channel, *(n // 2 for n in weight.shape[2:]))] = value


def _handmade_lungs() -> DeepMedic:
    """Lung is what has little but lung-like HU (about -930 to -500) around it."""
    import torch
    from CovidCTDiagnosisLib.networks import DeepMedic

    network = DeepMedic(pathways=((1, (2, 1)),), joint=1).eval()
    (first, norm, _), (second, *_) = network.pathways[0].layers
    _only(first.weight, {(0, 0): -20.0, (1, 0): 4.0})
    norm.bias.copy_(torch.tensor([20 * 0.14, -4 * 0.5]))  # too dark below 0.14 of the window, too bright above 0.5
    second.weight.fill_(1 / 27)
    for module in [network.pathways[0].project, *network.joint.modules()]:
        if isinstance(module, torch.nn.Conv3d):
            module.weight.fill_(1.0)
    network.classify.weight.fill_(-8.0)
    network.classify.bias.fill_(3.0)
    return network


def _pass_through(network: nn.Module) -> nn.Module:
    """A U-Net whose first channel carries the input's grey values, at full resolution, up to `classify`."""
    for level in [*network.down, *network.up]:
        for convolution in (level[0], level[3]):
            _only(convolution.weight, {(0, 0): 1.0})
    network.classify.weight.zero_()
    network.classify.bias.zero_()
    return network.eval()


def _handmade_lesions() -> UNet3D:
    """What is brighter than -650 HU is lesion, what is brighter than -250 HU consolidation."""
    import torch
    from CovidCTDiagnosisLib.networks import UNet3D

    network = _pass_through(UNet3D(widths=(4, 8)))
    network.classify.weight[1:3, 0] = torch.tensor([60.0, 120.0]).reshape(2, 1, 1, 1)
    glass, solid = (-60 * (hu + 1000) / 1400 for hu in (-650, -250))
    network.classify.bias.copy_(torch.tensor([0.0, glass, glass + solid, -200.0, -200.0]))
    return network


def _handmade_involvement() -> UNet2D:
    """Lesion is what is brighter than -600 HU."""
    from CovidCTDiagnosisLib.networks import UNet2D

    network = _pass_through(UNet2D(widths=(4, 8)))
    network.classify.weight[0, 0] = 60.0
    network.classify.bias.fill_(-60 * 400 / 1400)
    return network


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of small networks that needs no training.

    The segmentation networks' weights are written by hand, so that they find lungs and bright lesions of the
    chest phantom; the classifier's are random, so its answer means nothing.
    """
    import torch
    from CovidCTDiagnosisLib.bundle import NetworkRecord, write_bundle
    from CovidCTDiagnosisLib.networks import VolumeClassifier

    small: dict[str, Any] = {"bins": [2, 1], "neurons": 16, "clusters": 4}
    torch.manual_seed(1)
    classifier = VolumeClassifier(**small)
    for name, parameter in classifier.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)  # so that relevance reaches the inputs instead of the biases
    lesion_step = {"step_mm": [4.0, 3.0, 3.0]}
    with torch.no_grad():
        networks = {
            "lungs": ({"pathways": [[1, [2, 1]]], "joint": 1}, {"coarse_mm": 8.0, "fine_mm": 4.0}, _handmade_lungs()),
            "lesions": ({"widths": [4, 8]}, {**lesion_step, "threshold": 0.5}, _handmade_lesions()),
            "involvement": ({"widths": [4, 8]}, lesion_step, _handmade_involvement()),
            "classifier": (small, {"slice_mm": 6.0, "longest_side": 48}, classifier),
        }
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(
        folder,
        name="tiny",
        version="0.0.1",
        networks={
            name: NetworkRecord(architecture, preprocessing, network.state_dict())
            for name, (architecture, preprocessing, network) in networks.items()
        },
        settings={"diagnosis": {"slope": 2.0, "offset": -0.25, "threshold": 0.5}},
        model_card="# tiny\n\nFor tests.\n",
        license_text="For tests.\n",
    )
    return folder


@pytest.fixture
def new_scene(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Makes scenes with what Slicer's application gives its own: default colours and a cache."""
    import slicer

    # As Slicer's own modules do when it starts.
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    color_logics = []

    def make() -> Any:
        scene = slicer.vtkMRMLScene()
        cache = slicer.vtkCacheManager()
        cache.SetRemoteCacheDirectory(str(tmp_path))
        manager = slicer.vtkDataIOManager()
        manager.SetCacheManager(cache)
        scene.SetCacheManager(cache)
        scene.SetDataIOManager(manager)
        color_logics.append(slicer.vtkMRMLColorLogic())
        color_logics[-1].SetMRMLScene(scene)
        scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
        return scene

    yield make
    for logic in color_logics:
        logic.SetMRMLScene(None)
