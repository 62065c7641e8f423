"""What CVAE and classifier learn from: scans as the classifier sees them.

Every scan is segmented once by the bundle's own networks and kept on disk as the classifier sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..folders import replaced_file
from ..pipeline.appearance import UNKNOWN, Appearance
from ..pipeline.diagnosis import STEPS, ClassifierInput
from ..pipeline.models import Models
from .scan_table import is_scan_table, read_scan_table, split_scans
from .sources import read_series
from .splits import Split, split_by_blocks

Part = Literal["train", "validation", "test"]

LONGEST_SIDE = 128
INVOLVEMENT = "involvement_percent"
SEGMENTING = ("lungs", "lesions", "involvement")
CLEANING = 6
"""Counted up when the code between the networks changes what the classifier sees: what was kept before is not used."""


def inputs_kind() -> str:
    """Tells apart what scans are made into, beside the networks that segment them."""
    return f"inputs-{LONGEST_SIDE}{cleaning()}"


def cleaning() -> str:
    """Of names of what was kept: how the code between the networks was then."""
    return f"-{CLEANING}" if CLEANING > 1 else ""


class Scan(Protocol):
    """Anything that the bundle can segment."""

    @property
    def name(self) -> str:
        """Short, once each."""

    @property
    def covid(self) -> int:
        """1 or 0."""

    @property
    def picture(self) -> bool:
        """Whether it is 8-bit pictures of an unknown window, not HU."""

    @property
    def digest(self) -> str:
        """Tells its voxels apart from others of the same name."""

    def classifier_input(self, models: Models, longest_side: int) -> ClassifierInput:
        """Segment it, raising InputError where that cannot be done."""


@dataclass(frozen=True)
class Example:
    """A scan as the classifier sees it.

    Attributes:
        name: of the scan.
        ct: (S, 1, H, W) float32, scaled, 0 outside the lungs.
        lesions: (S, 1, H, W) float32, share of each pixel that is lesion.
        covid: 0 or 1.
        appearance: how the scan looks.
        picture: whether it was 8-bit pictures of an unknown window, not HU.
        involvement_percent: lesions' share of the lungs, as measured in a study.
    """

    name: str
    ct: Tensor
    lesions: Tensor
    covid: int
    appearance: Appearance = UNKNOWN
    picture: bool = True
    involvement_percent: float = 0.0


def prepare_examples(
    scans: Sequence[Scan], models: Models, cache: Path, report: Callable[[str], None] = lambda text: None
) -> list[Example]:
    """Segment scans with the bundle and keep the result; known ones are read from the cache.

    Args:
        scans: to be segmented.
        models: lungs and lesions come from these networks.
        cache: folder; what was made there by other weights or of other voxels is not used.
        report: gets a line per scan segmented.

    Raises:
        InputError: names every scan that cannot be used, one a line; the others are in the cache.
    """
    folder = cache / f"{inputs_kind()}-{models.bundle.fingerprint(SEGMENTING)}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{scan.name}-{scan.digest}.npz" for scan in scans]
    problems = []
    for number, (scan, file) in enumerate(zip(scans, files, strict=True), start=1):
        if not _is_kept(file):
            report(f"Segmenting scan {number} of {len(scans)}: {scan.name}")
            try:
                _save(file, scan.classifier_input(models, LONGEST_SIDE))
            except (InputError, UsageError) as error:
                # Of a folder that holds several series the message lists them.
                problems.append(f"  {scan.name}: {error.message}")
    if problems:
        listed = "\n".join(problems)
        raise InputError(
            f"These scans cannot be used:\n{listed}\n",
            "Correct or remove them and start again; of a folder give the one series.",
        )
    return [_read(file, scan) for scan, file in zip(scans, files, strict=True)]


def _is_kept(file: Path) -> bool:
    """Whether a scan is there with all that an example tells of it."""
    if not file.exists():
        return False
    with np.load(file) as saved:
        return INVOLVEMENT in saved


def _save(file: Path, inputs: ClassifierInput) -> None:
    arrays = {n: np.rint(getattr(inputs, n).numpy() * STEPS).astype(np.uint8) for n in ("ct", "lesions")}
    with replaced_file(file) as partial, partial.open("wb") as out:
        told = {**inputs.appearance._asdict(), INVOLVEMENT: inputs.involvement_percent}
        np.savez_compressed(out, **arrays, **told)


def _read(file: Path, scan: Scan) -> Example:
    with np.load(file) as saved:
        ct, lesions = (torch.from_numpy(saved[n].astype(np.float32) / STEPS) for n in ("ct", "lesions"))
        appearance = Appearance(*(float(saved[name]) for name in Appearance._fields))
        involvement = float(saved[INVOLVEMENT])
    return Example(scan.name, ct, lesions, scan.covid, appearance, scan.picture, involvement)


def split_data(data: Path) -> Split[Any]:
    """The ``Scan``s of a table, or the slice series of a data folder by blocks.

    Raises:
        InputError: the data lack a part, or are too few.
    """
    if is_scan_table(data):
        return split_scans(read_scan_table(data))
    return split_by_blocks(read_series(data))
