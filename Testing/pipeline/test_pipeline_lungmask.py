"""The optional engine lungmask: with the package itself where it is installed, else with a stand-in for it.

The stand-in has the package's surface (``LMInferer``, ``MODEL_URLS``) and a threshold instead of a network.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from CovidCTDiagnosisLib.ct import Volume
from CovidCTDiagnosisLib.errors import UsageError
from CovidCTDiagnosisLib.pipeline.lung_sides import LEFT, RIGHT
from CovidCTDiagnosisLib.pipeline.lungmask_engine import require_lungmask, segment_with_lungmask

CPU = torch.device("cpu")

_STAND_IN = """
import numpy as np
import torch

MODEL_URLS = {"R231CovidWeb": ("file:///nowhere/unet_r231covid-0de78a7e.pth", 3)}


class LMInferer:
    def __init__(self, modelname, modelpath, force_cpu, batch_size, tqdm_disable):
        assert modelname in MODEL_URLS and force_cpu and tqdm_disable
        # The package itself would unpickle anything: the engine must hand it a file of tensors alone.
        torch.load(modelpath, map_location="cpu", weights_only=True)
        self.batch_size, self.model = batch_size, torch.nn.Identity()

    def apply(self, image):
        for first in range(0, len(image), self.batch_size):
            self.model(torch.zeros(1))
        lung = (image > -930) & (image < -770)
        return np.where(lung, np.where(np.arange(image.shape[2]) < image.shape[2] // 2, 1, 2), 0)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "packages" / "lungmask"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mask.py").write_text(_STAND_IN)
    monkeypatch.syspath_prepend(package.parent)
    _forget_package()
    yield
    _forget_package()


def _forget_package() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lungmask"]:
        del sys.modules[name]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"last.weight": torch.zeros(3, 2), "last.bias": torch.zeros(3)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(UsageError, match="pip install lungmask"):
        require_lungmask()


@pytest.mark.usefixtures("stand_in")
def test_lungs_progress_and_origin(chest_phantom: Callable[..., Volume], weights: Path) -> None:
    ct = chest_phantom(spacing=(5.0, 5.0, 5.0))
    reported: list[float] = []
    lungs, origin = segment_with_lungmask(ct, weights, CPU, reported.append)
    assert lungs.dtype == np.uint8 and lungs.shape == ct.shape
    middle = ct.shape[2] // 2
    assert (lungs == RIGHT)[:, :, :middle].any() and not (lungs == LEFT)[:, :, :middle].any()
    assert reported == sorted(reported) and reported[-1] == 1 and len(reported) > 10
    assert origin["model"] == "weights.pth" and len(origin["sha256"]) == 64


class _Marker:
    """What a malicious weight file does: it runs a call when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("stand_in")
def test_a_weight_file_that_runs_code_is_refused_and_does_not_run(
    chest_phantom: Callable[..., Volume], tmp_path: Path
) -> None:
    evil, marker = tmp_path / "evil.pth", tmp_path / "ran"
    evil.write_bytes(pickle.dumps({"last.bias": _Marker(marker)}, protocol=2))
    with pytest.raises(UsageError, match=r"evil\.pth"):
        segment_with_lungmask(chest_phantom(spacing=(8.0, 8.0, 8.0)), evil, CPU, lambda f: None)
    assert not marker.exists()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("content", [[1.0], {}, {"bias": torch.zeros(6)}], ids=["list", "empty", "lobes"])
def test_weights_of_something_else_are_refused(
    content: object, chest_phantom: Callable[..., Volume], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"other\.pth"):
        segment_with_lungmask(chest_phantom(spacing=(8.0, 8.0, 8.0)), tmp_path / "other.pth", CPU, lambda f: None)


def test_the_package_itself_takes_a_local_file(chest_phantom: Callable[..., Volume], tmp_path: Path) -> None:
    """With random weights: its answer means nothing, its shape, labels and progress do."""
    resunet = pytest.importorskip("lungmask.resunet")
    from lungmask.utils import preprocess

    ct = chest_phantom(spacing=(10.0, 10.0, 40.0))
    torch.manual_seed(0)
    network = resunet.UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)
    slices = np.clip(preprocess(ct.voxels.copy(), resolution=[256, 256])[0], -1024, 600)
    with torch.inference_mode():
        answer = network.eval()(torch.from_numpy((slices[:, None] + 1024) / 1624).float())
    weights = network.state_dict()
    # Its clean-up needs background: half of this, half right lung.
    list(weights.values())[-1].add_(torch.tensor([0.0, (answer[:, 0] - answer[:, 1]).median(), -100.0]))
    torch.save(weights, tmp_path / "random.pth")
    reported: list[float] = []
    lungs, origin = segment_with_lungmask(ct, tmp_path / "random.pth", CPU, reported.append)
    assert lungs.shape == ct.shape and set(np.unique(lungs)) == {0, RIGHT}
    assert reported[-1] == 1 and origin["model"] == "random.pth"
