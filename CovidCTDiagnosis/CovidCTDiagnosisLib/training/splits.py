"""How scans are split: to learn from, to calibrate on, to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from ..errors import InputError


class Labelled(Protocol):
    """Anything that is COVID-19 (1) or not (0)."""

    @property
    def covid(self) -> int:
        """1 or 0."""


Item = TypeVar("Item", bound=Labelled)


@dataclass(frozen=True)
class Split(Generic[Item]):
    """What the classifier learns from, what it is calibrated on, and what it is measured on."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


LEAST = 2
"""Scans of either kind to learn from, and for validation."""
BLOCKS = 5
"""Of neighbouring series in each class."""


def split_by_blocks(examples: Sequence[Item], fold: int = BLOCKS - 1) -> Split[Item]:
    """In each class one block of neighbouring names is for testing, the one before (in a circle) for calibration.

    One patient may appear as two neighbouring series, so neighbours stay together.

    Args:
        examples: in order of their names.
        fold: which block is for testing, 0 to 4.

    Raises:
        InputError: a class has fewer than one series a block.
    """
    test, validation = fold, (fold - 1) % BLOCKS
    split: Split[Item] = Split([], [], [])
    for label in (0, 1):
        group = [e for e in examples if e.covid == label]
        if len(group) < BLOCKS:
            kind = "COVID-19" if label else "other"
            raise InputError(
                f"There are {len(group)} {kind} series, too few for {BLOCKS} blocks.",
                f"Give at least {BLOCKS} of either kind.",
            )
        for number, block in enumerate(np.array_split(np.arange(len(group)), BLOCKS)):
            part = {test: split.test, validation: split.validation}.get(number, split.train)
            part.extend(group[n] for n in block)
    return split


def require_enough(split: Split[Item], hint: str = "") -> None:
    """Raise InputError if scans of one kind are too few to learn from or to calibrate with; a hint ends its remedy."""
    for name, scans in (("train", split.train), ("validation", split.validation)):
        for covid, kind in enumerate(("other", "COVID-19")):
            count = sum(scan.covid == covid for scan in scans)
            if count < LEAST:
                raise InputError(
                    f"The split {name} has {count} {kind} scans, too few.",
                    f"Give at least {LEAST} of either kind, or divide the scans by a column split.{hint}",
                )
