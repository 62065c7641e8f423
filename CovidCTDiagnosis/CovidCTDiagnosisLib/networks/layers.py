"""3-D layers that also take a lone slice, as a volume with this slice repeated without end.

Convolutions repeat the edges of what they see. So a volume of equal slices gives equal slices, and a 3-D
convolution on it is a 2-D one with its kernel summed along k, exactly, at a fraction of the price: one set of
weights serves volumes and slices.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Convolution3d(nn.Conv3d):
    """Convolution that keeps the size by repeating edges; (B, C, 1, J, I) counts as a repeated slice.

    Args:
        inputs, outputs: channels.
        kernel: odd size, one number or along (k, j, i).
        bias: as in ``nn.Conv3d``.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int, int], bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, bias=bias)
        k, j, i = self.kernel_size
        self.border = (i // 2, i // 2, j // 2, j // 2, k // 2, k // 2)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        if not any(self.border):
            return super().forward(input)
        if input.shape[2] > 1:
            return super().forward(F.pad(input, self.border, mode="replicate"))
        flat = F.pad(input[:, :, 0], self.border[:4], mode="replicate")
        return F.conv2d(flat, self.weight.sum(2), self.bias).unsqueeze(2)


def window_of(x: Tensor, size: int) -> tuple[int, int, int]:
    """A pooling or upsampling window of this size; 1 along k for a repeated slice."""
    return (1 if x.shape[2] == 1 else size, size, size)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the far edges of (B, C, K, J, I) until each axis is a multiple; a repeated slice stays one."""
    padding = [(-n) % m for n, m in zip(x.shape[2:], window_of(x, multiple), strict=True)]
    return F.pad(x, (0, padding[2], 0, padding[1], 0, padding[0]), mode="replicate")
