"""3-D layers that also take a lone slice, as a volume with this slice repeated without end.

For such a volume every layer gives the same on each slice, so a 3-D convolution is a 2-D one with its kernel
summed along k, exactly, at a fraction of the price. One set of weights serves volumes and slices.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Convolution3d(nn.Conv3d):
    """Convolution with zero padding; (B, C, 1, J, I) counts as a repeated slice."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        if input.shape[2] > 1 or self.kernel_size[0] == 1:
            return super().forward(input)
        padding = self.padding[1:]
        return F.conv2d(input[:, :, 0], self.weight.sum(2), self.bias, padding=padding).unsqueeze(2)


def window_of(x: Tensor, size: int) -> tuple[int, int, int]:
    """A pooling or upsampling window of this size; 1 along k for a repeated slice."""
    return (1 if x.shape[2] == 1 else size, size, size)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the far edges of (B, C, K, J, I) until each axis is a multiple; a repeated slice stays one."""
    padding = [(-n) % m for n, m in zip(x.shape[2:], window_of(x, multiple), strict=True)]
    return F.pad(x, (0, padding[2], 0, padding[1], 0, padding[0]), mode="replicate")
