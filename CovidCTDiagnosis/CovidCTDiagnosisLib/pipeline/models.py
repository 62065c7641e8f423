"""The bundle's networks, built and ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ..bundle import Bundle
from ..errors import BundleError
from ..networks import DeepMedic, Novelty, UNet3D, VolumeClassifier, make_2ds
from .compute import fuse_batch_norm
from .memory import CPU_TAKES_OVER, Attempt, first_that_fits

Result = TypeVar("Result")

_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "lungs": DeepMedic,
    "lesions": UNet3D,
    "involvement": make_2ds,
    "classifier": VolumeClassifier,
    "novelty": Novelty,
}

_SAID = {
    "lungs": {"coarse_mm", "fine_mm"},
    "lesions": {"step_mm", "threshold"},
    "involvement": {"step_mm"},
    "classifier": {"slice_mm", "longest_side"},
}
"""What a bundle's metadata must say of each network's input."""

_CALIBRATION = {"slope", "offset", "threshold"}


@dataclass(frozen=True)
class Models:
    """The networks of a bundle on one device, and what the bundle says about their use.

    Attributes:
        bundle: where they come from.
        device: where they are.
    """

    bundle: Bundle
    device: torch.device

    def require(self, *names: str) -> None:
        """Raise BundleError unless the bundle has all of these networks and says how they are used.

        To the classifier belongs the calibration of its scores.
        """
        missing = [f"network {name}" for name in names if name not in self.bundle.networks]
        if not missing:
            missing = [
                f"{key} for {name}"
                for name in names
                for key in _SAID.get(name, set()) - self.preprocessing(name).keys()
            ]
        calibrated = "classifier" not in names or self.bundle.settings.get("diagnosis", {}).keys() >= _CALIBRATION
        if not missing and not calibrated:
            missing = ["calibration of the diagnosis"]
        if missing:
            raise BundleError(
                f"The bundle {self.bundle.name} has no {' and no '.join(missing)}.", "Choose a complete bundle."
            )

    def network(self, name: str, fused: bool = True) -> Any:
        """``lungs``, ``lesions``, ``involvement`` (2DS), ``classifier`` or ``novelty``, in evaluation mode.

        Args:
            name: which.
            fused: with batch normalisations folded into convolutions, which changes nothing but speed.

        Raises:
            BundleError: the bundle lacks it, or its weights do not fit its architecture.
        """
        weights = self.bundle.weights(name)
        try:
            network = _MAKERS[name](**self.bundle.networks[name]["architecture"])
            network.load_state_dict(weights)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"The weights of {name} in the bundle {self.bundle.name} do not fit the network.",
                "Install the bundle again or choose another one.",
            ) from error
        network.eval()
        return (fuse_batch_norm(network) if fused else network).to(self.device)

    def on_card_or_cpu(self, work: Callable[[Models], Result], warn: Callable[[str], None]) -> Result:
        """Work on this device; once more, on the CPU, where a graphics card has not enough memory.

        Args:
            work: gets the networks on a device.
            warn: told when the CPU takes over.

        Raises:
            MemoryError, RuntimeError: the CPU has not enough memory either; see ``is_out_of_memory``.
        """
        attempts = [Attempt(self.device, lambda: work(self))]
        if self.device.type != "cpu":
            on_cpu = replace(self, device=torch.device("cpu"))
            attempts.append(Attempt(on_cpu.device, lambda: work(on_cpu), CPU_TAKES_OVER))
        result: Result = first_that_fits(attempts, warn)
        return result

    def preprocessing(self, name: str) -> dict[str, Any]:
        """What the bundle says is done to a CT before this network sees it."""
        preprocessing: dict[str, Any] = self.bundle.network(name)["preprocessing"]
        return preprocessing
