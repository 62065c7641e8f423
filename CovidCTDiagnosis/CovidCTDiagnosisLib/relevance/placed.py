"""Relevance of a layer's outputs, kept only at the places that pooling gave any to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """Relevance everywhere, or at the winners of a pooling only: what has none costs a rule nothing.

    Attributes:
        values: of any shape; at places (S, C, ...).
        places: of the same shape, indices into the planes of ``shape`` when flattened; one may stand twice. None:
            everywhere.
        shape: of the outputs, (S, C, H, W); needed with ``places``.
    """

    values: Tensor
    places: Tensor | None = None
    shape: torch.Size | None = None

    def take(self, maps: Tensor) -> Tensor:
        """The values of maps like the outputs at these places, of the shape of ``values``."""
        if self.places is None:
            return maps
        return _columns(_rows(maps).gather(1, _rows(self.places)), self.places.shape[2:])

    def spread(self, values: Tensor) -> Tensor:
        """Maps like the outputs: what stands at the same place adds up, all else is zero."""
        if self.places is None:
            return values
        assert self.shape is not None
        count, channels, height, width = self.shape
        rows = values.new_zeros(count, height * width, channels)
        rows.scatter_add_(1, _rows(self.places), _rows(values))
        return _columns(rows, (height, width))

    @property
    def maps(self) -> Tensor:
        """The relevance of all outputs."""
        return self.spread(self.values)


def _rows(maps: Tensor) -> Tensor:
    """(S, C, ...) as (S, P, C): pixel by pixel, as channels-last maps lie in memory."""
    return maps.movedim(1, -1).reshape(len(maps), -1, maps.shape[1])


def _columns(rows: Tensor, size: Sequence[int]) -> Tensor:
    """The way back from ``_rows``."""
    return rows.view(len(rows), *size, rows.shape[2]).movedim(-1, 1)
