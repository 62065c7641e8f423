"""A study in the views: what the display controls say becomes layers, colours and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import slicer

from CovidCTDiagnosisLib.panel.parameters import LESIONS
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap, show_only_legend
from CovidCTDiagnosisLib.scene.layers import (
    Layers,
    hide_study,
    remember_layers,
    restore_layers,
    show_layers,
    shows_study,
)
from CovidCTDiagnosisLib.scene.nodes import find_study_nodes
from CovidCTDiagnosisLib.scene.segmentation import show_only_surfaces

Logics = Callable[[], Iterable[slicer.vtkMRMLSliceLogic]]


class Display:
    """Shows the study of a CT in all slice views alike.

    Args:
        logics: gives the slice logics of all views.
    """

    def __init__(self, logics: Logics) -> None:
        self._logics = logics
        self._before: Layers = []
        self._shows = False

    def _remember(self) -> None:
        """What the views show now can be brought back by `restore`; a study that they show already can not."""
        if not shows_study(self._logics()):
            self._before = remember_layers(self._logics())

    @property
    def remembers(self) -> bool:
        """Whether there is anything to bring back."""
        return bool(self._before)

    def forget(self) -> None:
        """Nothing can be brought back any more: the scene is another."""
        self._before, self._shows = [], False

    def restore(self) -> None:
        """Show what was remembered."""
        restore_layers(self._before)
        self._shows = False

    def update(self, parameters: Any) -> None:
        """Show the study of the chosen CT as the parameters say, or no study where there is none."""
        ct = parameters.inputVolume
        if ct is None:
            return
        nodes = find_study_nodes(ct)
        if nodes is None:
            self._shows = False
            hide_study(self._logics())
            show_only_legend(ct.GetScene(), None)
            show_only_surfaces(ct.GetScene(), None)
            return
        if not self._shows:
            self._remember()
        self._shows = True
        heatmap = show_heatmap(nodes, _view(parameters)) if parameters.showRelevance else None
        show_layers(
            self._logics(),
            nodes.ct,
            heatmap,
            parameters.relevanceOpacity,
            nodes.lesions if parameters.showLesions else None,
            parameters.lesionOpacity,
            label_outline=parameters.showRelevance,
        )
        show_only_legend(nodes.ct.GetScene(), heatmap if parameters.showLegend else None)
        show_only_surfaces(nodes.ct.GetScene(), nodes if parameters.showSurfaces else None)


def _view(parameters: Any) -> HeatmapView:
    return HeatmapView(
        of_lesions=parameters.branch == LESIONS,
        signed=parameters.signed,
        smoothing_mm=parameters.smoothingMm,
        hidden_percentile=parameters.hiddenPercentile,
        end_percentile=parameters.percentile,
    )
