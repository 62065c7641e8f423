"""Where relevance lies: in lesions, in each lung, in each third of the lungs."""

from __future__ import annotations

import numpy as np

from .lung_sides import LEFT, RIGHT

THIRDS = ("lower", "middle", "upper")
"""Of the lungs' height, from inferior to superior."""


def relevance_places(relevance: np.ndarray, lungs: np.ndarray, lesions: np.ndarray) -> dict[str, float | None]:
    """Shares of the positive relevance, each 0 to 1, and its balance.

    Args:
        relevance: signed, (K, J, I), k inferior to superior.
        lungs: uint8 on its grid, 1 right, 2 left.
        lesions: uint8 on its grid, not 0 in lesions.

    Returns:
        ``in_lesions``; ``right`` and ``left``; ``upper``, ``middle`` and ``lower`` third of the lungs' height;
        ``right_left_balance`` from -1 (all in the left lung) to 1 (all in the right one). All are None where no
        relevance is positive.
    """
    third = _third(lungs)
    sums = np.zeros((len(THIRDS), 3, 2))  # by third, side and whether it is lesion
    for k, plane in enumerate(relevance):  # slice by slice: indices of a whole CT would fill the memory
        chosen = (plane > 0) & (lungs[k] > 0)
        place = 2 * lungs[k][chosen].astype(np.intp) + (lesions[k][chosen] > 0)
        sums[third[k]] += np.bincount(place, weights=plane[chosen], minlength=6).reshape(3, 2)
    shares = {
        "in_lesions": sums[:, :, 1].sum(),
        "right": sums[:, RIGHT].sum(),
        "left": sums[:, LEFT].sum(),
        **{name: sums[number].sum() for number, name in enumerate(THIRDS)},
    }
    shares["right_left_balance"] = shares["right"] - shares["left"]
    whole = sums.sum()
    return {name: float(share / whole) if whole > 0 else None for name, share in shares.items()}


def _third(lungs: np.ndarray) -> np.ndarray:
    """Number in ``THIRDS`` of every slice (K,)."""
    slices = np.flatnonzero(lungs.any(axis=(1, 2)))
    first, count = (slices[0], slices[-1] - slices[0] + 1) if len(slices) else (0, 1)
    return np.clip((np.arange(len(lungs)) - first) * 3 // count, 0, 2)
