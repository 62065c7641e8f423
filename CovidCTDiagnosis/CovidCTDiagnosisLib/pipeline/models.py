"""The bundle's networks, built and ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..bundle import Bundle
from ..errors import BundleError
from ..networks import DeepMedic, Novelty, UNet2D, UNet3D, VolumeClassifier
from .compute import fuse_batch_norm

_CLASSES: dict[str, type[nn.Module]] = {
    "lungs": DeepMedic,
    "lesions": UNet3D,
    "involvement": UNet2D,
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
        """Raise BundleError unless the bundle has all of these networks, and says how they are used."""
        missing = [f"network {name}" for name in names if name not in self.bundle.networks]
        if not missing:
            missing = [f"{key} for {name}" for name in names for key in _SAID[name] - self.preprocessing(name).keys()]
        if not missing and not self.bundle.settings.get("diagnosis", {}).keys() >= _CALIBRATION:
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
            network = _CLASSES[name](**self.bundle.networks[name]["architecture"])
            network.load_state_dict(weights)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"The weights of {name} in the bundle {self.bundle.name} do not fit the network.",
                "Install the bundle again or choose another one.",
            ) from error
        network.eval()
        return (fuse_batch_norm(network) if fused else network).to(self.device)

    def preprocessing(self, name: str) -> dict[str, Any]:
        """What the bundle says is done to a CT before this network sees it."""
        return self.bundle.networks[name]["preprocessing"]
