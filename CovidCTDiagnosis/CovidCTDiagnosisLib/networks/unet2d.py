"""2DS, pathological tissue: 2-D U-Net (paper section 3; Ronneberger et al. 2015; Tilborghs et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .efficientnet import EfficientNetLite0

ContractingPath = Literal["plain", "efficientnet-lite0"]


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class _Plain(nn.ModuleList):
    """Levels of convolutions with max pooling between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(_level(i, o) for i, o in zip([1, *widths[:-1]], widths, strict=True))
        self.widths = tuple(widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of all levels, finest first."""
        maps: list[Tensor] = []
        for level in self:
            maps.append(level(F.max_pool2d(maps[-1], 2) if maps else x))
        return maps


class _Pretrained(nn.Module):
    """EfficientNet-Lite0 below one level of convolutions on the full size, which it lacks."""

    def __init__(self, finest: int) -> None:
        super().__init__()
        self.finest = _level(1, finest)
        self.encoder = EfficientNetLite0()
        self.widths = (finest, *EfficientNetLite0.widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of all levels, finest first."""
        return [self.finest(x), *self.encoder(x)]


class UNet2D(nn.Module):
    """2-D U-Net; as in the paper 5 levels and 16 features at the first, doubled at each level.

    Learns from axial patches inside the lungs' bounding box; being convolutional, it runs on whole slices of that box.
    Bilinear upsampling and batch normalisation are not named in the paper.

    Args:
        widths: features of each level of the expanding path, finest first, and then of the lowest level if the
            contracting path is plain.
        contracting: path, ``plain`` as in the paper or ``efficientnet-lite0``, which can begin with weights learned
            from photographs.
        outputs: 1, or 2 to tell consolidation from ground-glass opacity too.

    Shapes: input (B, 1, J, I), HU clipped to [-1000, 400] and scaled to [0, 1]; output (B, outputs, J, I): the logit of
    pathological tissue and, of such tissue, that of consolidation. J and I need not be multiples of anything.

    Attributes:
        outputs: as given.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        contracting: ContractingPath = "plain",
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if contracting not in get_args(ContractingPath):
            raise ValueError(f"unknown contracting path {contracting}")
        self.down: _Plain | _Pretrained = _Plain(widths) if contracting == "plain" else _Pretrained(widths[0])
        skipped, lowest = self.down.widths[:-1], self.down.widths[-1]
        expanding = widths[: len(skipped)]
        below = [*expanding[1:], lowest]
        self.up = nn.ModuleList(
            _level(skip + deep, width) for skip, deep, width in zip(skipped, below, expanding, strict=True)
        )
        self.classify = nn.Conv2d(widths[0], outputs, 1)
        self.outputs = outputs

    @property
    def multiple(self) -> int:
        """Sizes J and I that are multiples of it need no padding."""
        return 2 ** len(self.up)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        size = x.shape[2:]
        padding = [(-n) % self.multiple for n in size]
        x = F.pad(x, (0, padding[1], 0, padding[0]), mode="replicate")
        maps = self.down(x)
        x = maps.pop()
        for up in reversed(self.up):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = up(torch.cat([maps.pop(), x], dim=1))
        return self.classify(x)[:, :, : size[0], : size[1]]


class UNet2DEnsemble(nn.Module):
    """2-D U-Nets of one architecture that learned apart; together they err less than each.

    Args:
        members: how many.
        architecture: of each, see ``UNet2D``.

    Shapes: as of ``UNet2D``; the output is the logit of the members' mean probability.

    Attributes:
        members: the networks.
        outputs: of each.
    """

    CERTAIN = 1e-6
    """A mean probability nearer to 0 or 1 is not told from it, as its logit would be infinite."""

    def __init__(self, members: int = 2, **architecture: Any) -> None:
        super().__init__()
        self.members = nn.ModuleList(UNet2D(**architecture) for _ in range(members))
        self.outputs = self._first.outputs

    @property
    def _first(self) -> UNet2D:
        first = self.members[0]
        assert isinstance(first, UNet2D)
        return first

    @property
    def multiple(self) -> int:
        """See ``UNet2D``."""
        return self._first.multiple

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        mean = torch.stack([torch.sigmoid(member(x)) for member in self.members]).mean(0)
        return torch.logit(mean, self.CERTAIN)


def make_2ds(members: int = 1, **architecture: Any) -> UNet2D | UNet2DEnsemble:
    """2DS as a bundle describes it: one network, or several where it says how many ``members``."""
    return UNet2D(**architecture) if members == 1 else UNet2DEnsemble(members, **architecture)
