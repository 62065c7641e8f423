"""Fixtures for all rooms: synthetic chest CT, paths of the real sample CTs and training data, tiny bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from CovidCTDiagnosisLib.ct import Volume, fetch_sample

if TYPE_CHECKING:
    import torch
    from CovidCTDiagnosisLib.networks import DeepMedic, UNet2D, UNet3D
    from torch import nn

Vector = tuple[float, float, float]


def _in_ellipsoid(position: np.ndarray, centre: Vector, radii: Vector) -> np.ndarray:
    """Where positions (3, K, J, I) in mm lie inside an ellipsoid."""
    scaled = [(position[axis] - centre[axis]) / radii[axis] for axis in range(3)]
    return scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2 < 1


def _make_chest(
    size_mm: Vector = (360.0, 260.0, 320.0),
    spacing: Vector = (3.0, 3.0, 5.0),
    direction: tuple[Vector, ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    centre: Vector = (12.5, -140.0, 730.0),
    seed: int = 0,
) -> Volume:
    """A chest in HU with noise: body, ribs and spine, heart, trachea, two lungs with vessels, air around.

    Args:
        size_mm: extent of the grid along i, j, k; the anatomy scales with the LPS box it covers when the
            direction is the identity.
        spacing: mm along i, j, k.
        direction: of the grid; the anatomy stays as it is in the patient (LPS).
        centre: LPS position of the middle of grid and anatomy.
        seed: for vessels and noise.
    """
    random = np.random.default_rng(seed)
    size = [max(1, round(extent / step)) for extent, step in zip(size_mm, spacing, strict=True)]
    axes = np.asarray(direction) * np.asarray(spacing)
    origin = np.asarray(centre) - axes @ ((np.array(size) - 1) / 2)
    k, j, i = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in reversed(size)), indexing="ij")
    # Relative to the centre, and scaled to a thorax of 360 x 260 x 320 mm.
    at = np.tensordot(axes, np.stack([i, j, k]), 1) + (origin - np.asarray(centre))[:, None, None, None]
    at *= np.array([360 / size_mm[0], 260 / size_mm[1], 320 / size_mm[2]])[:, None, None, None]

    hu = np.full(k.shape, -1000.0, np.float32)
    body = (at[0] / 165) ** 2 + (at[1] / 110) ** 2 < 1
    hu[body] = 40
    hu[body & ((at[0] / 155) ** 2 + (at[1] / 100) ** 2 >= 1)] = -100  # fat
    ribs = ((at[0] / 140) ** 2 + (at[1] / 92) ** 2 < 1) & ((at[0] / 132) ** 2 + (at[1] / 85) ** 2 >= 1)
    hu[ribs & (np.mod(at[2] + 0.3 * at[1], 30) < 10)] = 500
    hu[(at[0] / 16) ** 2 + ((at[1] - 75) / 16) ** 2 < 1] = 350  # spine
    lungs = np.zeros(k.shape, bool)
    for side, width in ((-1, 56), (1, 52)):
        lungs |= _in_ellipsoid(at, (side * 70, 0, 0), (width, 76, 125))
    lungs &= ~_in_ellipsoid(at, (22, -28, -45), (52, 44, 56))  # heart
    hu[lungs] = -850
    for _ in range(60):  # vessels: short rods
        start = random.uniform((-110, -60, -100), (110, 60, 100))
        along = random.normal(size=3)
        along /= np.linalg.norm(along)
        offset = at - start[:, None, None, None]
        length = np.tensordot(along, offset, 1)
        apart = np.square(offset).sum(axis=0) - length**2
        hu[lungs & (np.abs(length) < 25) & (apart < random.uniform(2, 5) ** 2)] = 40
    hu[((at[0] / 9) ** 2 + ((at[1] - 15) / 9) ** 2 < 1) & (at[2] > 40)] = -1000  # trachea
    hu += random.normal(0, 15, hu.shape)
    return Volume(
        voxels=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        spacing=spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=direction,
    )


@pytest.fixture(scope="session")
def chest_phantom() -> Callable[..., Volume]:
    """Make a chest phantom: `chest_phantom(size_mm=…, spacing=…, direction=…, centre=…, seed=…)`."""
    return _make_chest


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
        for convolution, norm in (level[:2], level[3:5]):
            _only(convolution.weight, {(0, 0): 1.0})
            if norm.running_mean is None:
                norm.bias.fill_(5.0)  # instance normalisation centres on zero: keep clear of leaky ReLU's bend
    network.classify.weight.zero_()
    network.classify.bias.zero_()
    return network.eval()


def _handmade_lesions() -> UNet3D:
    """What is brighter than the mean of the box around the lungs is lesion, the brightest consolidation."""
    import torch
    from CovidCTDiagnosisLib.networks import UNet3D

    network = _pass_through(UNet3D(widths=(4, 8)))
    network.classify.weight[1:3, 0] = torch.tensor([20.0, 40.0]).reshape(2, 1, 1, 1)
    network.classify.bias.copy_(torch.tensor([0.0, 16.0 - 100.0, 14.0 - 200.0, -200.0, -200.0]))
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
