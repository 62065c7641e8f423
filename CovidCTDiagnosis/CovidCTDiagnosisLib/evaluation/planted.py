"""``covid-ct evaluate planted``: lesions of each class planted in a CT's healthy lungs, and what they are called.

Crazy paving and the combined pattern have no expert labels in the data; planted lesions are the only ones of these
classes. They come from the texture model that the networks learned from, so this says what a network could name at
best. What it calls the lesions of real slices says how often it names the two where an expert, who had no names for
them, saw ground glass or consolidation; pictures have to be looked at to know whether it is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import Box
from rich.table import Table

from ..bundle import open_bundle
from ..ct.regrid import bounding_region
from ..ct.volume import Volume
from ..networks import CRAZY_PAVING, LESION_CLASSES
from ..pipeline.compute import choose_device
from ..pipeline.lesions import segment_lesions
from ..pipeline.memory import tune_allocator
from ..pipeline.models import Models
from ..training.planting import plant_lesions
from ..training.sources import Case, read_lesion_slices
from .metrics import dice
from .sample_ct import read_sample_ct
from .segmentation_scores import CLASSES, run_slices
from .terminal import table_console

SHARE = 0.1
"""Of the lungs that is planted, about."""
SEEDS = (0, 1)
NOISE_HU = 20.0
"""What a scanner adds; the texture model is smooth."""
MOST_PAVED = 5
"""Slices that are named, to be looked at."""


class Planted(NamedTuple):
    """One CT with lesions of one class.

    Attributes:
        kind: number of the class in ``networks.LESION_CLASSES``.
        dice: of the lesion mask with all that was planted.
        named: share of the planted voxels inside the mask that gets each class, in their order.
    """

    kind: int
    dice: float
    named: tuple[float, ...]


def plant_and_segment(ct: Volume, lungs: np.ndarray, models: Models) -> Iterator[Planted]:
    """Plant each class with each of ``SEEDS``.

    Args:
        ct: axial, HU, healthy lungs that the networks have not learned from.
        lungs: uint8 (K, J, I), 1 right, 2 left.
        models: gives the networks.
    """
    region = bounding_region(lungs > 0)
    inside, spacing = lungs[region] > 0, ct.spacing[::-1]
    for kind in range(1, len(LESION_CLASSES)):
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            hu, labels = plant_lesions(rng, ct.voxels[region].astype(np.float32), inside, spacing, SHARE, kind)
            hu += np.where(labels > 0, rng.normal(0, NOISE_HU, hu.shape), 0)
            voxels = ct.voxels.copy()
            voxels[region] = np.rint(hu)
            found = segment_lesions(ct.with_voxels(voxels), lungs, models, lambda f: None, widen=False).labels[region]
            here = found[(labels > 0) & (found > 0)]
            counts = np.bincount(here, minlength=len(LESION_CLASSES))[1:]
            shares = (counts / max(counts.sum(), 1)).tolist()
            yield Planted(kind, dice(found > 0, labels > 0), tuple(shares))


class Called(NamedTuple):
    """What the lesions of expert slices are called.

    Attributes:
        named: of each class that experts name, the share of its voxels inside the mask that gets each class.
        paved: share of the lesions called crazy paving in each slice, by its name, largest first.
    """

    named: dict[int, tuple[float, ...]]
    paved: dict[str, float]


def call_expert_lesions(slices: Sequence[Case], models: Models) -> Called:
    """Name the lesions of expert slices, the voxels of all slices together."""
    threshold = models.preprocessing("lesions")["threshold"]
    counts, paved = np.zeros((len(CLASSES), len(LESION_CLASSES))), {}
    for found in run_slices(slices, models, 0):
        assert found.case.labels is not None
        labels = found.lesions(threshold)[1]
        for row, number in zip(counts, CLASSES, strict=True):
            row += np.bincount(labels[found.case.labels[0] == number], minlength=len(row))
        paved[found.case.name] = float(np.sum(labels == CRAZY_PAVING) / max(np.sum(labels > 0), 1))
    shares = counts[:, 1:] / np.maximum(counts[:, 1:].sum(1, keepdims=True), 1)
    largest_first = dict(sorted(paved.items(), key=lambda item: -item[1]))
    return Called({number: tuple(row) for number, row in zip(CLASSES, shares.tolist(), strict=True)}, largest_first)


def evaluate_planted(bundle: Path | None, device: str, data: Path | None = None) -> None:
    """Plant in the NIfTI sample, inside its expert's lobes, and print the confusion of classes.

    Args:
        bundle: or the one shipped.
        device: where to compute.
        data: folder with expert slices, whose lesions are named too.

    Raises:
        InputError: no expert slices are there.
    """
    experts = read_lesion_slices(data) if data else []
    tune_allocator()
    models = Models(open_bundle(bundle), choose_device(device))
    ct, lungs = read_sample_ct()
    console, frame = table_console()
    console.print(_planted_rows(list(plant_and_segment(ct, lungs, models)), frame))
    print(f"Mean of {len(SEEDS)} plantings each in about {SHARE:.0%} of the lungs of the NIfTI sample.")
    if experts:
        called = call_expert_lesions(experts, models)
        console.print(_expert_rows(called, len(experts), frame))
        most = list(called.paved.items())[:MOST_PAVED]
        print("Most crazy paving: " + ", ".join(f"{name} ({share:.0%})" for name, share in most) + ".")


def _planted_rows(found: list[Planted], frame: Box) -> Table:
    """Of each class planted, how much is found and what it is named."""
    rows = Table("planted", "mask, Dice", *(f"named {name}" for name in LESION_CLASSES[1:]), box=frame)
    for kind, name in enumerate(LESION_CLASSES[1:], start=1):
        of_kind = [f for f in found if f.kind == kind]
        named = np.mean([f.named for f in of_kind], axis=0)
        rows.add_row(name, f"{np.mean([f.dice for f in of_kind]):.3f}", *(f"{share:.1%}" for share in named))
    return rows


def _expert_rows(called: Called, slices: int, frame: Box) -> Table:
    """What lesions that an expert has named are called."""
    rows = Table(f"expert's, {slices} slices", *(f"called {name}" for name in LESION_CLASSES[1:]), box=frame)
    for number, shares in called.named.items():
        rows.add_row(LESION_CLASSES[number], *(f"{share:.1%}" for share in shares))
    return rows
