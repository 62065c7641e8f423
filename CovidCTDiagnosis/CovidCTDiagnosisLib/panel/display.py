"""A study in the views: what the display controls say becomes layers, colours and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import slicer

from CovidCTDiagnosisLib.panel.parameters import LESIONS
from CovidCTDiagnosisLib.scene.agreement import present_study
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap, show_only_legend
from CovidCTDiagnosisLib.scene.layers import (
    LayersOfViews,
    hide_study,
    show_layers,
)
from CovidCTDiagnosisLib.scene.report import explained_call
from CovidCTDiagnosisLib.scene.segmentation import show_only_surfaces
from CovidCTDiagnosisLib.scene.study_nodes import follow_ct

Logics = Callable[[], Iterable[slicer.vtkMRMLSliceLogic]]


class Display:
    """Shows the study of a CT in all slice views alike.

    Args:
        logics: gives the slice logics of all views.
    """

    def __init__(self, logics: Logics) -> None:
        self._logics = logics
        self._before = LayersOfViews()
        self._shows = False

    @property
    def remembers(self) -> bool:
        """Whether there is anything to bring back."""
        return bool(self._before)

    def forget(self) -> None:
        """Nothing can be brought back any more: the scene is another."""
        self._before, self._shows = LayersOfViews(), False

    def restore(self) -> None:
        """Show what was remembered, and the study in no view."""
        self._before.restore()
        self._hide()

    def update(self, parameters: Any) -> None:
        """Show the study of the chosen CT as the parameters say, or no study where there is none of it as it is now."""
        found = present_study(parameters.inputVolume)
        if found is None:
            self._hide()
            return
        nodes, analysis = found
        self._before.remember(self._logics(), anew=not self._shows)
        self._shows = True
        follow_ct(nodes)
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
        legend = heatmap if parameters.showLegend else None
        show_only_legend(slicer.mrmlScene, legend, explained_call(analysis))
        show_only_surfaces(slicer.mrmlScene, nodes if parameters.showSurfaces else None)

    def _hide(self) -> None:
        self._shows = False
        hide_study(self._logics())
        show_only_legend(slicer.mrmlScene, None)
        show_only_surfaces(slicer.mrmlScene, None)


def _view(parameters: Any) -> HeatmapView:
    return HeatmapView(
        of_lesions=parameters.branch == LESIONS,
        signed=parameters.signed,
        smoothing_mm=parameters.smoothingMm,
        hidden_percentile=parameters.hiddenPercentile,
        end_percentile=parameters.percentile,
    )
