"""A study in the views: what the display controls say becomes layers, colours and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import slicer

from CovidCTDiagnosisLib.panel.parameters import LESIONS
from CovidCTDiagnosisLib.scene.agreement import present_study
from CovidCTDiagnosisLib.scene.heatmap import HeatmapView, show_heatmap, show_only_legend
from CovidCTDiagnosisLib.scene.layers import LayersOfViews, hide_study, show_layers
from CovidCTDiagnosisLib.scene.nodes import StudyNodes
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
        self._views: set[str] = set()
        """IDs of those that were made to show a study; none while none is shown."""

    @property
    def remembers(self) -> bool:
        """Whether there is anything to bring back."""
        return bool(self._before)

    def forget(self) -> None:
        """Nothing can be brought back any more: the scene is another."""
        self._before, self._views = LayersOfViews(), set()

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
        logics = list(self._logics())
        self._before.remember(logics, anew=not self._views)
        heatmap = self._show_layers(logics, nodes, parameters)
        legend = heatmap if parameters.showLegend else None
        show_only_legend(slicer.mrmlScene, legend, explained_call(analysis))
        show_only_surfaces(slicer.mrmlScene, nodes if parameters.showSurfaces else None)

    def update_new_views(self, parameters: Any) -> None:
        """The same where a study is shown, in views that a layout has added since; the others stay as they are."""
        new = [logic for logic in self._logics() if logic.GetSliceNode().GetID() not in self._views]
        found = present_study(parameters.inputVolume) if self._views and new else None
        if found is not None:
            self._before.remember(new, anew=False)
            self._show_layers(new, found[0], parameters)

    def keep_true(self, ct: slicer.vtkMRMLScalarVolumeNode) -> bool:
        """Where a study is shown: let it follow its CT, or hide it if the CT was changed; whether it stays."""
        if not self._views:
            return True
        found = present_study(ct)
        if found is None:
            self._hide()
            return False
        follow_ct(found[0])
        return True

    def _show_layers(
        self, logics: list[slicer.vtkMRMLSliceLogic], nodes: StudyNodes, parameters: Any
    ) -> slicer.vtkMRMLScalarVolumeNode | None:
        """Show them in these views; the heatmap among them, or None."""
        self._views |= {logic.GetSliceNode().GetID() for logic in logics}
        follow_ct(nodes)
        heatmap = show_heatmap(nodes, _view(parameters)) if parameters.showRelevance else None
        show_layers(
            logics,
            nodes.ct,
            heatmap,
            parameters.relevanceOpacity,
            nodes.lesions if parameters.showLesions else None,
            parameters.lesionOpacity,
            label_outline=parameters.showRelevance,
        )
        return heatmap

    def _hide(self) -> None:
        self._views = set()
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
