"""Propagation rules, one class each (paper section 4.3; Bach et al. 2015; Montavon et al. 2019).

A rule shares the relevance R_j of a layer's outputs among its inputs: R_i = sum_j R_(i<-j). Relevance is
signed: positive speaks for the explained score, negative against it. Throughout, x_i is the layer's input,
w_ij its weight, b_j its bias, z_j = sum_i x_i w_ij + b_j, and a+ = max(a, 0), a- = min(a, 0), so z- <= 0.

Rules hold no state of a run and only read the layers, so threads may share both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks import NetVLAD, SpatialPyramidPooling
from .ledger import total
from .placed import Placed

EPSILON = 1e-9
"""The stabiliser: far below any preactivation that matters."""

Layer = TypeVar("Layer", bound=nn.Module)


class Passed(NamedTuple):
    """Relevance of a layer's inputs, and the sums for its ledger entry (see ``LedgerEntry``)."""

    relevance: Placed
    bias: float = 0.0
    stabiliser: float = 0.0
    created: float = 0.0


class Rule(ABC, Generic[Layer]):
    """How one kind of layer computes its output, and how it hands relevance down."""

    @abstractmethod
    def forward(self, layer: Layer, x: Tensor) -> tuple[Tensor, Any]:
        """The layer's output, and whatever ``backward`` wants kept."""

    @abstractmethod
    def backward(self, layer: Layer, kept: Any, relevance: Placed) -> Passed:
        """From the relevance of the outputs to that of the inputs."""


class LRP0(Rule[nn.Linear]):
    """R_i = sum_j x_i w_ij / z_j R_j (paper equation 8), the denominator z_j + EPSILON sign(z_j).

    The bias belongs to z_j and keeps its share b_j / z_j R_j.
    """

    def forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        z = layer(x)
        return z, (x, z)

    def backward(self, layer: nn.Linear, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        x, z = kept
        ratio, stabiliser = _ratio(relevance.maps, z)
        return Passed(Placed(x * (ratio @ layer.weight)), total(ratio * _bias(layer)), stabiliser)


class AlphaBeta(Rule[nn.Conv2d]):
    """R_i = sum_j (alpha (x_i w_ij)+ / z+_j + beta (x_i w_ij)- / z-_j) R_j (paper equation 9).

    The parts are z+_j = sum_i (x_i w_ij)+ + b+_j and z-_j = sum_i (x_i w_ij)- + b-_j: a bias counts once, in
    the part of its sign, and keeps its share. A neuron with one part only passes alpha R_j or beta R_j
    instead of (alpha + beta) R_j = R_j; the difference is booked as created.

    Both parts cost one convolution, and both ways down two, for inputs of any sign: with
    (x w)+- = (x w +- |x| |w|) / 2 and m_j = sum_i |x_i| |w_ij| + |b_j|,

        2 z+-_j = z_j +- m_j,    t+_j = alpha R_j / 2 z+_j,    t-_j = beta R_j / 2 z-_j,
        R_i = x_i sum_j w_ij (t+_j + t-_j) + |x_i| sum_j |w_ij| (t+_j - t-_j).

    The price is cancellation: a part below ``GUARD`` units in the last place of m_j is rounding and counts as
    absent. So this wants full single precision (on CUDA, no TF32 convolutions).
    """

    GUARD = 64

    def __init__(self, alpha: float = 2.0, beta: float = -1.0) -> None:
        if abs(alpha + beta - 1) > 1e-6:
            raise ValueError(f"alpha + beta must be 1, not {alpha} + {beta}")
        self.alpha = alpha
        self.beta = beta

    def forward(self, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        z = layer(x)
        return z, (x, z)

    def backward(self, layer: nn.Conv2d, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        x, z = kept
        bias = _bias(layer)
        signed = bool(x.amin() < 0)
        size, weight_size = x.abs() if signed else x, layer.weight.abs()
        magnitude = relevance.take(_convolution(layer, size, weight_size, bias.abs()))
        z = relevance.take(z)
        rounding = magnitude * (self.GUARD * torch.finfo(z.dtype).eps)
        positive, negative = z + magnitude, z - magnitude
        up, missing_positive = _share(relevance.values, positive, positive <= rounding)
        down, missing_negative = _share(relevance.values, negative, negative >= rounding.neg_())
        apart = torch.sub(up.mul_(self.alpha), down, alpha=self.beta)
        both = up.add_(down, alpha=self.beta)
        by_weight = _transposed(layer, x.shape, layer.weight, relevance.spread(both))
        by_size = _transposed(layer, x.shape, weight_size, relevance.spread(apart))
        passed = by_weight.mul_(x).addcmul_(size, by_size) if signed else by_weight.add_(by_size).mul_(x)
        return Passed(
            Placed(passed),
            bias=total(bias * _by_channel(both) + bias.abs() * _by_channel(apart)),
            created=-self.alpha * missing_positive - self.beta * missing_negative,
        )


def _share(relevance: Tensor, part: Tensor, lacking: Tensor) -> tuple[Tensor, float]:
    """R / part where the part is there, else 0, and the relevance of neurons that lack it; ``part`` is used up."""
    missing = total(relevance * lacking)
    return torch.div(relevance, part.masked_fill_(lacking, torch.inf), out=part), missing


class ZB(Rule[nn.Conv2d]):
    """The rule for pixels, with inputs l_i <= x_i <= h_i (Montavon et al. 2019): with

        z_ij = x_i w_ij - l_i w+_ij - h_i w-_ij = (x_i - l_i) w+_ij + (x_i - h_i) w-_ij >= 0,

    R_i = sum_j z_ij / (sum_i' z_i'j + EPSILON) R_j. The second form has no cancellation. A pixel with
    l_i = x_i = h_i gets exactly nothing. The layer's bias cancels from the rule; a neuron whose z_ij are all
    zero fires by its bias alone, and its relevance is booked there.

    Args:
        low, high: bounds, of the shape of the input.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low = low
        self.high = high

    def forward(self, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        return layer(x), x

    def backward(self, layer: nn.Conv2d, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        above_below = torch.cat([kept - self.low, kept - self.high], dim=1)
        # With one channel the layout of the pixels is open; this one is several times as fast.
        above_below = above_below.contiguous(memory_format=torch.channels_last)
        weight = torch.cat([layer.weight.clamp(min=0), layer.weight.clamp(max=0)], dim=1)
        z = relevance.take(_convolution(layer, above_below, weight))
        silent = z <= 0
        unshared = total(relevance.values * silent)
        ratio = torch.div(relevance.values, z.add_(EPSILON).masked_fill_(silent, torch.inf), out=z)
        parts = _transposed(layer, above_below.shape, weight, relevance.spread(ratio)).mul_(above_below)
        return Passed(
            Placed(parts.view(len(kept), 2, *kept.shape[1:]).sum(1)),
            bias=unshared,
            stabiliser=EPSILON * total(ratio),
        )


class PassThrough(Rule[nn.Module]):
    """Activations, one input to one output: R_i = R_j."""

    def forward(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        return layer(x), None

    def backward(self, layer: nn.Module, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        return Passed(relevance)


class WinnerTakeAllPool(Rule[nn.MaxPool2d]):
    """Max pooling: all relevance of a cell goes to its largest input.

    Of equals it is the first, so in a lesion that fills its pixels the map of the lesion mask leans to the upper left.
    """

    def forward(self, layer: nn.MaxPool2d, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        z, winners = F.max_pool2d(
            x,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            ceil_mode=layer.ceil_mode,
            return_indices=True,
        )
        return z, (winners, x.shape)

    def backward(self, layer: nn.MaxPool2d, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        winners, shape = kept
        return Passed(Placed(relevance.maps, winners, shape))


class WinnerTakeAllPyramid(Rule[SpatialPyramidPooling]):
    """Spatial pyramid pooling, as max pooling; bins overlap and levels share inputs, whose relevance adds."""

    def forward(self, layer: SpatialPyramidPooling, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        levels = [F.adaptive_max_pool2d(x, b, return_indices=True) for b in layer.bins]
        return torch.cat([z.flatten(1) for z, _ in levels], dim=1), ([w for _, w in levels], x.shape)

    def backward(self, layer: SpatialPyramidPooling, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        winners, shape = kept
        shares = relevance.maps.split([level[0].numel() for level in winners], dim=1)
        by_level = [share.view_as(level).flatten(2) for share, level in zip(shares, winners, strict=True)]
        return Passed(Placed(torch.cat(by_level, dim=2), torch.cat([w.flatten(2) for w in winners], dim=2), shape))


class FrozenNetVLAD(Rule[NetVLAD]):
    """NetVLAD as a linear map (paper section 4.3): assignments a_sk and both L2 norms are taken as numbers.

    With n_k = |V_k| and n the norm of the whole, the descriptor is v_kd = sum_s a_sk (x_sd - c_kd) / (n_k n),
    linear in x. LRP-0 on that map, R_sd = sum_k a_sk x_sd / (n_k n) R_kd / v_kd, is its gradient x input
    wherever R_kd is v_kd times a gradient, as below a linear layer. The centres c_kd are its bias.
    (Through free norms, gradient x input would sum to zero.)
    """

    def forward(self, layer: NetVLAD, x: Tensor) -> tuple[Tensor, Any]:
        """See the class."""
        assignments = layer.assignments(x)
        residuals = layer.residuals(x, assignments)
        within = _norm(residuals, dim=1)
        norms = within * _norm(residuals / within[:, None], dim=(0, 1))
        descriptor = residuals / norms[:, None]
        return descriptor.flatten(), (x, assignments / norms, descriptor)

    def backward(self, layer: NetVLAD, kept: Any, relevance: Placed) -> Passed:
        """See the class."""
        x, weight, descriptor = kept
        ratio, stabiliser = _ratio(relevance.maps.view_as(descriptor), descriptor)
        bias = -weight.sum(0)[:, None] * layer.centres
        return Passed(Placed(x * (weight @ ratio)), total(bias * ratio), stabiliser)


def _ratio(relevance: Tensor, z: Tensor) -> tuple[Tensor, float]:
    """R / (z + EPSILON sign(z)), the sign of zero positive, and the relevance that EPSILON absorbs."""
    stable = z + torch.where(z < 0, -EPSILON, EPSILON)
    ratio = relevance / stable
    return ratio, total(ratio * (stable - z))


def _norm(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The divisor of ``F.normalize``."""
    return torch.linalg.vector_norm(x, dim=dim).clamp(min=1e-12)


def _by_channel(x: Tensor) -> Tensor:
    """(S, C, ...) to (S, C)."""
    return x.sum(tuple(range(2, x.dim())))


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def _convolution(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _transposed(layer: nn.Conv2d, shape: torch.Size, weight: Tensor, s: Tensor) -> Tensor:
    """sum_j w_ij s_j, of the shape of the layer's input."""
    assert not isinstance(layer.padding, str)
    # Inputs at the far edges that a stride leaves out.
    rest = [
        size - ((n - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for size, n, stride, padding, dilation, kernel in zip(
            shape[2:], s.shape[2:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    return F.conv_transpose2d(s, weight, None, layer.stride, layer.padding, rest, layer.groups, layer.dilation)
