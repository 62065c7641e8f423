"""Where the relevance went: one entry per layer, which closes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def total(x: Tensor) -> float:
    """The sum; torch adds in a cascade, so that millions of terms lose no more than the last digits."""
    return x.sum().item()


@dataclass
class LedgerEntry:
    """Signed sums of relevance at one layer, over all its neurons and all slices.

    incoming = outgoing + bias + stabiliser - created, up to ``residual`` (rounding).

    Attributes:
        layer: path of the layer in the classifier ("encoder.gate" for the gate).
        incoming: relevance from the layer above.
        outgoing: relevance handed to the layer below.
        bias: absorbed by the layer's constants: biases, cluster centres, neurons that see masked pixels only.
        stabiliser: absorbed by the small term that keeps LRP-0 and zB from dividing by zero.
        created: made by alpha-beta at neurons of one sign, and by a gate that pays both branches in full.
    """

    layer: str
    incoming: float = 0.0
    outgoing: float = 0.0
    bias: float = 0.0
    stabiliser: float = 0.0
    created: float = 0.0

    @property
    def residual(self) -> float:
        """What the entry leaves unexplained, relative to its largest term."""
        terms = (self.incoming, self.outgoing, self.bias, self.stabiliser, self.created)
        difference = self.incoming - self.outgoing - self.bias - self.stabiliser + self.created
        return abs(difference) / max(*map(abs, terms), 1e-300)


class Ledger:
    """Collects entries from the scores down to the inputs; chunks of slices add up."""

    def __init__(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}

    @property
    def entries(self) -> list[LedgerEntry]:
        """In order of propagation."""
        return list(self._entries.values())

    def book(
        self,
        layer: str,
        incoming: float,
        outgoing: float,
        bias: float = 0.0,
        stabiliser: float = 0.0,
        created: float = 0.0,
    ) -> None:
        """Add to the layer's entry."""
        entry = self._entries.setdefault(layer, LedgerEntry(layer))
        entry.incoming += incoming
        entry.outgoing += outgoing
        entry.bias += bias
        entry.stabiliser += stabiliser
        entry.created += created
