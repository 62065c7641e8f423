"""A study in the views: what the display controls say becomes layers, colours and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import slicer

from CovidCTDiagnosisLib.panel.parameters import CT
from CovidCTDiagnosisLib.scene.layers import Layers, remember_layers, restore_layers, show_layers
from CovidCTDiagnosisLib.scene.nodes import StudyNodes, display_relevance, find_study_nodes, node_of, smooth_into

Logics = Callable[[], Iterable[slicer.vtkMRMLSliceLogic]]


class Display:
    """Shows the study of a CT in all slice views alike.

    Args:
        logics: gives the slice logics of all views.
    """

    def __init__(self, logics: Logics) -> None:
        self._logics = logics
        self._before: Layers = []

    def remember(self) -> None:
        """What the views show now can be brought back by `restore`."""
        self._before = remember_layers(self._logics())

    def restore(self) -> None:
        """Show what was remembered."""
        restore_layers(self._before)

    def update(self, parameters: Any) -> None:
        """Show the study of the chosen CT as the parameters say; nothing where there is none."""
        ct = parameters.inputVolume
        nodes = None if ct is None else find_study_nodes(ct)
        if nodes is None:
            return
        relevance = _relevance(nodes, parameters)
        show_layers(
            self._logics(),
            nodes.ct,
            relevance if parameters.showRelevance else None,
            parameters.relevanceOpacity,
            nodes.lesions if parameters.showLesions else None,
            parameters.lesionOpacity,
            label_outline=parameters.showRelevance,
        )


def _relevance(nodes: StudyNodes, parameters: Any) -> slicer.vtkMRMLScalarVolumeNode:
    """The volume to be shown: the file's own, or a smoothed copy of it."""
    node = nodes.relevance_ct if parameters.branch == CT else nodes.relevance_lesions
    if parameters.smoothingMm > 0:
        source, node = node, node_of(nodes.ct, f"smoothed {parameters.branch}", "vtkMRMLScalarVolumeNode")
        node.SetName(f"{source.GetName()}, smoothed")
        smooth_into(source, node, parameters.smoothingMm)
    display_relevance(node, parameters.signed, parameters.percentile)
    return node
