"""Rules for the gate F = ReLU(F_g * F_s), which no rule of the paper's framework covers (section 4.3)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Gate(ABC):
    """Shares the relevance R of a product among its factors.

    ``paid`` is how often it hands R down: R_g + R_s = paid R.
    """

    paid = 1

    @abstractmethod
    def split(self, ct: Tensor, lesions: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """R_g and R_s from the two branches' features and the relevance of their product."""


class GradientTimesInputGate(Gate):
    """The paper's choice, R_g = R_s = R: F_g dF/dF_g = F_s dF/dF_s = F, so each factor gets all of R."""

    paid = 2

    def split(self, ct: Tensor, lesions: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return relevance, relevance


class HalfAndHalfGate(Gate):
    """R_g = R_s = R / 2: the same maps at half the height, and nothing is created."""

    def split(self, ct: Tensor, lesions: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return relevance / 2, relevance / 2


class WinnerTakeAllGate(Gate):
    """All of R to the factor of larger magnitude; to the CT's branch if both are equal."""

    def split(self, ct: Tensor, lesions: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        to_ct = torch.where(ct.abs() >= lesions.abs(), relevance, 0)
        return to_ct, relevance - to_ct


GATES: dict[str, Gate] = {
    "gradient-times-input": GradientTimesInputGate(),
    "half-and-half": HalfAndHalfGate(),
    "winner-take-all": WinnerTakeAllGate(),
}
