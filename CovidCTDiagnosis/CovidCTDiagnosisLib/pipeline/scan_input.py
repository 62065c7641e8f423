"""What the classifier sees of a CT, without the rest of an analysis."""

from __future__ import annotations

from ..ct import Volume, check_chest_ct, to_axial
from .diagnosis import ClassifierInput, classifier_input
from .lesions import segment_lesions
from .lungs import segment_lungs
from .models import Models


def scan_input(ct: Volume, models: Models, *, slice_mm: float, longest_side: int) -> ClassifierInput:
    """Segment a CT as ``analyze`` does.

    Args:
        ct: HU, on any grid.
        models: networks ``lungs``, ``lesions`` and ``involvement``.
        slice_mm, longest_side: see ``classifier_input``.

    Raises:
        InputError: this is no chest CT that can be analysed.
    """
    check_chest_ct(ct)
    axial = to_axial(ct)
    lungs = segment_lungs(axial, models, _ignore).labels
    found = segment_lesions(axial, lungs, models, _ignore)
    return classifier_input(axial, found.lungs, found.labels, slice_mm=slice_mm, longest_side=longest_side)


def _ignore(fraction: float) -> None:
    """Nobody watches the progress."""
