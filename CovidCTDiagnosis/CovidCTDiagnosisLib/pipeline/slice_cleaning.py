"""Lungs of a lone slice made clean: airway, room air, islands and what the picture's edge cuts off taken out."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .slice_orientation import outside_air

SMALLEST_LUNG_CM2 = 2.0
SMALL_PIECE, EDGE_SHARE = 0.15, 0.8
"""Of the lungs' area and of a piece's own side: it is small below the one and on the edge beyond the other."""
LARGEST_AIRWAY_CM2, AIRWAY_OFF_CENTRE, AIRWAY_HU = 10.0, 0.08, -840
"""Off the picture's middle as a share of its width; air in a lung has vessels around it."""
LARGEST_HOLE_CM2 = 15.0
"""Vessels and consolidation enclosed by lung are smaller, the mediastinum between two touching lungs is not."""


def clean_slice(mask: np.ndarray, hu: np.ndarray, pixel_cm2: float) -> np.ndarray:
    """Lungs of a slice without small islands, airway, room air and what lies along the edge; small holes filled.

    Args:
        mask: bool (J, I), lung by the network.
        hu: (J, I).
        pixel_cm2: area of a pixel.

    Returns:
        bool (J, I).
    """
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    in_room = np.bincount(labels.ravel(), outside_air(hu).ravel(), minlength=count + 1)
    small = sizes < SMALL_PIECE * sizes[1:].sum()
    # No sign is enough alone: crops cut lungs, and a wide window or a black frame joins them to the room's air.
    signs = small.astype(int) + (in_room >= sizes / 2) + _on_the_edge(labels, sizes)
    keep = (sizes * pixel_cm2 >= SMALLEST_LUNG_CM2) & (signs < 2)
    keep &= ~_airway(labels, sizes * pixel_cm2, hu)
    keep[0] = False
    kept = keep[labels]
    holes, count = ndimage.label(ndimage.binary_fill_holes(kept) & ~kept)
    fill = np.bincount(holes.ravel(), minlength=count + 1) * pixel_cm2 < LARGEST_HOLE_CM2
    fill[0] = False
    return kept | fill[holes]


def _on_the_edge(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of each piece, whether it lies along the picture's edge, as air beside a body that the crop cuts."""
    edge = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    touching = np.bincount(edge, minlength=len(sizes))
    return touching > EDGE_SHARE * np.sqrt(sizes)


def _airway(labels: np.ndarray, areas_cm2: np.ndarray, hu: np.ndarray) -> np.ndarray:
    """Of each piece, whether it is trachea or a main bronchus: not large, near the middle and as dark as air."""
    found = np.zeros(len(areas_cm2), bool)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if areas_cm2[number] > LARGEST_AIRWAY_CM2:
            continue
        piece = labels[box] == number
        middle = box[1].start + np.nonzero(piece)[1].mean()
        central = abs(middle / labels.shape[1] - 0.5) < AIRWAY_OFF_CENTRE
        found[number] = central and np.median(hu[box][piece]) < AIRWAY_HU
    return found
